"""From an explained number to the relevance of a leaf, in either form of the graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lxt_fx.base.torch_internals import pytree
from lxt_fx.compiler.explained import Explained


def leaf_relevance(explained: Explained, output: Any, value: Tensor, leaf: Tensor) -> Tensor | None:
    """The relevance of `leaf`, in its shape and at least float32, for the scalar `value` computed from the `output`;
    None where the value does not depend on the leaf.

    In gradient form that is leaf * gradient. In explicit form each output starts with output * d value / d output, which
    is the value itself for a logit, and shares a difference of logits out to both.
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
