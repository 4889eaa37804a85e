"""The relevance of a leaf for an explained number, in either form of the graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lxt_fx.base.torch_internals import pytree
from lxt_fx.compiler.explained import Explained


def leaf_relevance(explained: Explained, output: Any, value: Tensor, leaf: Tensor) -> Tensor | None:
    """The relevance of `leaf` for the scalar `value`, which was computed from the `output`. It has the leaf's shape and at
    least float32; None if the value does not depend on the leaf.

    In gradient form it is leaf * gradient. In explicit form the backward of each output starts with output * d value / d
    output: for a logit that is the logit itself; for a difference of logits each of them gets its own signed value.
    """
    wide = torch.promote_types(leaf.dtype, torch.float32)
    if explained.record.form == "gradient":
        (gradient,) = torch.autograd.grad(value, leaf, allow_unused=True)
        return None if gradient is None else leaf.detach().to(wide) * gradient.to(wide)
    outputs = [t for t in pytree.tree_leaves(output) if isinstance(t, Tensor) and t.requires_grad]
    gradients = torch.autograd.grad(value, outputs, allow_unused=True, retain_graph=True)
    used = [(t, t.detach() * g) for t, g in zip(outputs, gradients, strict=True) if g is not None]
    if not used:
        return None
    (relevance,) = torch.autograd.grad([t for t, _ in used], leaf, [seed for _, seed in used], allow_unused=True)
    return None if relevance is None else relevance.to(wide)
