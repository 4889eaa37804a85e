"""A captured graph in a file: the canonical graph, before any rule, with what is known of its inputs, and no weights.

A file is read as `load` reads one, and then compared with the model, forward and gradient, as a new capture is. What is not
as it should be leads to a capture, and the file goes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule

from lxt_fx.base import cache_files
from lxt_fx.base.errors import InputError, LxtFxError
from lxt_fx.base.named_tensors import named_tensors
from lxt_fx.base.nodes import TensorType, value
from lxt_fx.base.saved_json import Saved, read_json
from lxt_fx.base.torch_internals import io_of, set_fake_values, size_on_example
from lxt_fx.compiler.call_inputs import false_guard, of_other_size
from lxt_fx.compiler.capture_key import versions
from lxt_fx.compiler.captured_model import Begun, gradient_proof
from lxt_fx.compiler.graph_json import decode_graph, decode_printed, encode_graph, encode_printed, known_names
from lxt_fx.compiler.record import Stage
from lxt_fx.compiler.saved_record import MOST_DIMS
from lxt_fx.compiler.saved_tensors import made_owner, read_names
from lxt_fx.compiler.short_check import Checked, short_check
from lxt_fx.compiler.size_guards import compiled_guard
from lxt_fx.ops.expectations import EXPECTATIONS
from lxt_fx.passes.canonical.cut_at_lookups import Front
from lxt_fx.passes.capture.called_by_leaf import leaf_values
from lxt_fx.passes.capture.capture import Captured, torch_state_restored
from lxt_fx.passes.capture.example import SEED, Example
from lxt_fx.passes.capture.export_once import Copied
from lxt_fx.passes.verify import check_forward, forward_difference
from lxt_fx.passes.verify_gradient.verify_gradient import GradientProof

FORMAT = 1
MOST_FRONTS, MOST_SIZE = 100, 2**31
_SYMBOL = re.compile(r"[a-z]{1,8}[0-9]{1,8}")
_MODEL, _CONSTANT = "m:", "c:"

Sizes = Mapping[str, tuple[int | None, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class CachedCapture:
    """A capture that was read and compared with the model. `expected` is the model's output on the example, which may be a
    part of the `whole`; `sizes` are those of the inputs of a call, `begun` what the graph has in the place of its
    tokens."""

    captured: Captured
    expected: Any
    whole: Checked | None
    sizes: Sizes
    begun: Begun
    proof: GradientProof
    by_embeddings: bool


def write_capture(
    key: str, model: nn.Module, captured: Captured, sizes: Sizes, begun: Begun, gm: GraphModule, by_embeddings: bool
) -> None:
    """Writes a capture under a key, if a file can hold it: `captured` as it was, and `gm`, its canonical graph. Graphs that
    were traced on values of the example are not written."""
    if any(node.target in EXPECTATIONS for node in gm.graph.nodes) or not captured.method.startswith("torch.export"):
        return
    try:
        tensors, names = _tensors([gm, *(front.module for front in begun.fronts)], model)
        header = {
            "format": FORMAT,
            "tensors": names,
            "graph": encode_graph(gm.graph),
            "capture": encode_printed(begun.capture.graph),
            "carrying": sorted(begun.capture.carrying),
            "fronts": [_front(front) for front in begun.fronts],
            "no_tokens": begun.no_tokens,
            "symbols": _symbols([gm.graph, *(front.module.graph for front in begun.fronts)]),
            "sizes": dict(sizes),
            "guards": captured.guards,
            "method": captured.method,
            "specialised": captured.specialised,
            "copied_layers": captured.copied.layers,
            "traced_layers": captured.copied.not_copied,
            "inputs": list(captured.example.kwargs),
            "optional": captured.example.optional,
            "by_embeddings": by_embeddings,
        }
        text = json.dumps(header)
        _decoded(read_json(text, "cache"), model, tensors)  # so that no file is written that nothing can read
    except (InputError, TypeError, ValueError, RecursionError) as why:
        cache_files.LOG.info("the capture of %s is not written to a file: %s", type(model).__name__, why)
        return
    about = {"model": f"{type(model).__module__}.{type(model).__qualname__}", "nodes": str(len(gm.graph.nodes))}
    cache_files.write(key, text, tensors, {**about, **versions()})


def read_capture(key: str, model: nn.Module, example: Example) -> CachedCapture | None:
    """The capture under a key, compared with this model on this example; None if there is none for it. A file that cannot
    be read, or that does not compute what the model computes, is dropped."""
    found = cache_files.read(key)
    if found is None:
        return None
    try:
        read = _read(found[0], model, found[1])
        chosen = example.as_captured(read.inputs, read.optional)
        return None if chosen is None or not _takes(read, chosen) else _compared(read, model, chosen)
    except Exception as why:  # whatever a graph raises that is not one of this model
        cache_files.drop(key, f"{type(why).__name__}: {why}")
        return None


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    """All that a file says, checked."""

    gm: GraphModule
    begun: Begun
    sizes: dict[str, tuple[int | None, ...]]
    guards: tuple[str, ...]
    method: str
    specialised: tuple[str, ...]
    copied: Copied
    inputs: tuple[str, ...]
    optional: tuple[str, ...]
    by_embeddings: bool


def _read(header: Saved, model: nn.Module, constants: Mapping[str, Tensor]) -> _Read:
    """What a header says, with the dtype and shape of every node, which no file is believed: the graphs run once without
    values. Raises InputError for anything that `write_capture` does not write."""
    read = _decoded(header, model, constants)
    symbols = {name: size.whole(2, MOST_SIZE) for name, size in header.item("symbols").entries().items()}
    set_fake_values([read.gm, *(front.module for front in read.begun.fronts)], symbols)
    return read


def _decoded(header: Saved, model: nn.Module, constants: Mapping[str, Tensor]) -> _Read:
    """What a header says, without dtypes and shapes of nodes."""
    if header.item("format").value != FORMAT:
        header.item("format").fail("is another one")
    available = {_MODEL + name: tensor for name, tensor in named_tensors(model)}
    available |= {_CONSTANT + name: tensor for name, tensor in constants.items()}
    keys = read_names(header.item("tensors"), available, ())
    known = known_names(keys, (), ())
    graph = decode_graph(header.item("graph"), known)
    printed = decode_printed(header.item("capture"), known)
    fronts = [_front_of(part, known) for part in header.item("fronts").parts(MOST_FRONTS)]
    root = _root(keys, available)
    gm = GraphModule(root, graph)
    parts = tuple(
        Front(leaf, io_of(graph).names, GraphModule(root, graph, "Front"), tokens, pads)
        for leaf, tokens, pads, graph in fronts
    )
    stage = Stage("capture", printed, frozenset(header.item("carrying").texts()))
    guards = header.item("guards").texts()
    for guard in guards:
        compiled_guard(guard)
    sizes = {name: tuple(map(_size, part.parts(MOST_DIMS))) for name, part in header.item("sizes").named().items()}
    copied = Copied(header.item("copied_layers").whole(), header.item("traced_layers").texts())
    return _Read(
        gm, Begun(parts, header.item("no_tokens").names(), stage), sizes, guards, header.item("method").text(1000),
        header.item("specialised").texts(), copied, header.item("inputs").names(), header.item("optional").names(),
        header.item("by_embeddings").flag(),
    )  # fmt: skip


def _size(part: Saved) -> int | None:
    return None if part.value is None else part.whole(0, MOST_SIZE)


def _front_of(part: Saved, known: Any) -> tuple[str, int, bool, Graph]:
    graph = decode_graph(part.item("graph"), known)
    return part.item("leaf").name(), part.item("tokens").whole(0, MOST_DIMS), part.item("pads").flag(), graph


def _front(front: Front) -> dict[str, Any]:
    graph = encode_graph(front.module.graph)
    return {"leaf": front.leaf, "tokens": front.tokens, "pads": front.pads, "graph": graph}


def _takes(read: _Read, example: Example) -> bool:
    """Whether the graph is valid for the sizes of this example."""
    leaves, guards = leaf_values(example.kwargs), [(guard, compiled_guard(guard)) for guard in read.guards]
    return of_other_size(read.sizes, leaves) is None and false_guard(guards, leaves) is None


def _compared(read: _Read, model: nn.Module, example: Example) -> CachedCapture:
    """The capture, if its graph computes what the model does and passes the model's gradient. Raises ForwardMismatchError
    or LxtFxError if not."""
    captured = Captured(read.gm, example, read.method, read.specialised, read.guards, read.copied)
    with torch_state_restored(), torch.no_grad():
        whole, short = Checked(example, example.call(model)), short_check(model, example, captured, read.sizes)
        example, expected = (short or whole).example, (short or whole).expected
        cut = read.begun.cut(example, read.gm)
        torch.manual_seed(SEED)
        found = read.gm(**cut.copied().kwargs)
        check_forward(forward_difference(expected, found), expected, type(model).__name__, gm=read.gm)
    proof = gradient_proof(read.gm, read.begun.fronts, cut, model, example, expected)
    if not proof.holds:
        raise LxtFxError(proof.said)
    captured = replace(captured, example=example)
    whole_text = None if short is None else whole
    return CachedCapture(captured, expected, whole_text, read.sizes, read.begun, proof, read.by_embeddings)


def _tensors(modules: Iterable[GraphModule], model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors that graphs read and the model does not have as parameter or buffer; and where each of them stands.
    Raises InputError for one that is no plain tensor."""
    names = {id(tensor): name for name, tensor in named_tensors(model)}
    constants: dict[str, Tensor] = {}
    places: dict[str, str] = {}
    for gm in modules:
        for path, tensor in named_tensors(gm):
            if (name := names.get(id(tensor))) is not None:
                places[path] = _MODEL + name
                continue
            plain = type(tensor) is Tensor and tensor.layout == torch.strided and tensor.device.type == "cpu"
            if not plain:
                raise InputError(f"{path} is no parameter and no buffer of the model, and no plain tensor")
            constants[path] = tensor.detach().clone()
            places[path] = _CONSTANT + path
    return constants, places


def _root(keys: Mapping[str, str], available: Mapping[str, Tensor]) -> nn.Module:
    """A module with these tensors at these paths: those of the model are the model's own."""
    root = nn.Module()
    for path, key in keys.items():
        owner, last = made_owner(root, path)
        tensor = available[key]
        if isinstance(tensor, nn.Parameter):
            owner.register_parameter(last, tensor)
        else:
            owner.register_buffer(last, tensor)
    return root


def _symbols(graphs: Iterable[Graph]) -> dict[str, int]:
    """The symbols of the sizes of inputs, each with a size. Raises InputError for a size that is computed from others."""
    found: dict[str, int] = {}
    for graph in graphs:
        for node in graph.find_nodes(op="placeholder"):
            for size in value(node).shape if isinstance(value(node), (Tensor, TensorType)) else ():
                if isinstance(size, torch.SymInt):
                    if not _SYMBOL.fullmatch(str(size)):
                        if not str(size).isdigit():
                            raise InputError(f"the input {node.target} has the size {size}")
                        continue
                    found[str(size)] = max(size_on_example(size), 2)
    return found
