"""The module that `transform` returns: a torch.fx GraphModule that is called like the model."""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Interpreter
from torch.fx.graph import PythonCode

from lxt_fx.base.errors import CallError
from lxt_fx.base.torch_internals import io_of, pytree, recompile_as, set_forward
from lxt_fx.ops.expectations import EXPECTATIONS
from lxt_fx.passes.capture.example import FILLS
from lxt_fx.passes.fuse.fuse import fuse
from lxt_fx.passes.segments.recompute import Segments, checkpointed_forward
from lxt_fx.rule_table.rule import Match, Rule

SWITCHES: dict[str, Any] = {
    "use_cache": False,
    "return_dict": True,
    "output_attentions": False,
    "output_hidden_states": False,
}
"""What a transformers model is captured with; a call may repeat it."""


@dataclass(frozen=True, slots=True)
class Stage:
    """The graph as it stood after a stage, and what was known of its nodes, by node name."""

    name: str
    graph: Graph
    carrying: frozenset[str] = frozenset()
    rules: Mapping[str, Rule] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    inserted: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Record:
    """What transform knows of the module it made.

    `inputs` may be given in a call, `optional` among them left out; `leaves` are the float inputs that relevance is read
    at. `specialised` says what is fixed to the example. `forward_difference` is the largest difference to the model's own
    output on the example, relative to its largest value; 0.0 means bit-equal, NaN not compared (meta device). `unknown`
    names nodes that kept their native gradient because no row matched (always empty under strict=True). `matches` says why
    the row of a node matched, by name of the node in the rewritten graph. `form` is `gradient` or `explicit`.
    `overrides` are the places where the table was overridden, `merged` the batch norms that became part of the layer before
    them. `positions` are those that the module answers at, None where it answers at all of them.
    """

    model_class: str
    table_name: str
    form: str
    paper: str
    overrides: tuple[str, ...]
    merged: tuple[str, ...]
    inputs: tuple[str, ...]
    leaves: tuple[str, ...]
    optional: tuple[str, ...]
    constants: Mapping[str, Any]
    method: str
    specialised: tuple[str, ...]
    guards: tuple[str, ...]
    sizes: Mapping[str, tuple[int | None, ...]]
    forward_difference: float
    seconds: Mapping[str, float]
    stages: Mapping[str, Stage]
    unknown: Mapping[str, str]
    matches: Mapping[str, Match]
    versions: Mapping[str, str]
    positions: tuple[int, ...] | None = None


