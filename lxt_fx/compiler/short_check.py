"""The example that graph and model are compared on step by step: that of a call, cut short if it is a long text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lxt_fx.base.on_meta import on_meta
from lxt_fx.compiler.call_inputs import false_guard, of_other_size
from lxt_fx.compiler.size_guards import compiled_guard
from lxt_fx.ops.expectations import EXPECTATIONS
from lxt_fx.passes.canonical.fill_missing import has_missing
from lxt_fx.passes.capture.called_by_leaf import leaf_values
from lxt_fx.passes.capture.capture import Captured, torch_state_restored
from lxt_fx.passes.capture.example import Example
from lxt_fx.passes.capture.refused_inputs import answer_or_error
from lxt_fx.passes.capture.short_example import short_example


@dataclass(frozen=True, slots=True)
class Checked:
    """An example and the model's output on it."""

    example: Example
    expected: Any


def short_check(
    model: nn.Module, example: Example, captured: Captured, sizes: Mapping[str, tuple[int | None, ...]]
) -> Checked | None:
    """A short example in the place of a long one. The whole is compared once, in the end: forward and module at all tokens.
    None where nothing is cut, and where a graph is not valid for less: one that was traced on values, or has conditions on
    its sizes (`sizes` are those of its inputs, None for a free one), or with missing values."""
    short = short_example(example)
    if short is None or on_meta(model, example.kwargs) or has_missing(example.kwargs):
        return None
    if not captured.method.startswith("torch.export"):
        return None
    if any(node.target in EXPECTATIONS for node in captured.gm.graph.nodes):
        return None
    leaves = leaf_values(short.kwargs)
    guards = [(guard, compiled_guard(guard)) for guard in captured.guards]
    if of_other_size(sizes, leaves) is not None or false_guard(guards, leaves) is not None:
        return None
    with torch_state_restored(), torch.no_grad():
        expected = answer_or_error(model, short)
    return None if isinstance(expected, Exception) else Checked(short, expected)
