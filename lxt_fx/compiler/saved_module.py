"""Saving an explained module as data: one safetensors file with the weights, and the graph as JSON in its header.

Loading runs no code from the file: ops are looked up by name in torch, and shape guards are parsed and checked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph

from lxt_fx.base.errors import InputError
from lxt_fx.base.torch_internals import OpOverload
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.graph_json import decode_graph, encode_graph
from lxt_fx.compiler.record import Record, Stage
from lxt_fx.passes.segments.recompute import Segments
from lxt_fx.rule_table.rule import Conserves, Match, Rule

FORMAT = 2


def save(explained: Explained, path: str | Path) -> None:
    """Writes the module to one `.safetensors` file: weights, graph, rules, and the token embedding if it has one.

    Raises InputError for anything but an explained module, and for a graph with a call that cannot be looked up by name.
    """
    from safetensors.torch import save_file

    if not isinstance(explained, Explained):
        raise InputError(f"save: expected a module made by lxt_fx.transform, got {type(explained).__name__}")
    tensors, keys = _tensors(explained)
    header = {
        "format": FORMAT,
        "graph": encode_graph(explained.graph),
        "tensors": keys,
        "parameters": sorted(name for name, _ in explained.named_parameters(remove_duplicate=False)),
        "record": _record(explained.record),
        "rules": _rules(explained.record),
    }
    embedding = _embedding(explained, tensors)
    if embedding is not None:
        header["embedding"] = embedding
    if explained.segments is not None:
        header["segments"] = asdict(explained.segments)
    save_file(tensors, str(path), metadata={"lxt_fx": json.dumps(header)})


def load(path: str | Path, ops: Sequence[OpOverload] = ()) -> Explained:
    """The module that `save` wrote, on the CPU. Only its stage `lowered` can be printed. `ops` are your own ops that the
    file may call, because rules of yours use them.

    Raises InputError if `save` did not write the file, or if it names an op that is neither in this torch nor in `ops`.
    """
    from safetensors import safe_open

    with safe_open(str(path), "pt") as file:
        metadata = file.metadata() or {}
        if "lxt_fx" not in metadata:
            raise InputError(f"load: {path} was not written by lxt_fx.save")
        header = json.loads(metadata["lxt_fx"])
        if header.get("format") != FORMAT:
            raise InputError(
                f"load: {path} has format {header.get('format')}, this version reads {FORMAT}; transform and save again"
            )
        tensors = {key: file.get_tensor(key) for key in list(file.keys())}
    root = _root(header, tensors)
    graph = decode_graph(header["graph"], ops)
    explained = Explained(root, graph)
    explained._attach(_loaded_record(header, decode_graph(header["graph"], ops)), _loaded_embedding(header, tensors))
    explained._cut(_loaded_segments(header))
    return explained


def _tensors(explained: Explained) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tensor once, by key, and the key of its tensor for every name in the graph."""
    tensors: dict[str, Tensor] = {}
    keys: dict[str, str] = {}
    by_identity: dict[int, str] = {}
    named = (
        *explained.named_parameters(remove_duplicate=False),
        *explained.named_buffers(remove_duplicate=False),
    )
    for name, tensor in named:
        key = by_identity.setdefault(id(tensor), name)
        tensors[key] = tensor.detach().contiguous().clone()
        keys[name] = key
    return tensors, keys


def _embedding(explained: Explained, tensors: dict[str, Tensor]) -> dict[str, Any] | None:
    """The token embedding as weight and scale; None if the model's embedding does more than look up and scale."""
    if not explained._embedding:
        return None
    module: Any = explained._embedding[0]
    ids = torch.arange(min(8, module.num_embeddings), device=module.weight.device)
    with torch.no_grad():
        plain, actual = module.weight[ids], module(ids)
    scale = 1.0 if torch.equal(plain, actual) else float(getattr(module, "embed_scale", math.nan))
    if not torch.allclose(plain * scale, actual):
        return None
    tensors["embedding"] = module.weight.detach().contiguous().clone()
    return {"scale": scale, "exact": torch.equal(plain, actual), "padding_idx": module.padding_idx}


def _loaded_segments(header: dict[str, Any]) -> Segments | None:
    saved = header.get("segments")
    return saved and Segments(tuple(saved["starts"]), saved["end"], tuple(saved["places"]))


class _ScaledEmbedding(nn.Embedding):
    """An embedding times a constant."""

    scale: Tensor

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.scale.to(self.weight.dtype)


