"""Saving an explained module as data: one safetensors file that holds the weights, and the graph as JSON in its header.

Loading runs no code from the file: ops are looked up by name among torch's, shape guards are parsed, not trusted.
"""

from __future__ import annotations

import importlib
import json
import math
import operator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import Graph, Node
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from lxt_fx.errors import InputError
from lxt_fx.explained import Explained, Record, Stage
from lxt_fx.nodes import TensorType, value
from lxt_fx.rule import Keep, Rule

FORMAT = 1
_NAMESPACES = ("aten", "lxt_fx", "transformers", "prims")
_FUNCTIONS = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module, names in (
        (operator, "getitem add sub mul truediv floordiv mod pow neg eq ne lt le gt ge and_ or_ not_"),
        (torch, "sym_max sym_min sym_int sym_float sym_not sym_ite sym_sum"),
    )
    for name in names.split()
    if hasattr(module, name)
}
_FUNCTION_NAMES = {function: name for name, function in _FUNCTIONS.items()}


def save(explained: Explained, path: str | Path) -> None:
    """Writes the module to one `.safetensors` file: weights, graph, rules, and the token embedding if it has one.

    Raises InputError for what is no explained module, or whose graph calls something that cannot be named in a file.
    """
    if not isinstance(explained, Explained):
        raise InputError(f"save: expected a module made by lxt_fx.transform, got {type(explained).__name__}")
    tensors, keys = _tensors(explained)
    header = {
        "format": FORMAT,
        "nodes": [_node(node) for node in explained.graph.nodes],
        "tensors": keys,
        "parameters": sorted(name for name, _ in explained.named_parameters(remove_duplicate=False)),
        "specs": _specs(explained),
        "record": _record(explained.record),
        "rules": _rules(explained.record),
    }
    embedding = _embedding(explained, tensors)
    if embedding is not None:
        header["embedding"] = embedding
    save_file(tensors, str(path), metadata={"lxt_fx": json.dumps(header)})


def load(path: str | Path) -> Explained:
    """The module that `save` wrote, on the CPU. Its printed graph has the stage `lowered` only.

    Raises InputError where the file is no such file, or names an op that this torch does not have.
    """
    with safe_open(str(path), "pt") as file:
        metadata = file.metadata() or {}
        if "lxt_fx" not in metadata:
            raise InputError(f"load: {path} was not written by lxt_fx.save")
        header = json.loads(metadata["lxt_fx"])
        if header.get("format") != FORMAT:
            raise InputError(
                f"load: {path} has format {header.get('format')}, this version reads {FORMAT}; transform and save again"
            )
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    root = _root(header, tensors)
    graph = _graph(header)
    explained = Explained(root, graph)
    explained._attach(_loaded_record(header, graph), _loaded_embedding(header, tensors))
    return explained


def _tensors(explained: Explained) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each storage once, and for every name in the graph the key of its tensor."""
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
    """The token embedding as weight and scale; None where the model's embedding does more than that."""
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
    if saved["exact"]:
        return nn.Embedding.from_pretrained(weight, padding_idx=saved["padding_idx"])
    embedding = _ScaledEmbedding.from_pretrained(weight, padding_idx=saved["padding_idx"])
    embedding.register_buffer("scale", torch.tensor(saved["scale"]), persistent=False)
    return embedding


def _node(node: Node) -> dict[str, Any]:
    found = value(node)
    parts = found if isinstance(found, (list, tuple)) else [found]
    return {
        "name": node.name,
        "op": node.op,
        "target": _target_name(node) if node.op == "call_function" else str(node.target),
        "args": _encoded(node.args),
        "kwargs": {name: _encoded(argument) for name, argument in node.kwargs.items()},
        "stack": {k: [path, str(c if isinstance(c, str) else c.__qualname__)] for k, (path, c) in
                  (node.meta.get("nn_module_stack") or {}).items()},
        "trace": node.meta.get("stack_trace") or "",
        "type": [_type(part) for part in parts],
        "many": isinstance(found, (list, tuple)),
    }  # fmt: skip


def _type(found: Any) -> Any:
    if isinstance(found, (Tensor, TensorType)):
        dtype = str(found.dtype).removeprefix("torch.")
        return [dtype, [size if isinstance(size, int) else str(size) for size in found.shape]]
    return None if found is None else str(found)


def _loaded_type(saved: Any) -> Any:
    return TensorType(getattr(torch, saved[0]), tuple(saved[1])) if isinstance(saved, list) else saved


def _target_name(node: Node) -> str:
    target: Any = node.target
    if isinstance(target, OpOverload):
        return str(target)
    if target in _FUNCTION_NAMES:
        return _FUNCTION_NAMES[target]
    raise InputError(f"save: %{node.name} calls {target}, which cannot be named in a file")


def _target(name: str) -> Any:
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    namespace, _, rest = name.partition(".")
    if namespace not in _NAMESPACES:
        raise InputError(f"load: the file calls {name}, which is no op of torch")
    if namespace == "transformers":
        importlib.import_module("transformers.integrations.moe")
    op, _, overload = rest.partition(".")
    found = getattr(getattr(torch.ops, namespace), op, None)
    if found is None or not hasattr(found, overload or "default"):
        raise InputError(f"load: this torch ({torch.__version__}) has no op {name}")
    return getattr(found, overload or "default")


