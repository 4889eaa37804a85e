"""A torch.fx graph as JSON, and back.

torch.fx writes Python code from a graph: the names of its nodes and inputs, the paths of its tensors, the names of
arguments. So every one of them is checked before there is a node. Ops are looked up by name in a list of pure ones. Nothing
in the JSON is run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.fx import Graph, Node

from lxt_fx.base.errors import InputError
from lxt_fx.base.node_text import op_name
from lxt_fx.base.nodes import TensorType, value
from lxt_fx.base.saved_json import Saved
from lxt_fx.base.torch_internals import GraphIO, OpOverload, io_of, set_io
from lxt_fx.base.user_objects import user_classes
from lxt_fx.compiler.argument_json import DTYPES, Sizes, check_call, decoded, encoded, encoded_or_text
from lxt_fx.compiler.saved_tensors import is_path
from lxt_fx.compiler.structure_json import container_classes, decoded_structure, encoded_structure
from lxt_fx.ops.own_backward import OWN_BACKWARD
from lxt_fx.ops.pure_ops import FUNCTIONS, NAMESPACES, is_pure

MOST_NODES = 200_000
MOST_DIMS = 64

_FUNCTION_NAMES = {function: name for name, (function, _, _) in FUNCTIONS.items()}
_IN_CODE = frozenset(
    (
        "self", "torch", "inf", "nan", "NoneType", "device", "fx_pytree", "pytree", "math", "operator", "slice", "getattr",
        "range", "float", "complex",
    )
)
"""Names that the code of a graph uses itself."""


@dataclass(frozen=True, slots=True)
class Known:
    """What a graph in a file may name: the paths of the module's tensors; further ops and output classes, given by the
    user of `load`, by name."""

    paths: Collection[str]
    ops: Mapping[str, OpOverload]
    classes: Mapping[str, type]


def known_names(paths: Iterable[str], ops: Iterable[OpOverload], classes: Iterable[type]) -> Known:
    """What a graph may name, from what the user of `load` gives. A class goes by its module and name, as pytree has it."""
    named = {f"{found.__module__}.{found.__name__}": found for found in classes}
    return Known(frozenset(paths), {str(op): op for op in ops}, named)


def classes_in(graph: Graph) -> set[type]:
    """The classes of all containers of a graph's inputs and outputs."""
    io = io_of(graph)
    return container_classes(io.in_spec) | container_classes(io.out_spec)


@dataclass(frozen=True, slots=True)
class Printed:
    """An op of a graph that is only printed. It has a name and cannot be called."""

    name: str

    def __str__(self) -> str:
        return self.name

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise InputError(f"{self.name} stands in a graph of a file that is there to be printed, and cannot be run")


def encode_graph(graph: Graph) -> dict[str, Any]:
    """A graph that can be called: its nodes, the names of its inputs, the structure of its inputs and outputs, as plain
    values for `json.dumps`.

    Raises InputError if the graph calls a function that cannot be looked up by name, or takes or returns objects of the
    user's classes.
    """
    io = io_of(graph)
    if own := [*user_classes(io.in_spec), *user_classes(io.out_spec)]:
        raise InputError(
            f"save: the module takes or returns an object of class {own[0]}, which a file cannot hold; wrap the model in a "
            "module that takes and returns tensors, lists and dicts, and transform that"
        )
    structures = {"in": encoded_structure(io.in_spec), "out": encoded_structure(io.out_spec)}
    return _nodes(graph, _node) | {"names": list(io.names)} | structures


def encode_printed(graph: Graph) -> dict[str, Any]:
    """A graph to be printed, which may hold any op: those that a file may not call are written by their printed name."""
    return _nodes(graph, _printed_node)


def decode_graph(saved: Saved, known: Known) -> Graph:
    """The graph that `encode_graph` wrote. Of its values only dtype and shape are known (`TensorType`).

    Raises InputError for anything that `encode_graph` does not write: an op that is not pure, a name that is none, an
    argument that the op does not take, a tensor that the file does not have.
    """
    reader = _Reader(known)
    graph = _read(saved, reader)
    set_io(graph, _loaded_io(saved, reader, known))
    return graph


