"""The module that `transform` returns: a torch.fx GraphModule that is called like the model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import CodeType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.fx.graph import PythonCode

from lxt_fx.base.errors import CallError, InputError
from lxt_fx.base.torch_internals import hooks_of, io_of, pytree, recompile_as, set_forward
from lxt_fx.compiler.hooks import HookRunner, Told, hooked_places, made_places
from lxt_fx.compiler.record import Record
from lxt_fx.compiler.size_guards import compiled_guard, reads_a_one
from lxt_fx.ops.expectations import EXPECTATIONS
from lxt_fx.passes.analysis.module_values import GraphValues
from lxt_fx.passes.capture.example import FILLS
from lxt_fx.passes.fuse.fuse import fuse
from lxt_fx.passes.segments.recompute import Segments, recomputing_forward

SWITCHES: dict[str, Any] = {
    "use_cache": False,
    "return_dict": True,
    "output_attentions": False,
    "output_hidden_states": False,
}
"""What a transformers model is captured with; a call may repeat it."""


class Observer(Protocol):
    """Looks on while a graph runs node by node."""

    def before(self, node: Node) -> None:
        """Called before the node runs."""

    def after(self, node: Node, result: Any) -> None:
        """Called with what the node gave."""


class _Observed(Interpreter):
    """Runs a graph node by node for those who look on."""

    def __init__(self, explained: Explained, observers: list[Observer]) -> None:
        super().__init__(explained)
        self.observers = observers

    def run_node(self, n: Node) -> Any:
        for observer in self.observers:
            observer.before(n)
        result = super().run_node(n)
        for observer in self.observers:
            observer.after(n, result)
        return result


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

    def __init__(self, root: nn.Module | dict[str, Any], graph: Graph, class_name: str = "Explained") -> None:
        super().__init__(root, graph, class_name)
        self._guards: list[tuple[str, CodeType]] = []
        self._embedding: tuple[nn.Module, ...] = ()
        self._observers: tuple[Observing, ...] = ()
        self._told = Told()
        made_places(self, self._told)

    def _attach(self, record: Record, embedding: nn.Module | None, config: Any = None) -> None:
        self.record = record
        self.config = config  # the model's own, for the names of its classes; None after load
        self._guards = [(guard, code) for guard in record.guards if (code := compiled_guard(guard)) is not None]
        # in a tuple, so that it is no submodule: the graph does not use it, `embed` does
        self._embedding = () if embedding is None else (embedding,)

    def recompile(self) -> PythonCode:
        """The code that runs is that of the fused graph, by its segments where it is cut; `graph` stays the one that the
        rules were proven on, and that the audit, `watch` and the certificate read."""
        self.fused = fuse(self)
        code = recompile_as(self, self.fused)
        if self.segments is not None:
            set_forward(self, recomputing_forward(self.fused, self.segments))
        return code

    def _cut(self, segments: Segments | None) -> None:
        """From now on the backward recomputes these parts of the graph."""
        self.segments = segments
        self.recompile()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = self._bind(args, kwargs)
        fitting = self._fitting(bound)
        if self._observers or self._told.any:
            observers = self._observers_of(fitting)
            if observers:
                return fitting._run_by(_Observed(fitting, observers), bound)
        return super().__call__(**bound) if fitting is self else fitting(**bound)

    def _observers_of(self, fitting: Explained) -> list[Observer]:
        """Who looks on in this call: `watch`, and the hooks on submodules. Raises CallError where hooks cannot be run."""
        observers = [observing(fitting) for observing in self._observers]
        if places := hooked_places(self):
            if torch.compiler.is_compiling():
                raise CallError(f"{next(iter(places))} has a hook; hooks run node by node: remove it, or do not compile")
            observers.append(HookRunner(fitting._values(), places))
        self._told.any = bool(places)
        if observers and hooks_of(self):
            raise CallError(
                f"{self.record.model_class}: the module has hooks of its own, and `watch` and hooks on submodules need a "
                "call node by node, where torch does not run them; remove them, and do the same around the call"
            )
        return observers

    @contextmanager
    def _observed_by(self, observing: Observing) -> Iterator[None]:
        """Calls inside run node by node, and this looks on."""
        outer = self._observers
        self._observers = (*outer, observing)
        try:
            yield
        finally:
            self._observers = outer

    def _values(self) -> GraphValues:
        """The values of the graph that the rules were proven on."""
        lowered = self.record.stages["lowered"]
        return GraphValues(self.graph, lowered.inserted, lowered.carrying)

    def _fitting(self, bound: Mapping[str, Any]) -> Explained:
        """This module; or, with `transform(dynamic="recapture")`, the one whose graph holds for inputs like these."""
        return self if self._recaptures is None else self._recaptures.fitting(self, bound)

    def __deepcopy__(self, memo: dict[int, Any]) -> Explained:
        record, embedding = self.record, self._embedding
        memo[id(record)] = record
        twin: Explained = super().__deepcopy__(memo)  # type: ignore[assignment]
        twin._observers, twin._told = (), copy.deepcopy(self._told, memo)  # the copied places have the same
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
            if not holds and not reads_a_one(guard, bound):
                raise CallError(
                    f"{self.record.model_class}: the graph holds only where {guard}, and these inputs break it; transform "
                    "the model again with an example of these shapes, or once with dynamic=\"recapture\""
                )


def check_explained(module: object, function: str) -> None:
    """Raises InputError unless the module is what `lxt_fx.transform` or `lxt_fx.load` made; it names the `function`."""
    if not isinstance(module, Explained):
        raise InputError(
            f"{function}: {type(module).__name__} was not made by lxt_fx.transform or lxt_fx.load, and has no graph of its "
            f"own; give lxt_fx.{function} what lxt_fx.transform(model) returns, and call that"
        )


Observing = Callable[[Explained], Observer]
"""Makes an observer of the graph that a call runs."""

MOST_GRAPHS = 16
"""How many recaptured graphs a module has at once; the one that was needed longest ago goes first."""


class Recaptures:
    """Graphs of one model for inputs that its first graph does not hold for, each captured when it is first needed.

    `again` captures the model on inputs by name. A graph holds for inputs whose sizes it was captured for and on which the
    values that the model's Python code reads are those of its example.
    """

    def __init__(self, again: Callable[[Mapping[str, Any]], Explained]) -> None:
        self.again = again
        self.graphs: list[Explained] = []

    def fitting(self, first: Explained, bound: Mapping[str, Any]) -> Explained:
        """The graph for these inputs, captured now if there is none. Raises what `transform` raises."""
        if _holds(first, bound):
            return first
        found = next((module for module in self.graphs if _holds(module, bound)), None) or self.again(bound)
        self.graphs = [found, *(module for module in self.graphs if module is not found)][:MOST_GRAPHS]
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
