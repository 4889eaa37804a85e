"""Saving an explained module as data: one safetensors file with the weights, and the rest as JSON in its header.

Loading runs nothing that the file says: every value in it is checked before there is a graph (`graph_json.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule

from lxt_fx.base.errors import InputError, LxtFxError
from lxt_fx.base.saved_json import Saved, read_json
from lxt_fx.base.torch_internals import OpOverload, copied_graph, io_of
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.graph_json import (
    Known,
    classes_in,
    decode_graph,
    decode_printed,
    encode_graph,
    encode_printed,
    known_names,
)
from lxt_fx.compiler.record import Record, Stage
from lxt_fx.compiler.saved_packed import encoded_packed, given_packed, packed_in, packed_paths, put_packed
from lxt_fx.compiler.saved_record import MOST_DIMS, decoded_record, decoded_stages, encoded_record, encoded_stages
from lxt_fx.compiler.saved_tensors import Tensors, read_names, root_of, write_tensors
from lxt_fx.compiler.snapshots import fused_stage
from lxt_fx.ops.moves import to_device
from lxt_fx.passes.canonical.cut_at_lookups import Front
from lxt_fx.passes.capture.opened_model import opened
from lxt_fx.passes.segments.by_segments import Segments

FORMAT = 4
MOST_FRONTS = 100
_PRINTED = ("capture", "canonical", "rules")
"""Stages whose graphs are written to be printed. `groups` has the graph of `canonical`; `lowered` is the module's own, and
`fused` follows from it."""
_RESERVED = frozenset(dir(Explained)) | {"config", "fused", "record", "segments"}


def save(explained: Explained, path: str | Path) -> None:
    """Writes the module to one `.safetensors` file: weights, graphs, rules, and the token embedding if it has one. Each
    tensor is written once, also if several names share it.

    Of layers with packed weights it holds the places only (`load`).

    Raises InputError for anything but an explained module, and for what a file cannot hold: a call that cannot be looked up
    by name, tensors without values, an output that is no plain container or registered class. Raises ModelChangedError if
    the model changed since, because its graph would not fit its weights.
    """
    from safetensors.torch import save_file

    if not isinstance(explained, Explained):
        raise InputError(f"save: expected a module made by lxt_fx.transform, got {type(explained).__name__}")
    explained._check_model()
    if explained.graph.find_nodes(op="call_function", target=to_device):
        raise InputError(
            "save: the parts of this module are on several devices, which are written into its graph; save the module that "
            "it was placed from, or lxt_fx.place(explained, device) for one device"
        )
    tensors = Tensors()
    text = json.dumps(_header(explained, tensors))
    ops = {node.target for node in explained.graph.nodes if isinstance(node.target, OpOverload)}
    _described(read_json(text, f"save: {path}"), tensors.written, ops, classes_in(explained.graph))
    save_file(tensors.written, str(path), metadata={"lxt_fx": text})


def load(
    path: str | Path,
    ops: Sequence[OpOverload] = (),
    outputs: Sequence[type] = (),
    *,
    packed: nn.Module | None = None,
) -> Explained:
    """The module that `save` wrote, on the CPU. It has the stages that it was saved with, and no model: it cannot be
    captured again or put under another table. `ops` are your own ops that the file may call, because rules of yours use
    them, and `outputs` your own classes that its output may have, registered with pytree. `packed` is the quantised model
    that a module with packed layers was made from: the file does not hold their weights and kernels, and the module shares
    the layers of this model.

    The file is data, whoever wrote it: nothing that it says is run, and it may call no op but those that only compute. What
    it computes, and how much, is its writer's choice, as with any model.

    Raises InputError if `save` did not write the file, for anything in it that `save` does not write, and for packed layers
    without a model that has the same ones.
    """
    source = f"load: {path}"
    text, tensors = _read(path, source)
    header = read_json(text, source)
    if header.item("format").value != FORMAT:
        raise InputError(
            f"load: {path} has format {_said(header.item('format').value)}, this version reads {FORMAT}; transform and "
            "save again"
        )
    return module_of(header, tensors, ops, outputs, None if packed is None else opened(packed, "load"))


def _said(value: object) -> str:
    return str(value)[:20] if isinstance(value, int) and abs(value) < 10**6 else "of another kind"


def _read(path: str | Path, source: str) -> tuple[str, dict[str, Tensor]]:
    """The header's text and the tensors."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
            if "lxt_fx" not in metadata:
                raise InputError(f"{source} was not written by lxt_fx.save")
            return metadata["lxt_fx"], {key: file.get_tensor(key) for key in list(file.keys())}
    except FileNotFoundError:
        raise InputError(f"{source}: there is no such file") from None
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise InputError(f"{source} is no file of lxt_fx.save, or not all of one ({error})") from error


