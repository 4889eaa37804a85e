"""A torch.fx graph as JSON, and back. Ops are written by name and looked up in torch; no code in the text is run."""

from __future__ import annotations

import importlib
import math
import operator
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from lxt_fx.base.errors import InputError
from lxt_fx.base.nodes import TensorType, value
from lxt_fx.base.torch_internals import GraphIO, OpOverload, children_of, io_of, pytree, set_io
from lxt_fx.base.user_objects import user_classes

_NAMESPACES = ("aten", "lxt_fx", "prims")
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


def encode_graph(graph: Graph) -> dict[str, Any]:
    """The nodes of a graph and the structure of its inputs and outputs, as plain values for `json.dumps`.

    Raises InputError if the graph calls a function that cannot be looked up by name.
    """
    return {"nodes": [_node(node) for node in graph.nodes], "specs": _specs(graph)}


def decode_graph(saved: dict[str, Any], ops: Iterable[OpOverload] = ()) -> Graph:
    """The graph that `encode_graph` wrote. Of its values only dtype and shape are known (`TensorType`). `ops` are further
    ops that it may call, besides those of torch and lxt_fx.

    Raises InputError for a kind of node or an op that lxt_fx never writes, or that this torch does not have.
    """
    known = {str(op): op for op in ops}
    graph = Graph()
    nodes: dict[str, Node] = {}
    for item in saved["nodes"]:
        if item["op"] not in ("placeholder", "get_attr", "call_function", "output"):
            raise InputError(f"load: the file has a node of kind {item['op']}, which lxt_fx never writes")
        target = _target(item["target"], known) if item["op"] == "call_function" else item["target"]
        kwargs = {name: _decoded(argument, nodes) for name, argument in item["kwargs"].items()}
        node = graph.create_node(item["op"], target, _decoded(item["args"], nodes), kwargs, name=item["name"])
        types = [_loaded_type(part) for part in item["type"]]
        node.meta = {
            "val": tuple(types) if item["many"] else types[0],
            "nn_module_stack": {k: tuple(v) for k, v in item["stack"].items()},
            "stack_trace": item["trace"],
        }
        nodes[item["name"]] = node
    specs = saved["specs"]
    for module in specs["modules"]:  # output classes register themselves when their module is imported
        if not module.startswith("transformers."):
            raise InputError(f"load: the file asks for module {module}; only output classes of transformers are imported")
        importlib.import_module(module)
    in_spec, out_spec = pytree.treespec_loads(specs["in"]), pytree.treespec_loads(specs["out"])
    set_io(graph, GraphIO(tuple(specs["names"]), in_spec, out_spec))
    return graph


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


def _target(name: str, known: Mapping[str, OpOverload]) -> Any:
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    if name in known:
        return known[name]
    namespace, _, rest = name.partition(".")
    if namespace not in _NAMESPACES:
        raise InputError(
            f"load: the file calls {name}, which is no op of torch; if it is yours, load(path, ops=(torch.ops.{name},))"
        )
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


def _specs(graph: Graph) -> dict[str, Any]:
    io = io_of(graph)
    if own := [*user_classes(io.in_spec), *user_classes(io.out_spec)]:
        raise InputError(
            f"save: the module takes or returns an object of class {own[0]}, which a file cannot hold; wrap the model in a "
            "module that takes and returns tensors, lists and dicts, and transform that"
        )
    modules = sorted({m for m in _output_modules(io.out_spec) if m.startswith("transformers.")})
    return {
        "names": list(io.names),
        "in": pytree.treespec_dumps(io.in_spec),
        "out": pytree.treespec_dumps(io.out_spec),
        "modules": modules,
    }


def _output_modules(spec: Any) -> set[str]:
    """The Python modules that define the output classes; loading in a new process imports them."""
    own = {spec.type.__module__} if isinstance(spec.type, type) else set()
    return own.union(*(_output_modules(child) for child in children_of(spec)))