def decode_printed(saved: Saved, known: Known) -> Graph:
    """The graph that `encode_printed` wrote. It can be printed, and not run. Raises InputError as `decode_graph` does."""
    return _read(saved, _PrintedReader(known))


def _nodes(graph: Graph, written: Callable[[Node], dict[str, Any]]) -> dict[str, Any]:
    """The nodes. What many share, their places in the model's code, is written once."""
    stacks: dict[str, tuple[int, Any]] = {}
    traces: dict[str, int] = {}
    nodes = []
    for node in graph.nodes:
        stack = _stack(node)
        number, _ = stacks.setdefault(str(stack), (len(stacks), stack))
        trace = traces.setdefault(node.meta.get("stack_trace") or "", len(traces))
        nodes.append(written(node) | {"stack": number, "trace": trace})
    return {"nodes": nodes, "stacks": [stack for _, stack in stacks.values()], "traces": list(traces)}


def _read(saved: Saved, reader: _Reader) -> Graph:
    stacks = [_loaded_stack(part) for part in saved.item("stacks").parts(MOST_NODES)]
    traces = saved.item("traces").texts()
    graph = Graph()
    for item in saved.item("nodes").parts(MOST_NODES):
        node = reader.read(item, graph)
        node.meta = {
            "val": _loaded_value(item),
            "nn_module_stack": dict(stacks[item.item("stack").whole(0, len(stacks) - 1)]),
            "stack_trace": traces[item.item("trace").whole(0, len(traces) - 1)],
        }
    if reader.output is None:
        saved.fail("has no output")
    for target, node in reader.inputs.items():
        if target in reader.nodes and reader.nodes[target] is not node:
            saved.fail(f"has the input {target!r} and a node of this name")
    return graph