def _header(explained: Explained, tensors: Tensors) -> dict[str, Any]:
    record = explained.record
    modules = [explained, *(front.module for front in explained._fronts)]
    keys = {name: key for module in modules for name, key in write_tensors(module, tensors).items()}
    parameters = {name for module in modules for name, _ in module.named_parameters(remove_duplicate=False)}
    graphs = {name: record.stages[name].graph for name in _PRINTED if name in record.stages}
    stages = {name: stage for name, stage in record.stages.items() if name != "fused"}
    return {
        "format": FORMAT,
        "tensors": keys,
        "parameters": sorted(parameters),
        "packed": encoded_packed(packed_in(modules)),
        "graph": encode_graph(explained.graph),
        "printed": {name: encode_printed(graph) for name, graph in graphs.items()},
        "record": encoded_record(record),
        "rules": encoded_stages(stages),
        "fronts": [_front(front) for front in explained._fronts],
        "embedding": _embedding(explained, tensors),
        "segments": explained.segments and asdict(explained.segments),
        "config": _config(explained.config),
        "generation": _generation(explained.generation_config),
    }


@dataclass(frozen=True, slots=True)
class _Described:
    """All that a header says, checked."""

    keys: dict[str, str]
    parameters: tuple[str, ...]
    graph: Graph
    record: Record
    stages: dict[str, Stage]
    fronts: list[_Front]
    embedding: nn.Module | None
    segments: Segments | None
    config: Any
    generation: Any


def _described(
    header: Saved, tensors: Mapping[str, Tensor], ops: Iterable[OpOverload], outputs: Iterable[type]
) -> _Described:
    """What a header says. Raises InputError for anything that `save` does not write. `save` itself reads its header once,
    so that no file is written that cannot be loaded."""
    keys = read_names(header.item("tensors"), tensors, _RESERVED)
    known = known_names(keys.keys() | packed_paths(header.maybe("packed"), keys), ops, outputs)
    parameters = header.item("parameters").texts()
    if unknown := sorted(set(parameters) - keys.keys()):
        header.item("parameters").fail(f"holds {unknown[0][:200]!r}, which is no tensor of the file")
    graph = decode_graph(header.item("graph"), known)
    stages = decoded_stages(header.item("rules"), _graphs(header, graph, known))
    names = header.item("graph").item("names").names()
    record = decoded_record(header.item("record"), names, stages)
    return _Described(
        keys, parameters, graph, record, stages, _front_graphs(header.item("fronts"), record, known),
        _loaded_embedding(header, tensors), _loaded_segments(header), _loaded_config(header), _loaded_generation(header),
    )  # fmt: skip


def module_of(
    header: Saved,
    tensors: Mapping[str, Tensor],
    ops: Iterable[OpOverload],
    outputs: Iterable[type],
    packed: nn.Module | None = None,
) -> Explained:
    """The module that a header describes. All of the header is checked before anything is made of it."""
    found = _described(header, tensors, ops, outputs)
    weights = given_packed(header.maybe("packed"), packed)
    root = root_of(found.keys, found.parameters, tensors)
    put_packed(root, weights)
    explained = _built(header, root, found.graph)
    fronts = tuple(_loaded_front(front, root) for front in found.fronts)
    explained._attach(found.record, fronts, found.embedding, found.config, found.generation)
    if found.segments is not None:
        _cut(header.item("segments"), explained, found.segments)
    found.stages["fused"] = fused_stage(explained.fused, found.stages["lowered"])
    return explained


def _built(header: Saved, root: nn.Module, graph: Graph) -> Explained:
    """The module of a checked graph. The passes that fuse it expect a graph as lxt_fx writes it."""
    try:
        return Explained(root, graph)
    except LxtFxError:
        raise
    except Exception as error:
        header.item("graph").fail(f"is no graph that lxt_fx writes ({type(error).__name__}: {error})")


def _graphs(header: Saved, graph: Graph, known: Known) -> dict[str, Graph]:
    """The graph of each stage, in the order in which `transform` makes them."""
    printed = header.item("printed")
    found = {name: decode_printed(saved, known) for name in _PRINTED if (saved := printed.maybe(name)) is not None}
    groups = {"groups": found["canonical"]} if "canonical" in found else {}
    every = found | groups | {"lowered": copied_graph(graph, graph)}
    return {name: every[name] for name in ("capture", "canonical", "groups", "rules", "lowered") if name in every}


def _front(front: Front) -> dict[str, Any]:
    graph = encode_graph(front.module.graph)
    return {"leaf": front.leaf, "tokens": front.tokens, "pads": front.pads, "graph": graph}


class _Front(NamedTuple):
    """What a header says of a front."""

    leaf: str
    tokens: int
    pads: bool
    graph: Graph


def _front_graphs(saved: Saved, record: Record, known: Known) -> list[_Front]:
    found = []
    for part in saved.parts(MOST_FRONTS):
        leaf = part.item("leaf").name()
        if leaf not in record.inputs or leaf in record.called_with:
            part.item("leaf").fail(f"is {leaf!r}, which is no input that the graph looks up by tokens")
        graph = decode_graph(part.item("graph"), known)
        found.append(_Front(leaf, part.item("tokens").whole(0, MOST_DIMS), part.item("pads").flag(), graph))
    if len({front.leaf for front in found}) < len(found):
        saved.fail("holds a leaf twice")
    return found


