"""Inputs that a plan calls a module with: their sizes count, and no values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.base.nodes import fixed_size
from lxt_fx.compiler.explained import Explained


def example_of(explained: Explained, batch: int, tokens: int) -> dict[str, Tensor]:
    """Inputs of a call without what may be left out: of texts their ids, of other inputs their captured sizes."""
    record = explained.record
    reads = {name: front for front in explained._fronts for name in front.reads}
    given: dict[str, Tensor] = {}
    captured = {str(node.target): node.meta.get("val") for node in explained.graph.nodes if node.op == "placeholder"}
    for name in record.called_with:
        if name in record.optional:
            continue
        if name in reads and not reads[name].reads_floats:
            given[name] = torch.zeros(batch, tokens, dtype=torch.long)
            continue
        found = captured.get(name)
        if not isinstance(found, Tensor):
            raise InputError(
                f"plan: how large {name} of {record.model_class} is cannot be told; give inputs={{{name!r}: ...}}, as the "
                "model is called"
            )
        free = iter((batch, tokens))
        sizes = [fixed if (fixed := fixed_size(size)) is not None else next(free, tokens) for size in found.shape]
        device = explained.device if found.dtype.is_floating_point else "cpu"
        given[name] = torch.zeros(sizes, dtype=found.dtype, device=device)
    return given


def written_sizes(given: Mapping[str, Any]) -> str:
    """The inputs with their sizes, as a phrase."""
    return ", ".join(f"{name} {list(x.shape)}" for name, x in given.items() if isinstance(x, Tensor))
