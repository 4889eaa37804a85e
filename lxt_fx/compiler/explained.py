"""The module that `transform` returns: a torch.fx GraphModule that is called like the model."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from difflib import get_close_matches
from types import CodeType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.fx.graph import PythonCode

from lxt_fx.base.errors import CallError, InputError
from lxt_fx.base.one_capture import is_compiling, one_capture
from lxt_fx.base.torch_internals import convert_all, hooks_of, io_of, pytree, recompile_as, set_forward
from lxt_fx.base.user_objects import with_given_objects
from lxt_fx.base.warn_user import warn_user
from lxt_fx.compiler.conversions import Convert, check_conversion, move_graph, new_device
from lxt_fx.compiler.hooks import HookFlag, HookRunner, hooked_now, make_hookable
from lxt_fx.compiler.model_changes import ModelState
from lxt_fx.compiler.module_values import GraphValues
from lxt_fx.compiler.nested_inputs import checked_leaves, in_captured_order
from lxt_fx.compiler.record import Record
from lxt_fx.compiler.size_guards import compiled_guard, holds, reads_a_one
from lxt_fx.ops.expectations import EXPECTATIONS
from lxt_fx.passes.canonical.cut_at_lookups import Front
from lxt_fx.passes.capture.called_by_leaf import leaf_values
from lxt_fx.passes.capture.example import with_fills
from lxt_fx.passes.fuse.dtypes import DtypesMatched
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


class _Observed(DtypesMatched):
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
    _other_calls: OtherCalls | None = None
    _model_state: ModelState | None = None

    def __init__(self, root: nn.Module | dict[str, Any], graph: Graph, class_name: str = "Explained") -> None:
        super().__init__(root, graph, class_name)
        self._guards: list[tuple[str, CodeType]] = []
        self._fronts: tuple[Front, ...] = ()
        self._embedding: tuple[nn.Module, ...] = ()
        self._watches: dict[object, None] = {}  # open blocks of `watch`, in any thread
        self._hook_flag = HookFlag()
        make_hookable(self, self._hook_flag)

    def _attach(
        self, record: Record, fronts: tuple[Front, ...], embedding: nn.Module | None = None, config: Any = None
    ) -> None:
        self.record, self._fronts = record, fronts
        self.config = config  # the model's own, for the names of its classes; a few of its facts after load
        self._guards = [(guard, compiled_guard(guard)) for guard in record.guards]
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

    def _apply(self, fn: Convert, recurse: bool = True) -> Explained:
        """What torch's `to`, `half`, `cuda` and the like call. Raises InputError, unless it changes nothing or moves a
        module that was loaded from a file."""
        device = new_device(self, fn) if self.record.table is None else None
        if device is None:
            check_conversion(self, fn, self.record.model_class)
            return self
        convert_all(self, fn)
        for embedding in self._embedding:
            convert_all(embedding, fn)
        for front in self._fronts:
            convert_all(front.module, fn)
            move_graph(front.module.graph, device)
            front.module.recompile()
        move_graph(self.graph, device)
        self.recompile()
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        fitting, bound = self._prepared(args, kwargs)
        return self._called(fitting, bound)

    def with_leaves(self, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Tensor]]:
        """The output of a call, and the leaves of this call by name, at which relevance is read after `backward()`.

            output, leaves = explained.with_leaves(input_ids=ids, attention_mask=mask)
            output.logits[0, -1, 42].backward()
            relevance = (leaves["inputs_embeds"] * leaves["inputs_embeds"].grad).sum(-1)  # [batch, tokens]

        The leaves are those of `record.leaves` that this call has: the values that tokens are looked up as, such as
        `inputs_embeds` [batch, tokens, hidden] for `input_ids`, and the float inputs. Each is a new tensor. If the tokens
        of one input are looked up several times, their relevance is the sum over these leaves. Raises what a call raises.
        """
        fitting, bound = self._prepared(args, kwargs)
        leaves = fitting._new_leaves(bound)
        return self._called(fitting, bound | leaves), leaves

    def _new_leaves(self, bound: Mapping[str, Any]) -> dict[str, Tensor]:
        """The float inputs at which relevance is read, each as a new tensor that requires a gradient."""
        found = {name: bound[name] for name in self.record.leaves if isinstance(bound.get(name), Tensor)}
        floats = {name: value for name, value in found.items() if value.is_floating_point() or value.is_complex()}
        return {name: value.detach().clone().requires_grad_(True) for name, value in floats.items()}

    def _called(self, fitting: Explained, bound: Mapping[str, Any]) -> Any:
        """The output of the graph that fits, with what observes a call of this module."""
        if (self._watches and not is_compiling()) or self._hook_flag.is_set:
            observers = self._observers_of(fitting)
            if observers:
                return fitting._run_by(_Observed(fitting, observers), bound)
        return super().__call__(**bound) if fitting is self else fitting._called(fitting, bound)

    def _observers_of(self, fitting: Explained) -> list[Observer]:
        """The observers of this call: those of `watch`, and the hooks on submodules. Raises CallError if a hook cannot
        run."""
        watches = () if is_compiling() else _OBSERVING.get()
        observers = [observing(fitting) for module, observing in watches if module is self]
        if places := hooked_now(self, self._hook_flag):
            if is_compiling():
                raise CallError(
                    f"{next(iter(places))} has a hook, which needs a call node by node, and a compiled module has none; "
                    "remove the hook, or do not compile"
                )
            observers.append(HookRunner(fitting._values(), places))
        if observers and hooks_of(self):
            raise CallError(
                f"{self.record.model_class}: the module itself has hooks, which torch does not run when the module runs "
                "node by node for `watch` or for hooks on submodules; remove the module's own hooks, and do their work "
                "before and after the call"
            )
        return observers

    def _refuse_hooks(self, function: str) -> None:
        """Raises CallError, in the name of a function that runs the graph in its own way, if submodules have hooks."""
        if places := hooked_now(self, self._hook_flag):
            raise CallError(
                f"{function}: {next(iter(places))} has a hook, and {function} does not call the module, so no hook would "
                "run; remove the hook, or call the explained module itself"
            )

    @contextmanager
    def _observed_by(self, observing: Observing) -> Iterator[None]:
        """Calls of this thread inside the `with` block run node by node, with this observer."""
        block, outer = object(), _OBSERVING.get()
        self._watches[block] = None
        _OBSERVING.set((*outer, (self, observing)))
        try:
            yield
        finally:
            _OBSERVING.set(tuple(each for each in _OBSERVING.get() if each[1] is not observing))
            del self._watches[block]

    def _values(self) -> GraphValues:
        """The values of `graph`, by module."""
        lowered = self.record.stages["lowered"]
        return GraphValues(self.graph, lowered.inserted, lowered.carrying)

    def __deepcopy__(self, memo: dict[int, Any]) -> Explained:
        record, embedding = self.record, self._embedding
        memo[id(record)] = record
        twin: Explained = super().__deepcopy__(memo)  # type: ignore[assignment]
        twin._watches, twin._hook_flag = {}, copy.deepcopy(self._hook_flag, memo)  # shared by the copied submodules
        fronts = tuple(replace(front, module=copy.deepcopy(front.module, memo)) for front in self._fronts)
        twin._attach(record, fronts, copy.deepcopy(embedding[0], memo) if embedding else None, self.config)
        if self.segments is not None:
            twin._cut(self.segments)
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise InputError(
            f"pickle: an explained module cannot be pickled ({self.record.model_class}); write it to a file as data with "
            "lxt_fx.save(explained, path) and read it with lxt_fx.load(path)"
        )

    def _run_by(self, interpreter: Interpreter, bound: Mapping[str, Any]) -> Any:
        """The output for inputs by name, computed node by node by an interpreter of this graph. The interpreter's values
        are cleared afterwards: they may refer to hooks that refer to the interpreter, and would never be freed."""
        try:
            flat = interpreter.run(*pytree.tree_leaves(dict(bound)), enable_io_processing=False)
        finally:
            interpreter.env.clear()
        return pytree.tree_unflatten(flat, io_of(self.graph).out_spec)

    def _prepared(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Explained, dict[str, Any]]:
        """The module whose graph is valid for these inputs, and the inputs of that graph by name: this module, one that
        `dynamic="recapture"` adds, or one for calls with other inputs.

        Raises CallError for inputs that do not fit the graph.
        """
        named = self._named(args, kwargs)
        module = self._for_names_of(named)
        return module._fitting(with_fills(named, module.record.optional))

    def _for_names_of(self, named: Mapping[str, Any]) -> Explained:
        """The module whose graph is made for inputs of these names. Raises CallError if there is none, and if the model
        changed."""
        self._check_model()
        why = self._why_not(named)
        if why is None:
            return self
        fixed = any(name in self.record.constants for name in named)
        other = None if self._other_calls is None or fixed else self._other_calls.fitting(self, named)
        if other is None:
            raise CallError(why)
        other._check_model()
        if (why_not_either := other._why_not(named)) is not None:
            raise CallError(why_not_either)
        return other

    def _say_by_embeddings(self, named: Mapping[str, Any]) -> None:
        """Warns that a call by leaves without their tokens is answered as the model answers to that."""
        for front in self._fronts:
            if front.leaf in named and front.reads[0] not in named:
                warn_user(
                    f"{self.record.model_class} is called by {front.leaf} without {front.reads[0]}, and may answer "
                    "differently then; a graph for such calls is captured now, once. For the answer to the tokens give "
                    f"both, as explained.with_leaves({front.reads[0]}=...) does"
                )
                return

    def _fitting(self, filled: Mapping[str, Any]) -> tuple[Explained, dict[str, Any]]:
        """The module whose graph is valid for the sizes and values of these inputs, none of which is missing, and the
        inputs of that graph."""
        if self._recaptures is None:
            bound = self._bound(filled)
            self._check_sizes(bound)
            return self, bound
        fitting = self._recaptures.fitting(self, filled)
        return fitting, fitting._bound(filled)

    def _named(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs by name, without those that are None or constants of the graph. Those inside lists and dicts are named
        as the inputs of the graph are, if these are cut apart."""
        record = self.record
        order = record.order or record.called_with
        for value in args:
            if isinstance(value, Mapping) and set(value) <= {*order, *record.inputs} and "input_ids" in value:
                raise CallError(
                    f"{record.model_class}: a {type(value).__name__} with {', '.join(value)} was given as one input; give "
                    "what is in it by name, as the model takes it: explained(**inputs)"
                )
        if len(args) > len(order):
            raise CallError(f"{record.model_class}: called with {len(args)} inputs, captured with {len(order)}")
        positional = {self._for_position(*pair): pair[1] for pair in zip(order, args, strict=False)}
        given = positional | dict(kwargs)
        named = {
            name: value if isinstance(value, Tensor) else with_given_objects(value)
            for name, value in given.items()
            if not self._is_baked(name, value)
        }
        for name in self._reads & given.keys():
            if not isinstance(given[name], Tensor) and given[name] is not None:
                raise CallError(
                    f"{record.model_class}: {name} must be a tensor of token ids, got {type(given[name]).__name__}; a "
                    'tokenizer makes one of a text: explained(**tokenizer(text, return_tensors="pt"))'
                )
        if any(name not in record.called_with for name in self._reads):
            for name, value in list(named.items()):
                if not isinstance(value, Tensor) and name not in record.inputs:
                    named |= leaf_values({name: value})
        return named

    def _for_position(self, name: str, value: Any) -> str:
        """The name of a positional input. If a text is expected there, a floating-point tensor is its embeddings, and a
        tensor of whole numbers its tokens."""
        if not isinstance(value, Tensor):
            return name
        if not value.is_floating_point():
            return name.replace("inputs_embeds", "input_ids")
        leaves = [front.leaf for front in self._fronts if front.reads == (name,)]
        return leaves[0] if len(leaves) == 1 and name not in self.record.leaves else name

    @property
    def _reads(self) -> set[str]:
        return {read for front in self._fronts for read in front.reads}

    def _why_not(self, named: Mapping[str, Any]) -> str | None:
        """Why the graph is not made for inputs of these names; None if it is."""
        record, alone = self.record, self.record.given_alone
        reads = self._reads
        for name in named:
            if name not in record.called_with and name not in record.inputs and name not in reads:
                return self._not_captured(name)
        made = {front.leaf: front for front in self._fronts}
        missing = []
        for name in record.inputs:
            if name in named or name in record.optional:
                continue
            front = made.get(name)
            if front is None or not all(read in named for read in front.reads):
                missing.append(name if front is None else front.reads[0])
        if missing:
            return (
                f"{record.model_class}: the call has no {', '.join(dict.fromkeys(missing))}; the module was captured with "
                f"{', '.join(record.called_with)}"
            )
        for name, front in made.items():
            if name in named and name not in alone and not all(read in named for read in front.reads):
                return (
                    f"{record.model_class} answers to {name} alone differently than to {', '.join(front.reads)}, which it "
                    f"was captured with; give both, as explained.with_leaves({front.reads[0]}=...) does"
                )
        return None

    def _bound(self, filled: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs of the graph by name; leaves that are not given are computed from their tokens."""
        made = {front.leaf: front for front in self._fronts}
        bound = {name: filled[name] if name in filled else made[name](filled) for name in self.record.inputs}
        if is_compiling() or all(isinstance(value, Tensor) for value in bound.values()):
            return bound
        return in_captured_order(bound, io_of(self.graph).in_spec)

    def _check_model(self) -> None:
        """Raises ModelChangedError if the model was changed in a way that the graph cannot follow."""
        if not is_compiling() and self._model_state is not None:
            self._model_state.check(self.record.model_class)

    def _is_baked(self, name: str, value: Any) -> bool:
        baked = SWITCHES | dict(self.record.constants)
        if name in self.record.called_with:
            return value is None
        return value is None or (name in baked and not isinstance(value, Tensor) and bool(baked[name] == value))

    def _not_captured(self, name: str) -> str:
        record = self.record
        if name == "use_cache" and not record.constants.get(name):
            return f"{record.model_class}: an explained module has no cache (use_cache=False); leave use_cache out"
        if name in record.constants:
            return (
                f"{record.model_class}: {name}={record.constants[name]!r} is baked into the graph; transform the model "
                f"again with {name} among the example inputs"
            )
        if name == "input_ids" and "inputs_embeds" in record.inputs:
            return (
                f"{record.model_class}: this module was captured by inputs_embeds, and the model that it was made from is "
                "not there to capture it by ids: call it with inputs_embeds=lxt_fx.embed(explained, input_ids)"
            )
        if name == "labels":
            return f"{record.model_class}: labels were not captured; choose a logit of the output and call backward on it"
        known = {*record.inputs, *self._reads}
        within = next((outer for outer in record.called_with if f"{outer}_{name}" in known), None)
        if within is not None:
            return (
                f"{record.model_class}: {name} is inside the input {within}; give that input whole, as the model takes it: "
                f"explained({within}={{'{name}': ...}}), or {{'{within}': {{'{name}': ..., ...}}}} where inputs are named"
            )
        if self._other_calls is not None and name not in self._other_calls.takes:
            close = get_close_matches(name, [*record.called_with, *record.inputs, *self._other_calls.takes], n=1)
            meant = f"; did you mean {close[0]}?" if close else ""
            taken = ", ".join(dict.fromkeys([*record.called_with, *record.inputs]))
            return f"{record.model_class}: the model has no input {name}; this module takes {taken}{meant}"
        return (
            f"{record.model_class}: input {name} was not captured (captured: {', '.join(record.called_with)}); transform "
            f"the model again with {name} among the example inputs: transform(model, kwargs={{'{name}': ..., ...}})"
        )

    def _check_sizes(self, bound: dict[str, Any]) -> None:
        if is_compiling():
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
            if not holds(code, leaves) and not reads_a_one(guard, leaves):
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

_OBSERVING: ContextVar[tuple[tuple[Explained, Observing], ...]] = ContextVar("_OBSERVING", default=())
"""The modules that this thread (or coroutine) watches, each with the one that sees its calls."""

MOST_GRAPHS = 16
"""The most recaptured graphs that a module has at once; the least recently used one is dropped."""


class Recaptures:
    """Further graphs of one model, for inputs that its first graph is not valid for, each captured when it is first needed.

    `again` captures the model on inputs by name. A graph is valid for inputs of the sizes that it was captured for, if the
    model's Python code reads the same values from them as from the example.
    """

    def __init__(self, again: Callable[[Mapping[str, Any]], Explained]) -> None:
        self.again = again
        self._used: dict[Explained, int] = {}  # by when it was used last
        self._clock = itertools.count()

    @property
    def graphs(self) -> list[Explained]:
        """The graphs that were added, the one that was used last first."""
        return [module for module, _ in sorted(self._used.items(), key=lambda item: -item[1])]

    def fitting(self, first: Explained, given: Mapping[str, Any]) -> Explained:
        """The module whose graph is valid for these inputs, captured now if there is none. Raises what `transform`
        raises."""
        if _is_valid(first, given):
            return first
        found = self._known(given)
        if found is None:
            with one_capture():
                found = self._known(given) or self.again(_as_called(first, given))  # another thread may have captured it
                for module in self.graphs[MOST_GRAPHS - 1 :]:
                    del self._used[module]
        self._used[found] = next(self._clock)
        return found

    def _known(self, given: Mapping[str, Any]) -> Explained | None:
        return next((module for module in self.graphs if _is_valid(module, given)), None)


def _as_called(first: Explained, given: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs that the model itself takes: tokens, and no leaves that are made of them."""
    leaves = {front.leaf for front in first._fronts if all(read in given for read in front.reads)}
    return {name: value for name, value in given.items() if name not in leaves}


def _is_valid(module: Explained, given: Mapping[str, Any]) -> bool:
    if module._why_not(given) is not None:  # captured for a call by embeddings, and this one is by ids
        return False
    try:
        bound = module._bound(given)
        module._check_sizes(bound)
        if any(node.target in EXPECTATIONS for node in module.graph.nodes):
            with torch.no_grad():
                module.forward(**bound)
    except CallError:
        return False
    return True


class OtherCalls:
    """Further graphs of one model, for calls with other inputs than it was captured with: with `position_ids`, or by
    `inputs_embeds` where the model then answers differently. Each is captured when it is first needed.

    `again` transforms the model on inputs by name. `takes` are the names that the model's forward has for its inputs.
    """

    def __init__(self, again: Callable[[Mapping[str, Any]], Explained], takes: frozenset[str]) -> None:
        self.again, self.takes = again, takes
        self.by_names: dict[frozenset[str], Explained] = {}

    def fitting(self, first: Explained, named: Mapping[str, Any]) -> Explained | None:
        """The module for a call with these inputs, captured now if there is none; None for a call without inputs, with
        labels, of which no relevance can be read, and with inputs that the model does not name. Raises what `transform`
        raises."""
        names = frozenset(named)
        if not names or "labels" in names or not names <= self.takes:
            return None
        if names not in self.by_names:
            if is_compiling():
                raise CallError(
                    f"{first._why_not(named)}. A compiled module cannot capture the model for such calls; make one call "
                    "with these inputs before you compile"
                )
            first._say_by_embeddings(named)
            with one_capture():
                if names not in self.by_names:  # another thread may have captured it
                    self.by_names[names] = self._captured(first, named)
        return self.by_names[names]

    def _captured(self, first: Explained, named: Mapping[str, Any]) -> Explained:
        """A new graph for these inputs. Raises CallError if the inputs are such that the model fails on them, too."""
        try:
            return self.again(named)
        except InputError as error:
            raise CallError(f"{first._why_not(named)}; and it cannot be captured for this call: {error}") from error