def _loaded_front(front: _Front, root: nn.Module) -> Front:
    module = GraphModule(root, front.graph, "Front")
    return Front(front.leaf, io_of(front.graph).names, module, front.tokens, front.pads)


def _embedding(explained: Explained, tensors: Tensors) -> dict[str, Any] | None:
    """The token embedding as the key of its weight and a scale; None if the model's embedding does more than look up and
    scale."""
    if not explained._embedding:
        return None
    module: Any = explained._embedding[0]
    if not isinstance(getattr(module, "weight", None), Tensor) or module.weight.is_meta:
        return None
    ids = torch.arange(min(8, module.num_embeddings), device=module.weight.device)
    with torch.no_grad():
        plain, actual = module.weight[ids], module(ids)
    scale = 1.0 if torch.equal(plain, actual) else float(getattr(module, "embed_scale", "nan"))
    if not torch.allclose(plain * scale, actual):
        return None
    key = tensors.key("embedding", module.weight)
    return {"weight": key, "scale": scale, "exact": torch.equal(plain, actual), "padding_idx": module.padding_idx}


class _ScaledEmbedding(nn.Embedding):
    """An embedding times a constant."""

    scale: Tensor

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.scale.to(self.weight.dtype)


def _loaded_embedding(header: Saved, tensors: Mapping[str, Tensor]) -> nn.Module | None:
    saved = header.maybe("embedding")
    if saved is None:
        return None
    weight = saved.item("weight").one_of(tensors)
    if weight.dim() != 2 or not weight.is_floating_point():
        saved.item("weight").fail("must be a matrix of floats")
    scale, exact = saved.item("scale").number(), saved.item("exact").flag()
    vocabulary, hidden = weight.shape
    padding = saved.maybe("padding_idx")
    index = None if padding is None else padding.whole(-vocabulary, vocabulary - 1)
    kind = nn.Embedding if exact else _ScaledEmbedding
    embedding = kind(vocabulary, hidden, padding_idx=index, _weight=weight, _freeze=True)
    embedding.register_buffer("scale", torch.tensor(scale), persistent=False)
    return embedding


def _loaded_segments(header: Saved) -> Segments | None:
    saved = header.maybe("segments")
    if saved is None:
        return None
    return Segments(saved.item("starts").names(), saved.item("end").name(), saved.item("places").texts())


def _cut(saved: Saved, explained: Explained, segments: Segments) -> None:
    """Cuts the module's fused graph at these nodes, which it must have, in this order."""
    names = [node.name for node in explained.fused.nodes]
    asked = [name for name in names if name in (*segments.starts, segments.end)]
    if asked != [*segments.starts, segments.end]:
        saved.fail("names nodes that the graph does not have, or not in this order")
    explained._cut(segments)


def _config(config: Any) -> dict[str, Any] | None:
    """What is read of a model's config after `transform`: the names of its classes, the side of its patches, whether it has
    an encoder and a decoder."""
    if config is None:
        return None
    labels = getattr(config, "id2label", None) or {}
    found = {name: getattr(config, name, None) for name in ("patch_size", "is_encoder_decoder")}
    plain = {name: value for name, value in found.items() if isinstance(value, (bool, int))}
    return plain | {"labels": [[index, str(name)] for index, name in labels.items() if isinstance(index, int)]}


def _loaded_config(header: Saved) -> Any:
    saved = header.maybe("config")
    if saved is None:
        return None
    pairs = [part.parts(2) for part in saved.item("labels").parts()]
    if any(len(pair) != 2 for pair in pairs):
        saved.item("labels").fail("must hold pairs of a number and a name")
    found: dict[str, Any] = {"id2label": {index.whole(0): name.text(1000) for index, name in pairs}}
    if (side := saved.maybe("patch_size")) is not None:
        found["patch_size"] = side.whole(1, 2**16)
    if (both := saved.maybe("is_encoder_decoder")) is not None:
        found["is_encoder_decoder"] = both.flag()
    return SimpleNamespace(**found)


_TEXT_ENDS = ("eos_token_id", "pad_token_id")


def _generation(generation: Any) -> dict[str, list[int]] | None:
    """What is read of a model's generation config after `transform`: the tokens that end a text, and those that fill up a
    batch behind them."""
    if generation is None:
        return None
    named = {name: getattr(generation, name, None) for name in _TEXT_ENDS}
    ids = {name: value if isinstance(value, list) else [value] for name, value in named.items()}
    return {name: [token for token in found if isinstance(token, int) and token >= 0] for name, found in ids.items()}


def _loaded_generation(header: Saved) -> Any:
    saved = header.maybe("generation")
    if saved is None:
        return None
    return SimpleNamespace(**{name: [token.whole(0) for token in saved.item(name).parts()] for name in _TEXT_ENDS})
