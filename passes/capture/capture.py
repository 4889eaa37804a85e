"""Capture: a model becomes a torch.fx graph of ATen ops that shares the model's parameters."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.fx import GraphModule

from lxt_fx.base.as_it_was import as_it_was
from lxt_fx.base.autocast import autocast_off
from lxt_fx.base.errors import CaptureError, UnsupportedVersionError
from lxt_fx.base.grad_mode import gradients_on
from lxt_fx.base.nodes import fixed_size
from lxt_fx.base.one_capture import one_capture
from lxt_fx.base.torch_internals import (
    GraphIO,
    compiled_when_called,
    guards_of,
    io_of,
    pytree,
    set_io,
    stacks_read_quickly,
    uncompiled,
)
from lxt_fx.base.transformers_internals import traceable_experts, visible_autocast, without_cache
from lxt_fx.ops.expectations import EXPECTATIONS
from lxt_fx.passes.capture.any_length import RecurrencesOfAnyLength, as_torch_ops
from lxt_fx.passes.capture.called_by_leaf import called_by_leaf, leaf_names, tensor_leaves
from lxt_fx.passes.capture.example import SIGNALS, Example
from lxt_fx.passes.capture.export_once import Copied, exported_once
from lxt_fx.passes.capture.flex_attention import flex_attention_in_ops
from lxt_fx.passes.capture.layer_kinds import kinds_of
from lxt_fx.passes.capture.lost_no_grad import RefuseLostNoGrad
from lxt_fx.passes.capture.trace import trace
from lxt_fx.passes.drop_dead import drop_dead


@dataclass(frozen=True, slots=True)
class Captured:
    """A graph that is called like the model. `specialised` says in sentences what is fixed to the example. `guards` are the
    conditions on input shapes under which the graph computes what the model does: Python expressions over `L`, the inputs
    by name. `copied` says how many layers were not traced."""

    gm: GraphModule
    example: Example
    method: str
    specialised: tuple[str, ...]
    guards: tuple[str, ...]
    copied: Copied = Copied()


_LOGGERS = ("torch.export", "torch.fx.experimental.symbolic_shapes", "torch._subclasses.fake_tensor")
"""Loggers that report a failed way of capture at length, although another way is tried next."""


@contextmanager
def torch_state_restored() -> Iterator[None]:
    """Enables gradients and switches autocast off inside, and restores grad mode, autocast and random state at the end,
    also when capture fails halfway: an exception inside a traced no_grad region would leave gradients off for the process.
    A graph is that of the model without the caller's autocast, which acts on every call anew. Inside, the fast path of
    torch's own attention modules is off: it is made for inference, no gradient passes through it, and its output for padded
    tokens is 0, unlike that of the other paths."""
    with one_capture():
        yield from _restored()


def _restored() -> Iterator[None]:
    enabled, fast = torch.is_grad_enabled(), torch.backends.mha.get_fastpath_enabled()
    try:
        with torch.random.fork_rng(), gradients_on(), autocast_off():
            torch.backends.mha.set_fastpath_enabled(False)
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch.set_grad_enabled(enabled)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences `_LOGGERS`. For captures only: a new level empties the caches of all loggers, which takes half a
    millisecond."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def capture(
    model: nn.Module, example: Example, *, dynamic: bool = True, export: bool = True, copies: bool = True
) -> Captured:
    """The model as a graph: by `torch.export` with symbolic sizes, else with fixed sizes, else by real-tensor `make_fx`.
    With `export=False`, by `make_fx`; with `copies=False`, layers that are the same code are all traced.

    Raises CaptureError with the error of each way.
    """
    ways: list[tuple[str, Callable[[], Captured]]] = [("make_fx", lambda: _trace(model, example))]
    if export:
        ways.insert(0, ("torch.export", lambda: _export(model, example, dynamic=False, copies=copies)))
    if export and dynamic:
        ways.insert(0, ("torch.export, dynamic", lambda: _export(model, example, dynamic=True, copies=copies)))
    said = []
    for name, way in ways:
        try:
            with (
                torch_state_restored(), _quiet(), stacks_read_quickly(), as_it_was(model), _traceable(model),
                visible_autocast(),
            ):  # fmt: skip
                return way()
        except UnsupportedVersionError:
            raise  # the next way does not use what is missing, and would hide that
        except Exception as error:  # torch.export raises errors of a dozen unrelated types
            said.append(f"  {name}: {type(error).__name__}: {_first_line(error)}")
    raise CaptureError(
        f"transform: {type(model).__name__} could not be captured as a graph.\n" + "\n".join(said) + f"\n  to go on: "
        f"{_hint(model, said[-1])}"
    )


_QUANTISED = (torch.int8, torch.uint8)


def _hint(model: nn.Module, last: str) -> str:
    """What to do about the error of the last way, which runs the model's own code on real tensors."""
    packed = [name for name, weight in model.named_parameters() if weight.dtype in _QUANTISED]
    if packed or re.search("quant|packed|[48]bit|int[48]", last):
        which = f" (such as {packed[0]})" if packed else ""
        return f"load the model unquantised: quantised weights{which} that are unpacked by custom code cannot be traced"
    if "argument of type" in last or "not a known type" in last:
        return "let forward return tensors, or lists, dicts and dataclasses of them; wrap the model in a module that does"
    if "FX to symbolically trace" in last:
        return "give the model without torch.compile inside of it: a compiled function cannot be traced"
    return (
        "the last line is the error of the model's own code, run on real tensors of the example: give other example inputs "
        "if they are at fault, or wrap in a module of its own the part that can be captured"
    )


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else ""


