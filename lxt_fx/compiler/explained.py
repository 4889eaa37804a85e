"""The module that `transform` returns: a torch.fx GraphModule that is called like the model."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from types import CodeType
from typing import Any, Never, Protocol

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.fx.graph import PythonCode

from lxt_fx.base.errors import CallError, InputError, SizeGuardError
from lxt_fx.base.one_capture import is_compiling
from lxt_fx.base.one_line import one_line
from lxt_fx.base.torch_internals import convert_all, copied_graph, io_of, pytree, recompile_as, set_forward, share_hooks
from lxt_fx.compiler.call_inputs import (
    check_valid,
    graph_inputs,
    named_inputs,
    repeated_settings,
    settings_in,
    why_not,
)
from lxt_fx.compiler.conversions import Convert, check_conversion, move_graph, new_device
from lxt_fx.compiler.hooks import HookFlag, HookRunner, hooked_now, make_hookable
from lxt_fx.compiler.model_changes import ModelState
from lxt_fx.compiler.module_values import GraphValues
from lxt_fx.compiler.nested_inputs import by_leaf, in_captured_order, with_leaves_in
from lxt_fx.compiler.options import Options
from lxt_fx.compiler.own_hooks import OwnHooks, called_with_hooks, own_hooks
from lxt_fx.compiler.quick_attributes import QUICK, quick_forward
from lxt_fx.compiler.record import Record
from lxt_fx.compiler.size_guards import compiled_guard
from lxt_fx.ops.packed import packed_layer_of
from lxt_fx.passes.canonical.cut_at_lookups import Front, unlike_captured
from lxt_fx.passes.capture.example import with_fills
from lxt_fx.passes.fuse.dtypes import DtypesMatched
from lxt_fx.passes.fuse.fuse import fuse
from lxt_fx.passes.segments.by_segments import Called, Segments, forward_by_segments
from lxt_fx.passes.segments.compile_kinds import CompiledKinds
from lxt_fx.passes.segments.find_segments import segments_of
from lxt_fx.passes.segments.recompute import recomputed_in_backward, recomputing


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


class GraphsBySize(Protocol):
    """Further graphs of a model, for inputs that its first graph is not valid for (`Recaptures`)."""

    @property
    def graphs(self) -> list[Explained]:
        """Those that there are."""

    def fitting(self, first: Explained, given: Mapping[str, Any]) -> Explained:
        """The module whose graph is valid for these inputs."""


class GraphsByNames(Protocol):
    """Further graphs of a model, for calls with other inputs or settings than its first graph has (`OtherCalls`)."""

    @property
    def takes(self) -> frozenset[str]:
        """The names that the model has for its inputs."""

    def fitting(self, first: Explained, inputs: Mapping[str, Any], settings: Mapping[str, Any]) -> Explained | None:
        """The module whose graph has these inputs and settings, if there can be one."""


INSTEAD = {
    "get_input_embeddings": "lxt_fx.embed(explained, input_ids) returns what tokens are looked up as, as a leaf",
    "generate": "generate with the model, and explain what it wrote with lxt_fx.answer_relevance",
    "gradient_checkpointing_enable": 'lxt_fx.transform(model, checkpoint="sqrt") recomputes values in the backward',
    "save_pretrained": "lxt_fx.save(explained, path) writes it as data",
    "run_with_cache": "lxt_fx.watch records values and their relevance; lxt_fx.bridges.transformer_lens takes their names",
}
"""What colleagues look for who come from other libraries, and what there is instead."""

_FUSED = "_fused_before"
"""The attribute of a module, while it is made, that holds the fused graph of another one with an equal graph."""


class Explained(OwnHooks, GraphModule):
    """A rewritten model, which is called like the model. After `logit.backward()`, relevance is `leaf * leaf.grad`. In
    explicit form, relevance is `leaf.grad` after `logit.backward(logit)`.

    It shares the model's parameters (the same objects) and computes no gradient for them. `record` says how it was made.
    `graph` is the graph that the rules were checked on. `fused` is the graph that a plain call runs, made by `recompile`.
    `segments` are the parts of it that the backward recomputes, None if there are none.
    """

    record: Record
    fused: Graph
    segments: Segments | None = None
    _kinds: CompiledKinds | None = None
    _recaptures: GraphsBySize | None = None
    _beyond_guards: GraphsBySize | None = None
    _other_calls: GraphsByNames | None = None
    _options: Options | None = None
    _model_state: ModelState | None = None
    _known_values: GraphValues | None = None

    def __init__(self, root: nn.Module | dict[str, Any], graph: Graph, class_name: str = "Explained") -> None:
        super().__init__(root, graph, class_name)
        self._guards: list[tuple[str, CodeType]] = []
        self._fronts: tuple[Front, ...] = ()
        self._repeated: dict[str, Any] = {}
        self._embedding: tuple[nn.Module, ...] = ()
        self._watches: dict[object, None] = {}  # open blocks of `watch`, in any thread
        self._steers: dict[object, None] = {}  # the same of `steer`
        self._first: weakref.ref[Explained] | None = None  # the module of which this is a further graph for other calls
        self._hook_flag, self.own_hook_flag = HookFlag(), HookFlag()
        make_hookable(self, self._hook_flag)

    def __repr__(self) -> str:
        if "record" not in self.__dict__:  # while it is made
            return f"{type(self).__name__}()"
        record = self.record
        rules = one_line(record.table_name, 40)
        return f"Explained({one_line(record.model_class, 60)}, rules {rules}, {len(self.graph.nodes)} nodes)"

    def _attach(
        self, record: Record, fronts: tuple[Front, ...], embedding: nn.Module | None = None, config: Any = None
    ) -> None:
        self.record, self._fronts = record, fronts
        self.config = config  # the model's own, for the names of its classes; a few of its facts after load
        self._repeated = repeated_settings(io_of(self.graph).out_spec)
        self._guards = [(guard, compiled_guard(guard)) for guard in record.guards]
        # in a tuple, so that it does not become a submodule: only `embed` uses it, not the graph
        self._embedding = () if embedding is None else (embedding,)

    def recompile(self) -> PythonCode:
        """Makes the fused graph and compiles the forward from it, segment by segment if there are segments. `graph` does
        not change: the audit, `watch` and the certificate read it."""
        made, self._known_values = self.__dict__.pop(_FUSED, None), None
        self.fused = fuse(self) if made is None else made
        code = recompile_as(self, self.fused)
        self.__dict__.pop(QUICK, None)
        cut = self._cut_for_calls(self.fused)
        set_forward(self, quick_forward(type(self).forward) if cut is None else cut)
        return code

    def compile(self, *args: Never, **options: Any) -> None:
        """Compiles the module in place, each kind of layer once: layers that are the same graph with other weights share
        one compiled function, so the first call takes as long for 80 layers as for 8. What is before, between and after
        the layers runs as it is. `options` are those of `torch.compile`. The functions are compiled when they are first
        called.

            explained = lxt_fx.transform(model)
            explained.compile()

        The layers are those of `transform(checkpoint="layers")`, or the segments of the module's own `checkpoint`.
        `torch.compile(explained)` compiles the whole as one graph: its first call takes longer the more layers there are,
        and later ones save what the borders of the layers cost. Raises InputError for arguments without a name.
        """
        if args:
            raise InputError("compile: give the options of torch.compile by name: explained.compile(dynamic=True)")
        self._kinds = CompiledKinds(options)
        self.recompile()

    def _cut_for_calls(self, graph: Graph) -> Callable[..., Any] | None:
        """The forward of a graph of this module by segments, if they are recomputed or compiled; else None."""
        kinds = self._kinds
        if self.segments is None and kinds is None:
            return None
        called: Called = recomputing if kinds is None else kinds
        if self.segments is not None and kinds is not None:
            called = lambda segment: recomputed_in_backward(kinds(segment), segment)  # noqa: E731
        segments = self.segments or segments_of(self, self.fused, "layers")
        return forward_by_segments(graph, segments, called)

    def _cut(self, segments: Segments | None) -> None:
        """Sets the segments that the backward recomputes."""
        self.segments = segments
        self.recompile()

    def _apply(self, fn: Convert, recurse: bool = True) -> Explained:
        """What torch's `to`, `half`, `cuda` and the like call. Raises InputError, unless it changes nothing or moves a
        module that was loaded from a file."""
        own = self.record.table is None and all(packed_layer_of(buffer) is None for buffer in self.buffers())
        device = new_device(self, fn) if own else None
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

    @property
    def device(self) -> torch.device:
        """The device of the parameters, as a transformers model has it; the CPU where there are none."""
        return next((each.device for each in (*self.parameters(), *self.buffers())), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first floating-point parameter, as a transformers model has it; torch's default where there is
        none."""
        tensors = (*self.parameters(), *self.buffers())
        return next((each.dtype for each in tensors if each.is_floating_point()), torch.get_default_dtype())

    def __getattr__(self, name: str) -> Any:
        if name in INSTEAD and "record" in self.__dict__:
            raise AttributeError(f"an explained module has no {name!r}: {INSTEAD[name]}")
        return super().__getattr__(name)

    def get_submodule(self, target: str) -> nn.Module:
        """As for any module. Raises AttributeError, which says how to read its output, for a module of the model that has
        neither parameters nor buffers: it is not there."""
        try:
            return super().get_submodule(target)
        except AttributeError as error:
            if "record" not in self.__dict__ or target not in self._values().calls:
                raise
            raise AttributeError(
                f"{target} has no parameters, so an explained module does not hold it, and no hook on it could run; read "
                f'its output and relevance with lxt_fx.watch(explained, "{target}")'
            ) from error

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return called_with_hooks(self, self._plain_call, args, kwargs)

    def _plain_call(self, *args: Any, **kwargs: Any) -> Any:
        """A call without the hooks on the module itself."""
        fitting, bound = self._prepared(args, kwargs)
        return self._called(fitting, bound)

    def with_leaves(self, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Tensor]]:
        """The output of a call, and the leaves of this call by name, at which relevance is read after `backward()`.

            output, leaves = explained.with_leaves(input_ids=ids, attention_mask=mask)
            output.logits[0, -1, 42].backward()
            relevance = (leaves["inputs_embeds"] * leaves["inputs_embeds"].grad).sum(-1)  # [batch, tokens]

        The leaves are those of `record.leaves` that this call has: the values that tokens are looked up as, such as
        `inputs_embeds` [batch, tokens, hidden] for `input_ids`, and the float inputs. Each is a new tensor. If the tokens
        of one input are looked up several times, their relevance is the sum over these leaves.

        Raises what a call raises, and CallError where gradients are off: nothing could be read from the leaves.
        """
        if not torch.is_grad_enabled():
            raise CallError(
                f"{self.record.model_class}: gradients are off (torch.no_grad or inference_mode), so no relevance can "
                "reach the leaves; call with_leaves with gradients on, or the module itself for its output"
            )
        leaves: dict[str, Tensor] = {}

        def call(*args: Any, **kwargs: Any) -> Any:
            fitting, bound = self._prepared(args, kwargs)
            leaves.update(fitting._new_leaves(bound))
            return self._called(fitting, with_leaves_in(bound, leaves))

        return called_with_hooks(self, call, args, kwargs), leaves

    def _new_leaves(self, bound: Mapping[str, Any]) -> dict[str, Tensor]:
        """The float inputs at which relevance is read, each as a new tensor that requires a gradient."""
        given = by_leaf(bound)
        found = {name: given[name] for name in self.record.leaves if isinstance(given.get(name), Tensor)}
        floats = {name: value for name, value in found.items() if value.is_floating_point() or value.is_complex()}
        return {name: value.detach().clone().requires_grad_(True) for name, value in floats.items()}

    def _called(self, fitting: Explained, bound: Mapping[str, Any]) -> Any:
        """The output of the graph that fits, with what observes a call of this module. Raises CallError where a text is
        longer than the model has positions, or another index is outside of its table."""
        if (self._watches and not is_compiling()) or self._hook_flag.is_set:
            observers = self._observers_of(fitting)
            if observers:
                return fitting._run_by(_Observed(fitting, observers), bound)
        if fitting is not self:
            return fitting._called(fitting, bound)
        try:
            called = self.forward if self.own_hook_flag.is_set else super().__call__  # its own hooks run around the call
            return called(**bound)
        except IndexError as error:
            shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in bound.items() if isinstance(x, Tensor))
            raise CallError(
                f"{self.record.model_class}: an index is outside of its table ({error}); is a text longer than the model "
                f"has positions, or a position or type not one of its own? The inputs: {shapes}"
            ) from error
        except RuntimeError as error:
            if is_compiling() or (why := unlike_captured(self.graph, bound)) is None:
                raise
            raise CallError(f"{self.record.model_class}: {why} ({error})") from error

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
        return observers

    def _refuse_hooks(self, function: str) -> None:
        """Raises CallError, in the name of a function that runs the graph in its own way, if the module or submodules have
        hooks."""
        hooked = [*hooked_now(self, self._hook_flag), *(["the module itself"] if own_hooks(self) else [])]
        if hooked:
            raise CallError(
                f"{function}: {hooked[0]} has a hook, and {function} does not call the module, so no hook would "
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

    @contextmanager
    def _steered_by(self, steering: Steering) -> Iterator[None]:
        """Calls of this thread inside the `with` block run what `steering` makes of the graph that fits them."""
        block, outer = object(), _STEERING.get()
        self._steers[block] = None
        _STEERING.set((*outer, (self, steering)))
        try:
            yield
        finally:
            _STEERING.set(tuple(each for each in _STEERING.get() if each[1] is not steering))
            del self._steers[block]

    def _as_steered(self, fitting: Explained) -> Explained:
        """The graph that fits a call, with the changes of the blocks of `steer` that this thread is in. Raises CallError
        where code is compiled, which would run changed after the block."""
        first = self if self._first is None else self._first() or self
        if not first._steers:
            return fitting
        if is_compiling():
            raise CallError(
                f"{self.record.model_class}: the module is steered, and a compiled call would stay so after the block; "
                "call the explained module itself, not what torch.compile made of it"
            )
        for module, steering in _STEERING.get():
            if module is first:
                fitting = steering(fitting)
        return fitting

    def _refuse_steering(self, function: str) -> None:
        """Raises CallError, in the name of a function that makes of this module what outlasts a call, inside a block of
        `steer`."""
        if any(module is self for module, _ in _STEERING.get()):
            raise CallError(
                f"{function}: the module is steered, and what {function} makes of it would stay so after the block; call "
                f"{function} before the block, or after it"
            )

    def _values(self) -> GraphValues:
        """The values of `graph`, by module. They are found again where the graph was compiled again."""
        if self._known_values is None or self._known_values.graph is not self.graph:
            lowered = self.record.stages["lowered"]
            self._known_values = GraphValues(self.graph, lowered.inserted, lowered.carrying)
        return self._known_values

    def _again(self, record: Record) -> Explained:
        """A module with the same parameters, another copy of the graph and this record, of a module that nobody changed: it
        runs the same fused graph."""
        graph = copied_graph(self.graph, self.graph)
        twin = Explained.__new__(Explained, self, graph)
        twin.__dict__[_FUSED] = self.fused
        Explained.__init__(twin, self, graph)
        twin._attach(record, self._fronts, next(iter(self._embedding), None), self.config)
        twin._model_state, twin._options = self._model_state, self._options
        if self.segments is not None:
            twin._cut(self.segments)
        return twin

    def _edited(self, edit: Callable[[Graph], None]) -> Explained:
        """A module with the same parameters and record, whose graph is a copy that `edit` has changed. Its fused graph is
        made from that. It is not called like the model: it takes the bound inputs of the graph, by `forward`."""
        graph = copied_graph(self.graph, self.graph)
        edit(graph)
        graph.lint()
        twin = Explained(self, graph)
        twin.record = self.record
        twin._options = self._options
        if self.segments is not None:
            checkpoint = None if self._options is None else self._options.checkpoint
            twin._cut(segments_of(twin, twin.fused, checkpoint or "sqrt"))
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Explained:
        self._check_model()  # also so that the copy's further graphs are of the model that its first graph is of
        record, embedding, self._known_values = self.record, self._embedding, None
        memo[id(record)] = record
        twin: Explained = super().__deepcopy__(memo)  # type: ignore[assignment]
        twin._watches, twin._steers, twin._first = {}, {}, None
        twin._hook_flag = copy.deepcopy(self._hook_flag, memo)  # shared by the copied submodules
        share_hooks(self, twin)
        twin.own_hook_flag = HookFlag()
        twin.own_hook_flag.set()  # the first call finds whether there are any
        fronts = tuple(replace(front, module=copy.deepcopy(front.module, memo)) for front in self._fronts)
        twin._attach(record, fronts, copy.deepcopy(embedding[0], memo) if embedding else None, self.config)
        further = self._recaptures, self._beyond_guards, self._other_calls
        twin._options = self._options
        twin._recaptures, twin._beyond_guards, twin._other_calls = copy.deepcopy(further, memo)
        if self.segments is not None or self._kinds is not None:
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
        module, inputs = self._for_names_of(self._named(args, kwargs))
        return module._fitting(with_fills(inputs, module.record.optional))

    def _for_names_of(self, named: Mapping[str, Any]) -> tuple[Explained, dict[str, Any]]:
        """The module whose graph is made for inputs of these names and for these settings, and the inputs without the
        settings. Raises CallError if there is none, and if the model changed."""
        self._check_model()
        settings = self._settings_in(named)
        inputs = {name: value for name, value in named.items() if name not in settings}
        why = self._why_not(named)
        if why is None:
            return self, inputs
        other = None if self._other_calls is None else self._other_calls.fitting(self, inputs, settings)
        if other is None:
            raise CallError(why)
        other._check_model()
        if (why_not_either := other._why_not(inputs)) is not None:
            raise CallError(why_not_either)
        other._first = weakref.ref(self)
        return other, inputs

    def _settings_in(self, named: Mapping[str, Any]) -> dict[str, Any]:
        return settings_in(self.record, self._fronts, named)

    def _fitting(self, filled: Mapping[str, Any]) -> tuple[Explained, dict[str, Any]]:
        """The module whose graph is valid for the sizes and values of these inputs, none of which is missing, as it is
        steered, and the inputs of that graph."""
        fitting, bound = self._valid_for(filled)
        return self._as_steered(fitting), bound

    def _valid_for(self, filled: Mapping[str, Any]) -> tuple[Explained, dict[str, Any]]:
        further = self._recaptures
        if further is None:
            bound = self._bound(filled)
            try:
                self._check_sizes(bound)
                return self, bound
            except SizeGuardError:
                if (further := self._beyond_guards) is None:
                    raise
        fitting = further.fitting(self, filled)
        return fitting, fitting._bound(filled)

    def _named(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs by name, without those that are None or constants of the graph."""
        return named_inputs(self.record, self._fronts, args, kwargs, self._repeated)

    def _why_not(self, named: Mapping[str, Any]) -> str | None:
        """Why the graph is not made for inputs of these names; None if it is."""
        takes = None if self._other_calls is None else self._other_calls.takes
        return why_not(self.record, self._fronts, named, takes)

    def _bound(self, filled: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs of the graph by name; leaves that are not given are computed from their tokens."""
        bound = graph_inputs(self.record, self._fronts, filled)
        if is_compiling() or all(isinstance(value, Tensor) for value in bound.values()):
            return bound
        return in_captured_order(bound, io_of(self.graph).in_spec)

    def _check_sizes(self, bound: Mapping[str, Any]) -> None:
        """Raises CallError for sizes and values that the graph is not valid for."""
        if not is_compiling():
            check_valid(self.record, self._guards, io_of(self.graph).in_spec, bound)

    def _check_model(self) -> None:
        """Raises ModelChangedError if the model was changed in a way that the graph cannot follow."""
        if not is_compiling() and self._model_state is not None:
            self._model_state.check(self.record.model_class)


def check_explained(module: object, function: str) -> Explained:
    """The module itself. Raises InputError, in the name of `function`, unless `transform` or `load` made it."""
    if not isinstance(module, Explained):
        raise InputError(
            f"{function}: {type(module).__name__} was not made by lxt_fx.transform or lxt_fx.load, and has no graph of its "
            f"own; give lxt_fx.{function} what lxt_fx.transform(model) returns, and call that"
        )
    return module


Observing = Callable[[Explained], Observer]
"""Makes the observer for the graph that a call runs."""

_OBSERVING: ContextVar[tuple[tuple[Explained, Observing], ...]] = ContextVar("_OBSERVING", default=())
"""The modules that this thread (or coroutine) watches, each with the one that sees its calls."""

Steering = Callable[[Explained], Explained]
"""Makes the module with changes for the graph that a call runs, or gives the one that it made before."""

_STEERING: ContextVar[tuple[tuple[Explained, Steering], ...]] = ContextVar("_STEERING", default=())
"""The modules that this thread (or coroutine) steers, the outermost block first."""


@contextmanager
def unsteered() -> Iterator[None]:
    """Calls of this thread inside the block run no changes of `steer`: what they compute is to outlast those."""
    before = _STEERING.set(())
    try:
        yield
    finally:
        _STEERING.reset(before)
