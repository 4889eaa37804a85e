"""The relevance of leaves for an explained number, in either form of the graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lxt_fx.base.torch_internals import pytree
from lxt_fx.base.wide import at_least_float32
from lxt_fx.compiler.explained import Explained


def leaf_relevance(explained: Explained, output: Any, value: Tensor, leaves: Sequence[Tensor]) -> list[Tensor] | None:
    """The relevance of `leaves` for the scalar `value`, which was computed from the `output`: for each of them a tensor of
    its shape, at least float32. None if the value depends on none of them.

    In gradient form it is leaf * gradient. In explicit form the backward of each output starts with output * d value / d
    output: for a logit that is the logit itself; for a difference of logits each of them gets its own signed value.
    """
    if explained.record.form == "gradient":
        gradients = torch.autograd.grad(value, list(leaves), allow_unused=True)
        found = [
            None if g is None else at_least_float32(leaf.detach()) * at_least_float32(g)
            for leaf, g in zip(leaves, gradients, strict=True)
        ]
        return _with_zeros(found, leaves)
    outputs = [t for t in pytree.tree_leaves(output) if isinstance(t, Tensor) and t.requires_grad]
    gradients = torch.autograd.grad(value, outputs, allow_unused=True, retain_graph=True)
    used = [(t, t.detach() * g) for t, g in zip(outputs, gradients, strict=True) if g is not None]
    if not used:
        return None
    relevance = torch.autograd.grad([t for t, _ in used], list(leaves), [seed for _, seed in used], allow_unused=True)
    return _with_zeros([None if r is None else at_least_float32(r) for r in relevance], leaves)


def _with_zeros(found: Sequence[Tensor | None], leaves: Sequence[Tensor]) -> list[Tensor] | None:
    if all(relevance is None for relevance in found):
        return None
    return [
        torch.zeros_like(at_least_float32(leaf.detach())) if relevance is None else relevance
        for leaf, relevance in zip(leaves, found, strict=True)
    ]
