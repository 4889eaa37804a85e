"""Capture, and a test of the sizes that the graph calls free: graph and model must agree after each of them is changed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from lxt_fx.base.errors import CaptureError
from lxt_fx.base.nodes import fixed_size
from lxt_fx.base.on_meta import on_meta
from lxt_fx.base.torch_internals import pytree
from lxt_fx.passes.capture.capture import Captured, capture, torch_state_restored
from lxt_fx.passes.capture.example import SEED, Example
from lxt_fx.passes.capture.refused_inputs import answer_or_error
from lxt_fx.passes.capture.short_example import short_example
from lxt_fx.passes.verify import forward_difference, tolerance_of


def capture_and_try_sizes(model: nn.Module, example: Example, *, dynamic: bool, copies: bool = True) -> Captured:
    """The model's graph with free sizes, compared with the model after every free size was changed.

    A model that reads `len(x)`, or loops over its tokens, may fix a size in the graph silently. Where graph and model
    differ, the model is captured again with a free batch only and compared again, and else with all sizes fixed to the
    example's. A model whose code takes another way while it is exported is traced. With `copies`, layers that are the same
    code are traced once (`export_once`), unless the graph then differs from the model.

    Raises CaptureError where no way of capture succeeds.
    """
    captured = _capture_free(model, example, copies) if dynamic else capture(model, example, dynamic=False, copies=copies)
    compares = captured.method == "torch.export" and (dynamic or captured.copied.layers > 0)
    if not compares or on_meta(model, example.kwargs) or _is_proven(model, captured):
        return captured
    if captured.copied.layers:
        return capture_and_try_sizes(model, example, dynamic=dynamic, copies=False)
    why = "the graph with free sizes differs from the model at other sizes than the example's"
    if example.dynamic_dims != 1:
        batch_only = _capture_free(model, replace(example, dynamic_dims=1), copies)
        if batch_only.method == "torch.export" and _is_proven(model, batch_only):
            return replace(batch_only, specialised=(why, *batch_only.specialised))
    fixed = capture(model, example, dynamic=False, copies=copies)
    if fixed.method == "torch.export" and not _holds_at(model, fixed, fixed.example):
        why = "what torch.export calls differs from the model: its code asks whether it is exported"
        fixed = capture(model, example, dynamic=False, export=False)
    return replace(fixed, specialised=(why, *fixed.specialised))


def _is_proven(model: nn.Module, captured: Captured) -> bool:
    """Whether graph and model agree at other sizes; on the example where none is free and layers were copied."""
    other = _resized(captured) or (captured.example if captured.copied.layers else None)
    return other is None or _holds_at(model, captured, other)


def _resized(captured: Captured) -> Example | None:
    """The example, cut short if it is a long text, with every free size changed: the batch becomes 1, every other size
    shrinks by 2, but not below 2. Sizes that are computed from others follow them; what would have to grow for that stays
    as it is. None where no size is free."""
    example = short_example(captured.example) or captured.example
    leaves, spec = pytree.tree_flatten(example.kwargs)
    placeholders = [node for node in captured.gm.graph.nodes if node.op == "placeholder"]
    free = [_free_dims(leaf, node) for leaf, node in zip(leaves, placeholders, strict=True)]
    dims = [(leaf, dim, expr) for leaf, found in zip(leaves, free, strict=True) for dim, expr in found]
    wanted: dict[Any, int] = {}
    for leaf, dim, expr in dims:
        if expr.is_symbol:
            wanted.setdefault(expr, 1 if dim == 0 else max(leaf.shape[dim] - 2, min(leaf.shape[dim], 2)))
    sizes = {expr: leaf.shape[dim] for leaf, dim, expr in dims if expr.is_symbol}
    for leaf, dim, expr in dims:
        if not expr.is_symbol and not 1 <= int(expr.subs(sizes | wanted)) <= leaf.shape[dim]:
            wanted = {symbol: size for symbol, size in wanted.items() if symbol not in expr.free_symbols}
    if not wanted:
        return None
    cut = []
    for leaf, found in zip(leaves, free, strict=True):
        for dim, expr in found:
            leaf = leaf.narrow(dim, 0, int(expr.subs(sizes | wanted)))
        cut.append(leaf.clone() if isinstance(leaf, Tensor) else leaf)
    return replace(example, kwargs=pytree.tree_unflatten(cut, spec))


def _free_dims(leaf: Any, node: Node) -> list[tuple[int, Any]]:
    """The free dims of an input, each with its size: a symbol, or an expression of symbols."""
    found = node.meta.get("val")
    if not isinstance(leaf, Tensor) or not isinstance(found, Tensor):
        return []
    sizes: list[Any] = list(found.shape)
    exprs = [(dim, size.node.expr) for dim, size in enumerate(sizes) if isinstance(size, torch.SymInt)]
    return [(dim, expr) for dim, expr in exprs if expr.free_symbols]


def _capture_free(model: nn.Module, example: Example, copies: bool) -> Captured:
    """Captured on batch 2 where the example has batch 1: a size of 1 would be fixed in the graph. If the batch of an input
    is fixed all the same, its code depends on it, and the graph must have the example's own."""
    twice = example.doubled()
    if twice is not None:
        try:
            captured = capture(model, twice, dynamic=True, copies=copies)
            if captured.method == "torch.export" and _has_free_batch(captured):
                return captured
        except CaptureError:
            pass  # the example's own batch is tried next, and its error is the one to report
    return capture(model, example, dynamic=True, copies=copies)


def _has_free_batch(captured: Captured) -> bool:
    values = [node.meta.get("val") for node in captured.gm.graph.nodes if node.op == "placeholder"]
    return all(fixed_size(value.shape[0]) is None for value in values if isinstance(value, Tensor))


def _run_or_error(gm: GraphModule, example: Example) -> Any:
    torch.manual_seed(SEED)
    try:
        return gm(**example.copied().kwargs)
    except Exception as error:  # a graph that cannot run at these sizes is not valid for them
        return error


def _holds_at(model: nn.Module, captured: Captured, other: Example) -> bool:
    """Whether graph and model agree on inputs of other sizes. Where the model itself refuses them there is nothing to
    compare."""
    with torch_state_restored(), torch.no_grad():
        expected = answer_or_error(model, other)
        if isinstance(expected, Exception):
            return True
        found = _run_or_error(captured.gm, other)
        return not isinstance(found, Exception) and forward_difference(expected, found) <= tolerance_of(expected)