def _encoded(argument: Any) -> Any:
    """JSON of an argument: plain values as they are, everything else tagged."""
    if isinstance(argument, Node):
        return {"node": argument.name}
    if isinstance(argument, (list, tuple)):
        return {"tuple" if isinstance(argument, tuple) else "list": [_encoded(item) for item in argument]}
    if isinstance(argument, slice):
        return {"slice": [_encoded(part) for part in (argument.start, argument.stop, argument.step)]}
    if isinstance(argument, (torch.dtype, torch.memory_format, torch.layout)):
        return {"torch": str(argument).removeprefix("torch.")}
    if isinstance(argument, torch.device):
        return {"device": str(argument)}
    if isinstance(argument, float) and not math.isfinite(argument):
        return {"float": str(argument)}
    if argument is None or isinstance(argument, (bool, int, float, str)):
        return argument
    raise InputError(f"save: an argument {argument!r} of type {type(argument).__name__} cannot be written")


def _decoded(saved: Any, nodes: dict[str, Node]) -> Any:
    if not isinstance(saved, dict):
        return saved
    ((tag, content),) = saved.items()
    if tag == "node":
        return nodes[content]
    if tag in ("list", "tuple", "slice"):
        items = [_decoded(item, nodes) for item in content]
        return {"list": list, "tuple": tuple}[tag](items) if tag != "slice" else slice(*items)
    if tag == "torch":
        found = getattr(torch, content)
        if not isinstance(found, (torch.dtype, torch.memory_format, torch.layout)):
            raise InputError(f"load: torch.{content} is no dtype, layout or memory format")
        return found
    return torch.device(content) if tag == "device" else float(content)


def _graph(header: dict[str, Any]) -> Graph:
    graph = Graph()
    nodes: dict[str, Node] = {}
    for saved in header["nodes"]:
        target = _target(saved["target"]) if saved["op"] == "call_function" else saved["target"]
        if saved["op"] not in ("placeholder", "get_attr", "call_function", "output"):
            raise InputError(f"load: the file holds a node of kind {saved['op']}, which lxt_fx never writes")
        kwargs = {name: _decoded(argument, nodes) for name, argument in saved["kwargs"].items()}
        node = graph.create_node(saved["op"], target, _decoded(saved["args"], nodes), kwargs, name=saved["name"])
        types = [_loaded_type(part) for part in saved["type"]]
        node.meta = {
            "val": tuple(types) if saved["many"] else types[0],
            "nn_module_stack": {k: tuple(v) for k, v in saved["stack"].items()},
            "stack_trace": saved["trace"],
        }
        nodes[saved["name"]] = node
    specs = header["specs"]
    for module in specs["modules"]:
        importlib.import_module(module)
    in_spec, out_spec = pytree.treespec_loads(specs["in"]), pytree.treespec_loads(specs["out"])
    graph._codegen = _PyTreeCodeGen(_PyTreeInfo(specs["names"], in_spec, out_spec))
    return graph


def _specs(explained: Explained) -> dict[str, Any]:
    codegen: Any = explained.graph._codegen
    info = codegen.pytree_info
    modules = sorted({m for m in _output_modules(info.out_spec) if m.startswith("transformers.")})
    return {
        "names": list(info.orig_args),
        "in": pytree.treespec_dumps(info.in_spec),
        "out": pytree.treespec_dumps(info.out_spec),
        "modules": modules,
    }


def _output_modules(spec: Any) -> set[str]:
    """Modules that define the output classes, so that a fresh process can load them."""
    own = {spec.type.__module__} if isinstance(spec.type, type) else set()
    return own.union(*(_output_modules(child) for child in spec.children()))


def _root(header: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    root = nn.Module()
    parameters = set(header["parameters"])
    shared: dict[str, Any] = {}
    for path, key in header["tensors"].items():
        *modules, last = path.split(".")
        owner = root
        for name in modules:
            if name not in owner._modules:
                owner.add_module(name, nn.Module())
            owner = owner._modules[name]  # type: ignore[assignment]
        if path in parameters:
            shared.setdefault(key, nn.Parameter(tensors[key], requires_grad=tensors[key].is_floating_point()))
            owner.register_parameter(last, shared[key])
        else:
            owner.register_buffer(last, tensors[key])
    return root


_RECORD_FIELDS = ("model_class", "table_name", "inputs", "leaves", "optional", "method", "specialised", "guards",
                  "forward_difference")  # fmt: skip


def _record(record: Record) -> dict[str, Any]:
    saved = {name: getattr(record, name) for name in _RECORD_FIELDS}
    constants = {k: v for k, v in record.constants.items() if v is None or isinstance(v, (bool, int, float, str))}
    return saved | {"constants": constants, "sizes": dict(record.sizes), "unknown": dict(record.unknown)}


def _rules(record: Record) -> dict[str, Any]:
    stage = record.stages["lowered"]
    rows = {
        rule.name + rule.source: [rule.name, rule.formula, rule.source, rule.keeps.name] for rule in stage.rules.values()
    }
    by_node = {node: rule.name + rule.source for node, rule in stage.rules.items()}
    return {"rows": rows, "nodes": by_node, "carrying": sorted(stage.carrying), "inserted": sorted(stage.inserted)}


def _loaded_record(header: dict[str, Any], graph: Graph) -> Record:
    saved, rules = header["record"], header["rules"]
    rows = {
        key: Rule(name=name, ops={}, formula=formula, source=source, keeps=Keep[keeps])
        for key, (name, formula, source, keeps) in rules["rows"].items()
    }
    by_node = {node: rows[key] for node, key in rules["nodes"].items()}
    stage = Stage("lowered", graph, frozenset(rules["carrying"]), by_node, inserted=frozenset(rules["inserted"]))
    fields = {name: tuple(v) if isinstance(v := saved[name], list) else v for name in _RECORD_FIELDS}
    sizes = {name: tuple(size) for name, size in saved["sizes"].items()}
    return Record(
        **fields, constants=saved["constants"], sizes=sizes, seconds={}, stages={"lowered": stage}, unknown=saved["unknown"]
    )


__all__ = ["load", "save"]