def _loaded_embedding(header: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module | None:
    saved = header.get("embedding")
    if saved is None:
        return None
    weight = tensors["embedding"]
    kind = nn.Embedding if saved["exact"] else _ScaledEmbedding
    vocabulary, hidden = weight.shape
    embedding = kind(vocabulary, hidden, padding_idx=saved["padding_idx"], _weight=weight, _freeze=True)
    embedding.register_buffer("scale", torch.tensor(saved["scale"]), persistent=False)
    return embedding


def _root(header: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    root = nn.Module()
    parameters = set(header["parameters"])
    shared: dict[str, Any] = {}
    for path, key in header["tensors"].items():
        *modules, last = path.split(".")
        owner = root
        for name in modules:
            if name not in dict(owner.named_children()):
                owner.add_module(name, nn.Module())
            owner = getattr(owner, name)
        if path in parameters:
            shared.setdefault(key, nn.Parameter(tensors[key], requires_grad=tensors[key].is_floating_point()))
            owner.register_parameter(last, shared[key])
        else:
            owner.register_buffer(last, tensors[key])
    return root


def _record(record: Record) -> dict[str, Any]:
    constants = {k: v for k, v in record.constants.items() if v is None or isinstance(v, (bool, int, float, str))}
    return {
        "model_class": record.model_class,
        "table_name": record.table_name,
        "form": record.form,
        "paper": record.paper,
        "overrides": record.overrides,
        "merged": record.merged,
        "inputs": record.inputs,
        "leaves": record.leaves,
        "optional": record.optional,
        "constants": constants,
        "order": record.order,
        "method": record.method,
        "specialised": record.specialised,
        "guards": record.guards,
        "sizes": dict(record.sizes),
        "forward_difference": record.forward_difference,
        "unknown": dict(record.unknown),
        "versions": dict(record.versions),
        "positions": record.positions,
        "matches": _matches(record),
    }


def _matches(record: Record) -> dict[str, Any]:
    """Each match once, and its index by node: the layers of a model have the same matches."""
    indices: dict[Match, int] = {}
    by_node = {node: indices.setdefault(match, len(indices)) for node, match in record.matches.items()}
    return {"matches": [[m.kind, m.carrying, m.held, m.why, m.refusals] for m in indices], "nodes": by_node}


def _loaded_matches(saved: dict[str, Any]) -> dict[str, Match]:
    matches = [
        Match(kind, tuple(carrying), tuple(held), why, tuple((rule, reason) for rule, reason in refusals))
        for kind, carrying, held, why, refusals in saved["matches"]
    ]
    return {node: matches[index] for node, index in saved["nodes"].items()}


def _rules(record: Record) -> dict[str, Any]:
    stage = record.stages["lowered"]
    indices: dict[Rule, int] = {}
    by_node = {node: indices.setdefault(rule, len(indices)) for node, rule in stage.rules.items()}
    written = [[rule.name, rule.formula, rule.source, rule.conserves.name] for rule in indices]
    return {"rows": written, "nodes": by_node, "carrying": sorted(stage.carrying), "inserted": sorted(stage.inserted)}


def _loaded_record(header: dict[str, Any], graph: Graph) -> Record:
    saved, section = header["record"], header["rules"]
    rules = [
        Rule(name=name, ops={}, formula=formula, source=source, conserves=Conserves[conserves])
        for name, formula, source, conserves in section["rows"]
    ]
    by_node = {node: rules[index] for node, index in section["nodes"].items()}
    stage = Stage("lowered", graph, frozenset(section["carrying"]), by_node, inserted=frozenset(section["inserted"]))
    return Record(
        model_class=saved["model_class"],
        table_name=saved["table_name"],
        form=saved["form"],
        paper=saved["paper"],
        overrides=tuple(saved["overrides"]),
        merged=tuple(saved.get("merged", ())),
        inputs=tuple(saved["inputs"]),
        leaves=tuple(saved["leaves"]),
        optional=tuple(saved["optional"]),
        constants=saved["constants"],
        order=tuple(saved.get("order", ())),
        method=saved["method"],
        specialised=tuple(saved["specialised"]),
        guards=tuple(saved["guards"]),
        sizes={name: tuple(size) for name, size in saved["sizes"].items()},
        forward_difference=saved["forward_difference"],
        seconds={},
        stages={"lowered": stage},
        unknown=saved["unknown"],
        matches=_loaded_matches(saved["matches"]),
        versions=saved["versions"],
        positions=None if saved.get("positions") is None else tuple(saved["positions"]),
    )