def _export(model: nn.Module, example: Example, *, dynamic: bool, copies: bool) -> Captured:
    inputs = tensor_leaves(example.kwargs)
    shapes = {name: _dynamic_shape(name, value, example) for name, value in inputs.items()} if dynamic else None
    lazy, quiet = compiled_when_called(), redirect_stderr(StringIO())  # a failed export prints its whole graph and raises
    modes = RefuseLostNoGrad(), RecurrencesOfAnyLength()
    with called_by_leaf(model, example, modes) as called, lazy, quiet:
        exported, gm, copied = exported_once(
            model,
            lambda: torch.export.export(model, (), inputs, dynamic_shapes=shapes, strict=False),
            kinds_of(model) if copies else [],
        )
    as_torch_ops(gm)
    _name_as_given(gm, list(inputs))
    _add_plain_inputs(gm, example)
    named = _with_names(gm, example, io_of(gm.graph).out_spec)
    fixed = _fixed_sizes(named, example, dynamic) + called.sentences()
    return Captured(named, example, "torch.export", fixed, guards_of(exported), copied)


def _dynamic_shape(name: str, tensor: Tensor, example: Example) -> dict[int, Any]:
    return {index: Dim.AUTO for index in range(example.free_dims(name, tensor)) if tensor.shape[index] > 1}


def _name_as_given(gm: GraphModule, names: Sequence[str]) -> None:
    """Gives the inputs of an exported graph, which are in the order of the call, the names of the call: torch.export writes
    them in lower case. Each is a new node, so that no node is called as another input."""
    for node, name in zip(gm.graph.find_nodes(op="placeholder"), names, strict=True):
        if node.target == name:
            continue
        with gm.graph.inserting_before(node):
            renamed = gm.graph.placeholder(name)
        renamed.meta = node.meta
        node.replace_all_uses_with(renamed)
        gm.graph.erase_node(node)


def _add_plain_inputs(gm: GraphModule, example: Example) -> None:
    """An input without readers for each leaf of the inputs that is no tensor, so that all leaves are inputs, in order."""
    found = {str(node.target): node for node in gm.graph.nodes if node.op == "placeholder"}
    behind = next(node for node in gm.graph.nodes if node.op != "placeholder")
    for name in leaf_names(example.kwargs):
        with gm.graph.inserting_before(behind):
            node = found.get(name) or gm.graph.placeholder(name)
        behind.prepend(node)


def _with_names(gm: GraphModule, example: Example, out_spec: pytree.TreeSpec) -> GraphModule:
    """The graph with a forward that takes the example's tensor inputs by name or position."""
    in_spec = pytree.tree_structure(((), dict(example.kwargs)))
    set_io(gm.graph, GraphIO(tuple(example.kwargs), in_spec, out_spec))
    drop_dead(gm)
    named = GraphModule(gm, gm.graph)
    named.meta = {}
    return named


