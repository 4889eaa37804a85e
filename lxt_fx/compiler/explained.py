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
from lxt_fx.base.user_objects import with_given_objects
from lxt_fx.compiler.hooks import HookFlag, HookRunner, hooked_modules, make_hookable
from lxt_fx.compiler.module_values import GraphValues
from lxt_fx.compiler.nested_inputs import checked_leaves, in_captured_order
from lxt_fx.compiler.record import Record
from lxt_fx.compiler.size_guards import compiled_guard, reads_a_one
from lxt_fx.ops.expectations import EXPECTATIONS
from lxt_fx.passes.capture.example import FILLS
from lxt_fx.passes.fuse.fuse import fuse
from lxt_fx.passes.segments.recompute import Segments, recomputing_forward

SWITCHES: dict[str, Any] = {
    "use_cache": False,
    "return_dict": True,
    "output_attentions": False,
    "output_hidden_states": False,
}
"""The settings that a transformers model is captured with. A call may repeat them."""


class Observer(Protocol):
    """Sees every node while a graph runs node by node."""

    def before(self, node: Node) -> None:
        """Called before the node runs."""

    def after(self, node: Node, result: Any) -> None:
        """Called with the value of the node."""


class _Observed(Interpreter):
    """Runs a graph node by node and shows every node to the observers."""

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
    """A rewritten model, which is called like the model. After `logit.backward()`, relevance is `leaf * leaf.grad`. In
    explicit form, relevance is `leaf.grad` after `logit.backward(logit)`.

    It shares the model's parameters (the same objects) and computes no gradient for them. `record` says how it was made.
    `graph` is the graph that the rules were checked on. `fused` is the graph that a plain call runs, made by `recompile`.
    `segments` are the parts of it that the backward recomputes, None if there are none.
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
        self._hook_flag = HookFlag()
        make_hookable(self, self._hook_flag)

    def _attach(self, record: Record, embedding: nn.Module | None, config: Any = None) -> None:
        self.record = record
        self.config = config  # the model's own, for the names of its classes; None after load
        self._guards = [(guard, code) for guard in record.guards if (code := compiled_guard(guard)) is not None]
        # in a tuple, so that it does not become a submodule: only `embed` uses it, not the graph
        self._embedding = () if embedding is None else (embedding,)

    def recompile(self) -> PythonCode:
        """Makes the fused graph and compiles the forward from it, segment by segment if there are segments. `graph` does
        not change: the audit, `watch` and the certificate read it."""
        self.fused = fuse(self)
        code = recompile_as(self, self.fused)
        if self.segments is not None:
            set_forward(self, recomputing_forward(self.fused, self.segments))
        return code

    def _cut(self, segments: Segments | None) -> None:
        """Sets the segments that the backward recomputes."""
        self.segments = segments
        self.recompile()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = self._bind(args, kwargs)
        fitting = self._fitting(bound)
        if self._observers or self._hook_flag.is_set:
            observers = self._observers_of(fitting)
            if observers:
                return fitting._run_by(_Observed(fitting, observers), bound)
        return super().__call__(**bound) if fitting is self else fitting(**bound)

    def _observers_of(self, fitting: Explained) -> list[Observer]:
        """The observers of this call: those of `watch`, and the hooks on submodules. Raises CallError if a hook cannot
        run."""
        observers = [observing(fitting) for observing in self._observers]
        if places := hooked_modules(self):
            if torch.compiler.is_compiling():
                raise CallError(
                    f"{next(iter(places))} has a hook, which needs a call node by node, and a compiled module has none; "
                    "remove the hook, or do not compile"
                )
            observers.append(HookRunner(fitting._values(), places))
        self._hook_flag.is_set = bool(places)
        if observers and hooks_of(self):
            raise CallError(
                f"{self.record.model_class}: the module itself has hooks, which torch does not run when the module runs "
                "node by node for `watch` or for hooks on submodules; remove the module's own hooks, and do their work "
                "before and after the call"
            )
        return observers

    def _refuse_hooks(self, function: str) -> None:
        """Raises CallError, in the name of a function that runs the graph in its own way, if submodules have hooks."""
        if self._hook_flag.is_set and (places := hooked_modules(self)):
            raise CallError(
                f"{function}: {next(iter(places))} has a hook, and {function} does not call the module, so no hook would "
                "run; remove the hook, or call the explained module itself"
            )

    @contextmanager
    def _observed_by(self, observing: Observing) -> Iterator[None]:
        """Calls inside the `with` block run node by node, with this observer."""
        outer = self._observers
        self._observers = (*outer, observing)
        try:
            yield
        finally:
            self._observers = outer

    def _values(self) -> GraphValues:
        """The values of `graph`, by module."""
        lowered = self.record.stages["lowered"]
        return GraphValues(self.graph, lowered.inserted, lowered.carrying)

    def _fitting(self, bound: Mapping[str, Any]) -> Explained:
        """The module whose graph is valid for these inputs: this one, or one that `transform(dynamic="recapture")` adds."""
        return self if self._recaptures is None else self._recaptures.fitting(self, bound)

    def __deepcopy__(self, memo: dict[int, Any]) -> Explained:
        record, embedding = self.record, self._embedding
        memo[id(record)] = record
        twin: Explained = super().__deepcopy__(memo)  # type: ignore[assignment]
        twin._observers, twin._hook_flag = (), copy.deepcopy(self._hook_flag, memo)  # shared by the copied submodules
        twin._attach(record, copy.deepcopy(embedding[0], memo) if embedding else None, self.config)
        if self.segments is not None:
            twin._cut(self.segments)
        return twin

    def _run_by(self, interpreter: Interpreter, bound: Mapping[str, Any]) -> Any:
        """The output for inputs by name, computed node by node by an interpreter of this graph. The interpreter's values
        are cleared afterwards: they may refer to hooks that refer to the interpreter, and would never be freed."""
        try:
            flat = interpreter.run(*pytree.tree_leaves(dict(bound)), enable_io_processing=False)
        finally:
            interpreter.env.clear()
        return pytree.tree_unflatten(flat, io_of(self.graph).out_spec)

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The inputs by name. Positional inputs get their names and missing optional ones their default values; constants
        of the graph are checked and dropped.

        Raises CallError for inputs that were not captured, or do not fit the graph.
        """
        record = self.record
        order = record.order or record.inputs
        if len(args) > len(order):
            raise CallError(f"{record.model_class}: called with {len(args)} inputs, captured with {len(order)}")
        given = dict(zip(order, args, strict=False)) | kwargs
        bound = {}
        for name, value in given.items():
            if name in record.inputs:
                if value is not None:
                    bound[name] = value if isinstance(value, Tensor) else with_given_objects(value)
            elif not self._is_baked(name, value):
                raise CallError(self._not_captured(name))
        for name in record.optional:
            leaf, fill = FILLS[name]
            if name not in bound and leaf in bound:
                bound[name] = fill(bound[leaf])
        missing = [name for name in record.inputs if name not in bound and name not in record.optional]
        if missing:
            raise CallError(
                f"{record.model_class}: the call has no {', '.join(missing)}; the module was captured with "
                f"{', '.join(record.inputs)}"
            )
        bound = {name: bound[name] for name in record.inputs}
        if not (torch.compiler.is_compiling() or all(isinstance(value, Tensor) for value in bound.values())):
            bound = in_captured_order(bound, io_of(self.graph).in_spec)
        if self._recaptures is None:
            self._check_sizes(bound)
        return bound

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
                f"{record.model_class}: token ids have no gradient, so this module starts from embeddings: call it with "
                "inputs_embeds=lxt_fx.embed(explained, input_ids)"
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
        ordered = {name: bound[name] for name in self.record.inputs}
        leaves = checked_leaves(ordered, io_of(self.graph).in_spec, self.record.constants, self.record.model_class)
        for name, sizes in self.record.sizes.items():
            value = leaves.get(name)
            if not isinstance(value, Tensor):
                continue
            if value.dim() != len(sizes) or any(s not in (None, n) for s, n in zip(sizes, value.shape, strict=True)):
                shown = [("any" if size is None else size) for size in sizes]
                raise CallError(
                    f"{self.record.model_class}: {name} has shape {list(value.shape)}, the graph was captured for {shown}; "
                    "transform the model again with an example of this shape, or once with dynamic=\"recapture\""
                )
        for guard, code in self._guards:
            holds = eval(code, {"__builtins__": {}, "max": max, "min": min}, {"L": leaves})
            if not holds and not reads_a_one(guard, leaves):
                raise CallError(
                    f"{self.record.model_class}: the graph is valid only if {guard}, which is false for these inputs; "
                    "transform the model again with an example of these shapes, or once with dynamic=\"recapture\""
                )


