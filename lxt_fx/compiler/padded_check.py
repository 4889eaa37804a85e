"""What model and explained module answer to padded texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from lxt_fx.base.errors import CallError
from lxt_fx.base.on_meta import on_meta
from lxt_fx.compiler.explained import Explained
from lxt_fx.passes.capture.example import SEED, Example
from lxt_fx.passes.capture.padded import PADDINGS, Padding, padded
from lxt_fx.passes.capture.refused_inputs import answer_or_error


def answers_to_padding(model: nn.Module, example: Example, explained: Explained) -> Iterator[tuple[Any, Any]]:
    """The outputs of the model and of the module for texts that are padded right and left, beside a full one. None where
    the model refuses such texts, or the graph says that it is not valid for them. To be run inside
    `torch_state_restored`."""
    if isinstance(model, Explained) or on_meta(model, example.kwargs):
        return
    for paddings in _together(explained):
        texts = padded(model, example, paddings)
        expected = None if texts is None else answer_or_error(model, texts)
        if texts is None or isinstance(expected, Exception):
            continue
        try:
            fitting, bound = explained._prepared((), texts.kwargs)
            torch.manual_seed(SEED)
            found = fitting.forward(**bound)
        except CallError:
            continue
        yield expected, found


def _together(explained: Explained) -> list[Sequence[Padding]]:
    """The paddings of the texts of one batch: all at once, or one beside full texts where the batch size is fixed."""
    fixed = [sizes[0] for sizes in explained.record.sizes.values() if sizes and sizes[0] is not None]
    if not fixed:
        return [PADDINGS]
    full: list[Padding] = ["none"] * (fixed[0] - 1)
    return [[*full, padding] for padding in PADDINGS[1:]]
