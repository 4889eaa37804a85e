"""Analysis: does the graph compute what the model computes?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from lxt_fx.base.errors import ForwardMismatchError
from lxt_fx.base.torch_internals import aten
from lxt_fx.base.user_objects import tensors_of

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""Largest difference allowed, relative to the largest value, by dtype."""

MERGED_TOLERANCES = {**TOLERANCES, torch.float32: 1e-4, torch.bfloat16: 1e-1, torch.float16: 2e-2}
"""The same for a graph with merged batch norms. A merged layer rounds other weights than the model does, and this
difference grows from layer to layer as the model's own rounding error does. Measured on random ResNets, MobileNet and
EfficientNet with 20 to 53 merged batch norms: up to 6e-14 in float64, 2.5e-5 in float32, 3.1e-2 in bfloat16, 3.7e-3 in
float16. On a ResNet-50 whose own rounding error is 0.26 in bfloat16 and 0.05 in float16 the difference is as large, and
such a model is refused."""


def forward_difference(expected: Any, actual: Any) -> float:
    """Analysis: the largest difference of two outputs (any nesting of tensors), relative to the largest finite value.
    0.0 means bit-equal. The result is inf where structure, shape or dtype differ, or inf and NaN stand at other places."""
    wanted, found = tensors_of(expected), tensors_of(actual)
    if [t.shape for t in wanted] != [t.shape for t in found]:
        return float("inf")
    return max((_difference(a, b) for a, b in zip(wanted, found, strict=True)), default=0.0)


def _difference(a: Tensor, b: Tensor) -> float:
    a, b = a.detach(), b.detach()
    if a.dtype != b.dtype:
        return float("inf")
    if torch.equal(a, b) or a.numel() == 0:
        return 0.0
    if not a.is_floating_point():
        return float("inf")
    finite = torch.isfinite(a)
    if not torch.equal(finite, torch.isfinite(b)):
        return float("inf")
    a, b = a[finite].double(), b[finite].double()
    return float((a - b).abs().max() / a.abs().max().clamp(min=1e-30)) if a.numel() else 0.0


def gradient_difference(models: Tensor, graphs: Tensor) -> float:
    """Analysis: the norm of the difference of two gradients relative to the norm of the model's, where that is finite. NaN
    if it is finite nowhere; inf if only the graph's is not finite, or only the model's is 0."""
    finite = torch.isfinite(models)
    if models.numel() and not finite.any():
        return math.nan
    precise = torch.complex128 if models.is_complex() else torch.float64
    a, b = models[finite].to(precise), graphs[finite].to(precise)
    if not torch.isfinite(b).all():
        return math.inf
    apart, norm = float((a - b).abs().square().sum().sqrt()), float(a.abs().square().sum().sqrt())
    if apart == 0:
        return 0.0
    return apart / norm if norm else math.inf


def tolerance_of(output: Any, by_dtype: Mapping[torch.dtype, float] = TOLERANCES) -> float:
    """The largest difference allowed for an output: that of its least precise dtype."""
    dtypes = {t.dtype for t in tensors_of(output) if t.is_floating_point()}
    return max((by_dtype.get(dtype, 0.0) for dtype in dtypes), default=0.0)


def computes_in_float32(gm: GraphModule) -> bool:
    """Analysis: whether the graph casts to float32, as many models do around norms and softmax, whatever their own
    dtype."""
    return any(node.target is aten.to.dtype and node.args[1] is torch.float32 for node in gm.graph.nodes)


def check_forward(
    difference: float,
    expected: Any,
    name: str,
    merged: Sequence[str] = (),
    gm: GraphModule | None = None,
    inputs: str = "its example",
) -> None:
    """Raises ForwardMismatchError where the difference exceeds the tolerance of the output's dtype.

    `inputs` says on which inputs. `merged` names the batch norms that were merged into a layer. A float64 model that casts
    to float32 gets the tolerance of float32: capture may add in another order than the model does (as in a scan by chunks).
    """
    by_dtype = MERGED_TOLERANCES if merged else TOLERANCES
    allowed = tolerance_of(expected, by_dtype)
    if gm is not None and computes_in_float32(gm):
        allowed = max(allowed, by_dtype[torch.float32])
    if difference <= allowed:
        return
    why = "This is a fault of lxt_fx or of torch.export for this model; please report it"
    if merged:
        why = (
            f"{len(merged)} batch norms were merged into the layers before them, as the rules of these layers require; the "
            "merged weights round differently, and a deep model amplifies that. In half precision, transform the model in "
            "float32; in float32 or float64 this is a fault of lxt_fx, please report it"
        )
    raise ForwardMismatchError(
        f"transform: the graph of {name} differs from the model by {difference:.2g} of the largest output on {inputs} "
        f"(allowed: {allowed:.0e}). {why}"
    )