def check_explained(module: object, function: str) -> None:
    """Raises InputError, in the name of `function`, unless `lxt_fx.transform` or `lxt_fx.load` made the module."""
    if not isinstance(module, Explained):
        raise InputError(
            f"{function}: {type(module).__name__} was not made by lxt_fx.transform or lxt_fx.load, and has no graph of its "
            f"own; give lxt_fx.{function} what lxt_fx.transform(model) returns, and call that"
        )


Observing = Callable[[Explained], Observer]
"""Makes the observer for the graph that a call runs."""

MOST_GRAPHS = 16
"""The most recaptured graphs that a module has at once; the least recently used one is dropped."""


class Recaptures:
    """Further graphs of one model, for inputs that its first graph is not valid for, each captured when it is first needed.

    `again` captures the model on inputs by name. A graph is valid for inputs of the sizes that it was captured for, if the
    model's Python code reads the same values from them as from the example.
    """

    def __init__(self, again: Callable[[Mapping[str, Any]], Explained]) -> None:
        self.again = again
        self.graphs: list[Explained] = []

    def fitting(self, first: Explained, bound: Mapping[str, Any]) -> Explained:
        """The module whose graph is valid for these inputs, captured now if there is none. Raises what `transform`
        raises."""
        if _is_valid(first, bound):
            return first
        found = next((module for module in self.graphs if _is_valid(module, bound)), None) or self.again(bound)
        self.graphs = [found, *(module for module in self.graphs if module is not found)][:MOST_GRAPHS]
        return found


def _is_valid(module: Explained, bound: Mapping[str, Any]) -> bool:
    try:
        module._check_sizes(dict(bound))
        if any(node.target in EXPECTATIONS for node in module.graph.nodes):
            with torch.no_grad():
                module.forward(**bound)
    except CallError:
        return False
    return True