class _Reader:
    """Makes the nodes of a graph one by one, each after all checks."""

    def __init__(self, known: Known) -> None:
        self.known = known
        self.nodes: dict[str, Node] = {}
        self.inputs: dict[str, Node] = {}
        self.sizes = Sizes()
        self.output: Node | None = None

    def read(self, item: Saved, graph: Graph) -> Node:
        """The next node of the graph."""
        make = item.item("op").one_of({
            "placeholder": self._placeholder, "get_attr": self._tensor, "call_function": self._call, "output": self._output,
        })  # fmt: skip
        if self.output is not None:
            item.fail("comes after the output")
        name = _free_name(item.item("name"))
        if name in self.nodes:
            item.item("name").fail(f"is {name!r}, as another node's")
        args = decoded(item.item("args"), self.nodes)
        if not isinstance(args, tuple):
            item.item("args").fail("must be a tuple")
        kwargs = {key: decoded(saved, self.nodes) for key, saved in item.item("kwargs").named().items()}
        node = make(item, graph, name, args, kwargs)
        if node.name != name:
            item.item("name").fail(f"is {name!r}, which torch.fx does not take for a node")
        self.nodes[name] = node
        return node

    def _placeholder(self, item: Saved, graph: Graph, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Node:
        _no_arguments(item, args, kwargs)
        target = _free_name(item.item("target"))
        if target in self.inputs:
            item.item("target").fail(f"is {target!r}, as another input's")
        self.inputs[target] = graph.create_node("placeholder", target, name=name)
        return self.inputs[target]

    def _tensor(self, item: Saved, graph: Graph, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Node:
        _no_arguments(item, args, kwargs)
        target = item.item("target").text()
        if target not in self.known.paths:
            item.item("target").fail(f"is {target[:200]!r}, and the file has no tensor of this name")
        return graph.create_node("get_attr", target, name=name)

    def _call(self, item: Saved, graph: Graph, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Node:
        target = _op(item.item("target"), self.known.ops)
        if isinstance(target, OpOverload):
            check_call(item, target, args, kwargs)
        else:
            _check_function(item, args, kwargs)
        node = graph.create_node("call_function", target, args, kwargs, name=name)
        if not isinstance(target, OpOverload):
            self.sizes.check(item, node)
        return node

    def _output(self, item: Saved, graph: Graph, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Node:
        if len(args) != 1 or kwargs:
            item.fail("must have one argument")
        self.output = graph.create_node("output", "output", args, name=name)
        return self.output


class _PrintedReader(_Reader):
    """Makes the nodes of a graph that is only printed. Its tensors need not be in the file, and its ops may be unknown."""

    def _tensor(self, item: Saved, graph: Graph, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Node:
        _no_arguments(item, args, kwargs)
        if not is_path(target := item.item("target").text()):
            item.item("target").fail("is no path of a tensor")
        return graph.create_node("get_attr", target, name=name)

    def _call(self, item: Saved, graph: Graph, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Node:
        target = item.item("target")
        if not isinstance(target.value, dict):
            return super()._call(item, graph, name, args, kwargs)
        return graph.create_node("call_function", Printed(target.item("printed").text(1000)), args, kwargs, name=name)


def _free_name(saved: Saved) -> str:
    """A name of a variable that code of a graph does not use otherwise."""
    name = saved.name()
    if name in _IN_CODE or name.startswith("__"):
        saved.fail(f"is {name!r}, which the code of a graph uses itself")
    return name


def _no_arguments(item: Saved, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if args or kwargs:
        item.fail("must have no arguments")


def _check_function(item: Saved, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A function on sizes takes nodes, numbers and lists of them; `getitem` takes a node and a number."""
    name = item.item("target").text()
    _, least, most = FUNCTIONS[name]
    if kwargs or not least <= len(args) <= most:
        item.fail(f"gives {name} other arguments than {least}")
    if name == "operator.getitem" and not (isinstance(args[0], Node) and type(args[1]) is int):
        item.fail(f"gives {name} something else than a node and a number")
    for argument in args:
        for part in argument if isinstance(argument, (list, tuple)) else [argument]:
            if not isinstance(part, (Node, bool, int, float)):
                item.fail(f"gives {name} something else than nodes and numbers")


def _op(saved: Saved, further: Mapping[str, OpOverload]) -> Any:
    """The op or function of this name. Raises InputError unless it is pure, or the user named it."""
    name = saved.text(1000)
    if name in map(str, OWN_BACKWARD):
        saved.fail(f"calls {name}, which runs code that a file does not hold; save never writes it")
    if name in FUNCTIONS:
        return FUNCTIONS[name][0]
    if name in further:
        return further[name]
    namespace, _, rest = name.partition(".")
    if namespace not in NAMESPACES:
        saved.fail(
            f"calls {name[:200]}, which is no op of torch; if it is yours, load(path, ops=(torch.ops.{name[:200]},))"
        )
    op, _, overload = rest.partition(".")
    packet = getattr(getattr(torch.ops, namespace), op, None) if op.isidentifier() and not op.startswith("__d") else None
    found = getattr(packet, overload or "default", None)
    if not isinstance(found, OpOverload):
        saved.fail(f"calls {name[:200]}, and this torch ({torch.__version__}) has no such op")
    if not is_pure(found):
        saved.fail(
            f"calls {name}, which is not on the list of ops that only compute (lxt_fx.ops.pure_ops); if you trust the file "
            f"and need it, load(path, ops=(torch.ops.{name},))"
        )
    return found


def _loaded_io(saved: Saved, reader: _Reader, known: Known) -> GraphIO:
    """How the graph is called, if its inputs and outputs fit to that."""
    names = saved.item("names").names()
    for part in saved.item("names").parts():
        _free_name(part)
    inside, outside = (decoded_structure(saved.item(key), known.classes) for key in ("in", "out"))
    _check_names(saved.item("in"), names)
    if inside.num_leaves != len(reader.inputs):
        saved.item("in").fail(f"has {inside.num_leaves} values, and the graph {len(reader.inputs)} inputs")
    answers = reader.output.args[0] if reader.output is not None else None
    if not isinstance(answers, (list, tuple)) or len(answers) != outside.num_leaves:
        saved.item("out").fail(f"has {outside.num_leaves} values, and the graph returns others")
    return GraphIO(names, inside, outside)


def _check_names(saved: Saved, names: tuple[str, ...]) -> None:
    """Raises InputError unless inputs of this structure, a tuple and a dict, have these names in turn."""
    parts = [] if saved.value is None else saved.item("parts").parts(2)
    kinds = [None if part.value is None else part.item("type").value for part in parts]
    if kinds != ["builtins.tuple", "builtins.dict"] or saved.item("type").value != "builtins.tuple":
        saved.fail("must be a tuple of a tuple and a dict")
    positional, keys = len(parts[0].item("parts").parts()), parts[1].item("keys").names()
    if len(names) != positional + len(keys) or names[positional:] != keys:
        saved.fail("does not have the names of the inputs")


def _node(node: Node) -> dict[str, Any]:
    return _described(node) | {
        "target": _target_name(node) if node.op == "call_function" else str(node.target),
        "args": encoded(node.args),
        "kwargs": {name: encoded(argument) for name, argument in node.kwargs.items()},
    }


def _described(node: Node) -> dict[str, Any]:
    found = value(node)
    several = isinstance(found, (list, tuple))
    types = [_type(part) for part in found] if several else _type(found)
    return {"name": node.name, "op": node.op, "type": types, "many": several}


def _printed_node(node: Node) -> dict[str, Any]:
    """A node of a graph that is only printed."""
    runs = node.op != "call_function" or node.target in _FUNCTION_NAMES or (
        isinstance(node.target, OpOverload) and is_pure(node.target)
    )  # fmt: skip
    if runs:
        return _node(node)
    inert = {"target": {"printed": op_name(node)}, "args": encoded_or_text(node.args)}
    kwargs = {name: encoded_or_text(argument) for name, argument in node.kwargs.items()}
    return _described(node) | inert | {"kwargs": kwargs}


def _target_name(node: Node) -> str:
    target: Any = node.target
    if target in OWN_BACKWARD:
        raise InputError(
            f"save: %{node.name} calls {node.args[1]}, an autograd.Function of yours with a backward of its own, and a "
            "file holds no code; save the model and transform it where you load it, or make the Function an op "
            "(torch.library.custom_op with register_autograd) and give that to load(path, ops=...)"
        )
    if isinstance(target, OpOverload):
        return str(target)
    if target in _FUNCTION_NAMES:
        return _FUNCTION_NAMES[target]
    raise InputError(f"save: %{node.name} calls {target}, which cannot be named in a file")


def _stack(node: Node) -> list[list[str]]:
    found = node.meta.get("nn_module_stack") or {}
    return [[key, path, str(c if isinstance(c, str) else c.__qualname__)] for key, (path, c) in found.items()]


def _loaded_stack(saved: Saved) -> dict[str, tuple[str, str]]:
    found = {}
    for part in saved.parts(1000):
        texts = part.texts()
        if len(texts) != 3:
            part.fail("must be three texts")
        found[texts[0]] = texts[1:]
    return found


def _type(found: Any) -> Any:
    if isinstance(found, (Tensor, TensorType)):
        dtype = str(found.dtype).removeprefix("torch.")
        return [dtype, [size if isinstance(size, int) else str(size) for size in found.shape]]
    return None if found is None else str(found)


def _loaded_value(item: Saved) -> Any:
    saved = item.item("type")
    return tuple(map(_loaded_type, saved.parts())) if item.item("many").flag() else _loaded_type(saved)


def _loaded_type(saved: Saved) -> TensorType | str | None:
    if saved.value is None or isinstance(saved.value, str):
        return None if saved.value is None else saved.text()
    parts = saved.parts(2)
    if len(parts) != 2:
        saved.fail("must be a dtype and a shape")
    sizes = [part.whole(0) if isinstance(part.value, int) else part.text() for part in parts[1].parts(MOST_DIMS)]
    return TensorType(parts[0].one_of(DTYPES), tuple(sizes))