def _fixed_sizes(gm: GraphModule, example: Example, dynamic: bool) -> tuple[str, ...]:
    """Sentences for sizes that are fixed although a user expects to change them: the batch, and others that were to be
    free. The last dim of a float input has its features, which nobody expects to change."""
    sentences = []
    for node in gm.graph.nodes:
        if node.op != "placeholder" or not isinstance(node.meta.get("val"), Tensor):
            continue
        value, sizes = node.meta["val"], node.meta["val"].shape
        free = example.free_dims(str(node.target), value)
        has_features = value.is_floating_point() and example.dynamic_dims is None and free == len(sizes)
        expected = free - 1 if has_features else free
        for dim, found in enumerate(sizes[: max(expected, 1)]):
            late = dim > 0 and str(node.target) in SIGNALS  # the width of features, which no user changes
            if (size := found if isinstance(found, int) else None if late else fixed_size(found)) is not None:
                why = "the model's code depends on it" if dynamic else "captured without dynamic sizes"
                why = "a size of 1 is fixed by the example" if dynamic and size == 1 else why
                sentences.append(f"dim {dim} of {node.target} is fixed to {size} ({why})")
    return tuple(sentences)


@contextmanager
def traceable_scans(model: nn.Module) -> Iterator[None]:
    """Some releases of transformers 5 export the recurrence of a Mamba as torch's `associative_scan`, which hides what each
    step reads and returns. Inside this context the recurrence is the loop that it is in every other call."""
    scans: list[Any] = [module for module in model.modules() if getattr(module, "use_associative_scan", False)]
    try:
        for module in scans:
            module.use_associative_scan = False
        yield
    finally:
        for module in scans:
            module.use_associative_scan = True


@contextmanager
def _traceable(model: nn.Module) -> Iterator[None]:
    traceable = traceable_experts(model), traceable_scans(model), flex_attention_in_ops(model)
    with traceable[0], traceable[1], traceable[2], without_cache(model), uncompiled(model):
        yield


_MASKS_BY_VMAP = ("_vmap_for_bhqkv", "_vmap_expansion_sdpa")
"""Functions of transformers.masking_utils in releases 4.53 to 4.57, and in 5."""


@contextmanager
def traceable_masks() -> Iterator[None]:
    """transformers 4 (and 5, for a model's custom masks) makes an attention mask by `vmap` of a function of four indices:
    batch, head, query, key. A real trace cannot look into `vmap`. Inside this context the function is called once, on
    indices that broadcast, as transformers 5 does elsewhere. The forward is compared with the model's as always."""
    masking: Any = sys.modules.get("transformers.masking_utils")
    replaced = {name: getattr(masking, name) for name in _MASKS_BY_VMAP if hasattr(masking, name)}
    try:
        for name in replaced:
            setattr(masking, name, _mask_by_broadcast)
        yield
    finally:
        for name, by_vmap in replaced.items():
            setattr(masking, name, by_vmap)


def _mask_by_broadcast(mask_function: Callable[..., Tensor], bh_indices: bool = True) -> Callable[..., Tensor]:
    def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        query, key = query[:, None], key[None, :]
        if not bh_indices:  # batch and head are None, and the function does not use them
            return mask_function(batch, head, query, key).expand(len(query), key.shape[1])
        sizes = len(batch), len(head), len(query), key.shape[1]
        return mask_function(batch[:, None, None, None], head[:, None, None], query, key).expand(sizes)

    return mask


def _trace(model: nn.Module, example: Example) -> Captured:
    """Real-tensor tracing: the model's Python code runs once, on the example. Its decisions are fixed, and guarded."""
    with traceable_masks(), called_by_leaf(model, example) as called:
        gm, out_spec = trace(model, example)
    named = _with_names(gm, example, out_spec)
    sizes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensor_leaves(example.kwargs).items())
    fixed = [f"all sizes are those of the example: {sizes}"]
    if reads := [node for node in named.graph.nodes if node.target in EXPECTATIONS]:
        fixed.append(
            f"the model's Python code read {len(reads)} values or data-dependent sizes: inputs for which one of them "
            "differs from the example are refused"
        )
    return Captured(named, example, "make_fx", (*fixed, *called.sentences()), ())
