"""Which optional inputs a model takes and which sizes its graph holds for, found by asking the model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from lxt_fx.base.errors import CaptureError, InputError
from lxt_fx.base.on_meta import on_meta
from lxt_fx.base.torch_internals import pytree
from lxt_fx.passes.capture.capture import Captured, capture, torch_state_kept
from lxt_fx.passes.capture.example import Example
from lxt_fx.passes.verify import forward_difference, tolerance_of

SAME = 1e-4
"""Two outputs are the same up to the rounding of another kernel."""


def settled(model: nn.Module, example: Example) -> tuple[Example, Any]:
    """The example without optional inputs that the model would not fill in the same way, and the model's own output.

    (RoBERTa counts positions from its padding index, for example: there the positions stay the model's business.) A model
    on the meta device gives no values, so it is not asked: the example stays as it is, and there is no output.
    """
    if on_meta(model, example.kwargs):
        return example, None
    for _ in range(len(example.optional) + 1):
        expected = _try_call(model, example, example.optional)
        full = _try_call(model, example)
        if not isinstance(full, Exception) and forward_difference(expected, full) <= SAME:
            return example, full
        if not example.optional:
            break
        worst = next((n for n in example.optional if not _same_without(model, example, n)), example.optional[-1])
        example = example.without((worst,))
    error = _try_call(model, example)
    assert isinstance(error, Exception)
    raise InputError(
        f"transform: {type(model).__name__} itself fails on the example inputs ({', '.join(example.kwargs)}): "
        f"{type(error).__name__}: {error}"
    ) from error


def _same_without(model: nn.Module, example: Example, name: str) -> bool:
    others = tuple(other for other in example.optional if other != name)
    full, bare = _try_call(model, example, others), _try_call(model, example, example.optional)
    if isinstance(full, Exception) or isinstance(bare, Exception):
        return False
    return forward_difference(bare, full) <= SAME


def _try_call(model: nn.Module, example: Example, without: tuple[str, ...] = ()) -> Any:
    try:
        return example.call(model, without)
    except Exception as error:  # whatever the model raises is reported by the caller
        return error


def proven_capture(model: nn.Module, example: Example, *, dynamic: bool) -> Captured:
    """The model's graph with free sizes, tried at other ones: every size that the graph calls free is changed. Where it
    differs from the model there (a model that reads `len(x)`, or loops over its tokens, may bake a size in without a word),
    with a free batch only, tried again, or with all sizes fixed to the example's.

    Raises CaptureError where no graph can be had.
    """
    if not dynamic:
        return capture(model, example, dynamic=False)
    captured = _capture_free(model, example)
    if captured.method != "torch.export" or on_meta(model, example.kwargs) or _is_proven(model, captured):
        return captured
    why = "the graph with free sizes differs from the model at other sizes than the example's"
    if example.dynamic_dims != 1:
        batch_only = _capture_free(model, replace(example, dynamic_dims=1))
        if batch_only.method == "torch.export" and _is_proven(model, batch_only):
            return replace(batch_only, specialised=(why, *batch_only.specialised))
    fixed = capture(model, example, dynamic=False)
    return replace(fixed, specialised=(why, *fixed.specialised))


def _is_proven(model: nn.Module, captured: Captured) -> bool:
    other = _resized(captured)
    return other is None or _holds_at(model, captured, other)


def _resized(captured: Captured) -> Example | None:
    """The example with every free size changed: a batch becomes 1, another size 2 less, as far as it can. None where no
    size is free."""
    leaves, spec = pytree.tree_flatten(captured.example.kwargs)
    placeholders = [node for node in captured.gm.graph.nodes if node.op == "placeholder"]
    free = [_free_dims(leaf, node) for leaf, node in zip(leaves, placeholders, strict=True)]
    wanted: dict[str, int] = {}
    for leaf, dims in zip(leaves, free, strict=True):
        for dim, name in dims:
            wanted.setdefault(name, 1 if dim == 0 else max(leaf.shape[dim] - 2, min(leaf.shape[dim], 2)))
    if not wanted:
        return None
    cut = []
    for leaf, dims in zip(leaves, free, strict=True):
        for dim, name in dims:
            leaf = leaf.narrow(dim, 0, wanted[name])
        cut.append(leaf.clone() if isinstance(leaf, Tensor) else leaf)
    return replace(captured.example, kwargs=pytree.tree_unflatten(cut, spec))


def _free_dims(leaf: Any, node: Node) -> list[tuple[int, str]]:
    """The dims of an input that are free, each with the symbol of its size."""
    found = node.meta.get("val")
    if not isinstance(leaf, Tensor) or not isinstance(found, Tensor):
        return []
    symbols: list[Any] = list(found.shape)
    named = [(dim, size.node.expr) for dim, size in enumerate(symbols) if isinstance(size, torch.SymInt)]
    return [(dim, str(expr)) for dim, expr in named if expr.is_symbol]


def _capture_free(model: nn.Module, example: Example) -> Captured:
    """Captured on batch 2 where the example has batch 1: a size of 1 would be baked in."""
    twice = example.doubled()
    if twice is not None:
        try:
            captured = capture(model, twice, dynamic=True)
            if captured.method == "torch.export":
                return captured
        except CaptureError:
            pass  # the example's own batch is tried next, and its error is the one to report
    return capture(model, example, dynamic=True)


def _holds_at(model: nn.Module, captured: Captured, other: Example) -> bool:
    """Whether graph and model agree on inputs of other sizes; so does a model that refuses them itself."""
    with torch_state_kept(), torch.no_grad():
        expected = _try_call(model, other)
        if isinstance(expected, Exception):
            return True
        found = _try_call(captured.gm, replace(other, constants={}))
        return not isinstance(found, Exception) and forward_difference(expected, found) <= tolerance_of(expected)
