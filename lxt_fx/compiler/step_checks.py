"""Checks between the steps of `transform`: the graph is always linted; in tests its values and gradients are compared
too."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter

from lxt_fx.base.autocast import autocast_off
from lxt_fx.base.grad_mode import gradients_on
from lxt_fx.base.on_meta import on_meta
from lxt_fx.base.torch_internals import io_of, pytree
from lxt_fx.compiler.explained import Explained
from lxt_fx.passes.analysis.relevance_leaves import relevance_leaves
from lxt_fx.passes.capture.capture import torch_state_restored
from lxt_fx.passes.capture.example import SEED, Example
from lxt_fx.passes.positions.asked_positions import Narrowing
from lxt_fx.passes.verify import forward_difference, tolerance_of

EXACT = {torch.float64: 1e-12} | {
    dtype: 8 * torch.finfo(dtype).eps for dtype in (torch.float32, torch.bfloat16, torch.float16)
}
"""The largest change of the forward, relative to its largest value, by a step that should change no value."""


def step_check(gm: GraphModule, example: Example) -> Callable[..., None]:
    """A check to call after each step. It lints the graph; with LXT_FX_CHECK=1 (always in tests) it also compares the
    forward with that of the graph as it is now."""
    if os.environ.get("LXT_FX_CHECK") != "1" or on_meta(gm, example.kwargs):
        return lambda step, by_dtype=None, narrowing=None: gm.graph.lint()
    before = _run(gm, example)

    def check(
        step: str, by_dtype: Mapping[torch.dtype, float] = EXACT, narrowing: Narrowing | None = None
    ) -> None:
        gm.graph.lint()
        expected = before if narrowing is None else narrowing.of(before)
        difference = forward_difference(expected, _run(gm, example))
        assert difference <= tolerance_of(expected, by_dtype), f"{step} changed the forward by {difference:.2g}"

    return check


def check_fused(module: Explained, example: Example) -> None:
    """With LXT_FX_CHECK=1 (always in tests): the fused graph, which a plain call runs, must pass the same gradients as the
    lowered graph, which the audit reads."""
    if os.environ.get("LXT_FX_CHECK") != "1":
        return
    found = [gradients_on_example(module, example, fused=fused) for fused in (True, False)]
    for fused, lowered in zip(*found, strict=True):
        scale = lowered.abs().max() if lowered.numel() else torch.zeros(())
        if scale.isfinite() and lowered.dtype in (torch.float32, torch.float64):
            allowed = 1e-6 if lowered.dtype is torch.float64 else 1e-3  # float64 models cast to float32 inside
            difference = (fused - lowered).abs().max() if lowered.numel() else scale
            assert difference <= allowed * scale, f"the fused graph passes another gradient, by {difference / scale:.2g}"


def gradients_on_example(module: Explained, example: Example, *, fused: bool) -> list[Tensor]:
    """The gradients of a fixed weighted sum of the outputs at every input at which relevance is read."""
    read_at = relevance_leaves(module.graph)
    asks = [node in read_at for node in module.graph.nodes if node.op == "placeholder"]
    with autocast_off(), gradients_on():
        torch.manual_seed(SEED)
        flat, spec = pytree.tree_flatten(dict(example.kwargs))
        flat = [x.clone().requires_grad_(ask) if isinstance(x, Tensor) else x for x, ask in zip(flat, asks, strict=True)]
        bound = pytree.tree_unflatten(flat, spec)
        output = module.forward(**bound) if fused else module._run_by(Interpreter(module), bound)
        outputs = [x for x in pytree.tree_leaves(output) if isinstance(x, Tensor) and x.requires_grad]
        leaves = [x for x in pytree.tree_leaves(bound) if isinstance(x, Tensor) and x.requires_grad]
        seeds = [torch.linspace(-1, 2, x.numel(), device=x.device).reshape(x.shape).to(x.dtype) for x in outputs]
        return list(torch.autograd.grad(outputs, leaves, seeds, materialize_grads=True)) if outputs else []


def _run(gm: GraphModule, example: Example) -> Any:
    """The output, node by node: compiling the forward anew after each step costs more than running it."""
    with torch_state_restored(), torch.no_grad():
        flat = Interpreter(gm).run(*pytree.tree_leaves(example.copied().kwargs), enable_io_processing=False)
    return pytree.tree_unflatten(flat, io_of(gm.graph).out_spec)