class Explained(GraphModule):
    """A rewritten model. Call it like the model; `logit.backward()`, then `leaf * leaf.grad` is the relevance. In explicit
    form it is `logit.backward(logit)`, then `leaf.grad`.

    It shares the model's parameters (the same objects) and asks no gradient for them. `record` says how it was made,
    `segments` where it is cut into parts that the backward recomputes (`graph` and `code` are those of the whole), `fused`
    is the graph that a plain call runs, as of the last `recompile`.
    """

    record: Record
    fused: Graph
    segments: Segments | None = None
    _recaptures: Recaptures | None = None
    _observer: Callable[[Explained], Interpreter] | None = None

    def __init__(self, root: nn.Module | dict[str, Any], graph: Graph, class_name: str = "Explained") -> None:
        super().__init__(root, graph, class_name)
        self._guards: list[tuple[str, CodeType]] = []
        self._embedding: tuple[nn.Module, ...] = ()

    def _attach(self, record: Record, embedding: nn.Module | None, config: Any = None) -> None:
        self.record = record
        self.config = config  # the model's own, for the names of its classes; None after load
        self._guards = [(guard, code) for guard in record.guards if (code := _compiled(guard)) is not None]
        # in a tuple, so that it is no submodule: the graph does not use it, `embed` does
        self._embedding = () if embedding is None else (embedding,)

    def recompile(self) -> PythonCode:
        """The code that runs is that of the fused graph, by its segments where it is cut; `graph` stays the one that the
        rules were proven on, and that the audit, `watch` and the certificate read."""
        self.fused = fuse(self)
        code = recompile_as(self, self.fused)
        if self.segments is not None:
            set_forward(self, checkpointed_forward(self.fused, self.segments))
        return code

    def _cut(self, segments: Segments | None) -> None:
        """From now on the backward recomputes these parts of the graph."""
        self.segments = segments
        self.recompile()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = self._bind(args, kwargs)
        fitting = self._fitting(bound)
        if self._observer is not None:
            return fitting._run_by(self._observer(fitting), bound)
        return super().__call__(**bound) if fitting is self else fitting(**bound)

    def _fitting(self, bound: Mapping[str, Any]) -> Explained:
        """This module; or, with `transform(dynamic="recapture")`, the one whose graph holds for inputs like these."""
        return self if self._recaptures is None else self._recaptures.fitting(self, bound)

    def __deepcopy__(self, memo: dict[int, Any]) -> Explained:
        record, embedding = self.record, self._embedding
        memo[id(record)] = record
        twin: Explained = super().__deepcopy__(memo)  # type: ignore[assignment]
        twin._attach(record, copy.deepcopy(embedding[0], memo) if embedding else None, self.config)
        if self.segments is not None:
            twin._cut(self.segments)
        return twin

    def _run_by(self, interpreter: Interpreter, bound: Mapping[str, Any]) -> Any:
        """The output for inputs by name, computed node by node by an interpreter of this graph, which is emptied: what it
        holds of the graph might hold its own hooks, and never be freed."""
        try:
            flat = interpreter.run(*pytree.tree_leaves(dict(bound)), enable_io_processing=False)
        finally:
            interpreter.env.clear()
        return pytree.tree_unflatten(flat, io_of(self.graph).out_spec)

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The inputs by name: positional ones named, missing optional ones filled, baked constants checked and dropped.

        Raises CallError for what was not captured.
        """
        record = self.record
        if len(args) > len(record.inputs):
            raise CallError(f"{record.model_class}: called with {len(args)} inputs, captured with {len(record.inputs)}")
        given = dict(zip(record.inputs, args, strict=False)) | kwargs
        bound = {}
        for name, value in given.items():
            if name in record.inputs:
                if value is not None:
                    bound[name] = value
            elif not self._is_baked(name, value):
                raise CallError(self._not_captured(name))
        for name in record.optional:
            leaf, fill = FILLS[name]
            if name not in bound and leaf in bound:
                bound[name] = fill(bound[leaf])
        missing = [name for name in record.inputs if name not in bound and name not in record.optional]
        if missing:
            raise CallError(
                f"{record.model_class}: the call lacks {', '.join(missing)}; the module was captured with "
                f"{', '.join(record.inputs)}"
            )
        if self._recaptures is None:
            self._check_sizes(bound)
        return {name: bound[name] for name in record.inputs}

    def _is_baked(self, name: str, value: Any) -> bool:
        baked = SWITCHES | dict(self.record.constants)
        return value is None or (name in baked and bool(baked[name] == value))

    def _not_captured(self, name: str) -> str:
        record = self.record
        if name in record.constants:
            return (
                f"{record.model_class}: {name}={record.constants[name]!r} is baked into the graph; transform the model "
                f"again with {name} among the example inputs"
            )
        if name == "input_ids" and "inputs_embeds" in record.inputs:
            return (
                f"{record.model_class}: token ids carry no gradient, so this module starts from embeddings: call "
                "it with inputs_embeds=lxt_fx.embed(explained, input_ids)"
            )
        if name == "labels":
            return f"{record.model_class}: labels were not captured; choose a logit of the output and call backward on it"
        return (
            f"{record.model_class}: input {name} was not captured (captured: {', '.join(record.inputs)}); transform the "
            f"model again with {name} among the example inputs: transform(model, kwargs={{'{name}': ..., ...}})"
        )

    def _check_sizes(self, bound: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():
            return
        for name, sizes in self.record.sizes.items():
            value = bound.get(name)
            if not isinstance(value, Tensor):
                continue
            if value.dim() != len(sizes) or any(s not in (None, n) for s, n in zip(sizes, value.shape, strict=True)):
                shown = [("any" if size is None else size) for size in sizes]
                raise CallError(
                    f"{self.record.model_class}: {name} has shape {list(value.shape)}, the graph was captured for {shown}; "
                    "transform the model again with an example of this shape, or once with dynamic=\"recapture\""
                )
        for guard, code in self._guards:
            holds = eval(code, {"__builtins__": {}, "max": max, "min": min}, {"L": bound})
            if not holds and not _reads_a_one(guard, bound):
                raise CallError(
                    f"{self.record.model_class}: the graph holds only where {guard}, and these inputs break it; transform "
                    "the model again with an example of these shapes, or once with dynamic=\"recapture\""
                )


KEPT = 16
"""How many recaptured graphs a module keeps; the one that was needed longest ago goes first."""


class Recaptures:
    """Graphs of one model for inputs that its first graph does not hold for, each captured when it is first needed.

    `again` captures the model on inputs by name. A graph holds for inputs whose sizes it was captured for and on which the
    values that the model's Python code reads are those of its example.
    """

    def __init__(self, again: Callable[[Mapping[str, Any]], Explained]) -> None:
        self.again = again
        self.kept: list[Explained] = []

    def fitting(self, first: Explained, bound: Mapping[str, Any]) -> Explained:
        """The graph for these inputs, captured now if there is none. Raises what `transform` raises."""
        if _holds(first, bound):
            return first
        found = next((module for module in self.kept if _holds(module, bound)), None) or self.again(bound)
        self.kept = [found, *(module for module in self.kept if module is not found)][:KEPT]
        return found


def _holds(module: Explained, bound: Mapping[str, Any]) -> bool:
    try:
        module._check_sizes(dict(bound))
        if any(node.target in EXPECTATIONS for node in module.graph.nodes):
            with torch.no_grad():
                module.forward(**bound)
    except CallError:
        return False
    return True


_SIZE = re.compile(r"L\['(\w+)'\]\.size\(\)\[(\d+)\]")


def _reads_a_one(guard: str, bound: Mapping[str, Any]) -> bool:
    """torch.export assumes that dynamic sizes are not 0 or 1; graphs run exactly at 1 all the same."""
    return any(bound[name].shape[int(dim)] == 1 for name, dim in _SIZE.findall(guard) if isinstance(bound[name], Tensor))


_GUARD_NODES = (
    ast.Expression, ast.Compare, ast.BinOp, ast.BoolOp, ast.UnaryOp, ast.Call, ast.Attribute, ast.Subscript, ast.Name,
    ast.Constant, ast.operator, ast.cmpop, ast.boolop, ast.unaryop, ast.expr_context,
)  # fmt: skip


def _compiled(guard: str) -> CodeType | None:
    """The code of a shape guard, which may hold arithmetic on `L[...].size()[i]`, max and min and nothing else (a saved
    module's guards come from a file)."""
    tree = ast.parse(guard, mode="eval")
    for node in ast.walk(tree):
        fine = isinstance(node, _GUARD_NODES)
        fine &= not isinstance(node, ast.Name) or node.id in ("L", "max", "min")
        fine &= not isinstance(node, ast.Attribute) or node.attr in ("size", "dim")
        if not fine:
            return None
    return compile(tree, "<guard>", "eval")
