"""Captures that are kept: a model that is as it was when it was captured is not captured again.

A capture belongs to the state of its model: all that decides the graph (`facts_of`), and the settings of torch. It goes
with the model, which it does not hold. A call of the same kinds and of sizes that the graph is valid for takes it; another
call adds a capture of its own.
"""

from __future__ import annotations

import gc
import math
import threading
import weakref
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from lxt_fx.base.as_it_was import as_it_was
from lxt_fx.base.cache_files import LOG
from lxt_fx.base.errors import CallError
from lxt_fx.base.module_facts import Fact, TooManyFacts, facts_of
from lxt_fx.base.nodes import fixed_size
from lxt_fx.base.on_meta import on_meta
from lxt_fx.base.remembered_facts import Remembered, remembered
from lxt_fx.base.torch_internals import hooks_of_tensor, pytree
from lxt_fx.base.user_objects import user_classes
from lxt_fx.compiler.call_inputs import false_guard, of_other_size
from lxt_fx.compiler.captured_model import Begun, CapturedModel, copied, on_short_texts
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.model_changes import ModelState, Writes
from lxt_fx.compiler.options import Options
from lxt_fx.compiler.short_check import Checked, short_check
from lxt_fx.compiler.size_guards import compiled_guard
from lxt_fx.ops.expectations import EXPECTATIONS
from lxt_fx.ops.packed import packed_layer_of
from lxt_fx.packed.known import registered_in
from lxt_fx.passes.canonical.fill_missing import has_missing
from lxt_fx.passes.capture.called_by_leaf import leaf_names, leaf_values, tensor_leaves
from lxt_fx.passes.capture.capture import Captured, torch_state_restored
from lxt_fx.passes.capture.example import Example, token_embedding
from lxt_fx.passes.capture.settings import same_setting
from lxt_fx.passes.verify_gradient.verify_gradient import GradientProof
from lxt_fx.rule_table.table import RuleTable
from lxt_fx.rule_table.tables import TABLES

MOST_STATES, MOST_CAPTURES, MOST_MODULES = 4, 8, 4
"""The most states of a model, captures of a state, and modules of a capture, that are kept: those that were used last."""

MOST_REACHED = 20_000
"""How many objects are looked at to find out whether a capture would hold its model."""


@dataclass(slots=True, eq=False)
class KeptCapture:
    """A captured graph, to be copied and never edited, and what is asked of the calls that it is for. `calls` are the
    kinds of the example. With `begun` there is the canonical graph too, and the `modules` that were made of it."""

    calls: _Calls
    captured: Captured
    proofs: list[GradientProof]
    by_embeddings: bool
    has_packed: bool
    written: Writes
    sizes: Mapping[str, tuple[int | None, ...]]
    begun: Begun | None = None
    canonical: GraphModule | None = None
    not_kept: str = ""
    modules: list[Explained] = field(default_factory=list)
    guards: list[tuple[str, CodeType]] = field(init=False)

    def __post_init__(self) -> None:
        self.guards = [(guard, compiled_guard(guard)) for guard in self.captured.guards]
        self.canonical = None if self.begun is None else self.captured.gm

    def fits(self, example: Example, dynamic: bool) -> bool:
        """Whether the graph is that of a call with these inputs."""
        if not self.calls.are(example, dynamic) or self._proof_is_missing():
            return False
        own = self.as_captured(example)
        if own is None or (self.canonical is self.captured.gm and has_missing(own.kwargs)):
            return False
        leaves = leaf_values(own.kwargs)
        if of_other_size(self.sizes, leaves) is not None or false_guard(self.guards, leaves) is not None:
            return False
        return not any(node.target in EXPECTATIONS for node in self.captured.gm.graph.nodes) or self._takes(own)

    def as_captured(self, example: Example) -> Example | None:
        """The example with the inputs that the captured graph has; None if it cannot be one of its calls."""
        return example.as_captured(self.captured.example.kwargs, self.captured.example.optional)

    def _proof_is_missing(self) -> bool:
        """Whether the gradients were compared in vain, or could not be and the layers would have to be unpacked for it."""
        if not self.proofs or math.isnan(self.proofs[0].difference):
            return self.has_packed
        return not self.proofs[0].holds

    def _takes(self, example: Example) -> bool:
        """Whether the values that the model's code read are those of this example."""
        try:
            with torch_state_restored(), torch.no_grad(), as_it_was(self.captured.gm):  # which writes into its buffers
                self.captured.gm(**example.copied().kwargs)
        except CallError:
            return False
        return True

    def source(self, model: nn.Module, example: Example) -> CapturedModel:
        """The capture with a graph of its own, for this model and these inputs."""
        found = self.as_captured(example)
        assert found is not None, "it fits"
        example, captured, begun = found, self.captured, self.begun
        if self.canonical is None or has_missing(example.kwargs):
            begun = None  # `fill_missing` has to be a step on the way
        else:
            captured = replace(captured, gm=self.canonical)
        captured = copied_capture(captured)
        expected = None
        if not on_meta(model, example.kwargs):
            with torch_state_restored(), torch.no_grad():
                expected = example.call(model)
        embedding = token_embedding(model) if self.by_embeddings else None
        proofs = self.proofs if self.has_packed else []  # else the gradient is compared on these inputs
        state = state_of(model, captured.gm, begun, self.written)
        captured = replace(captured, example=example)
        source = CapturedModel(model, captured, expected, {}, state, proofs, embedding, begun=begun)
        return on_short_texts(source, self.sizes, Checked(example, expected))

    def short(self, model: nn.Module, example: Example) -> Checked | None:
        """A part of a long text that the gradient can be compared on, if this is one."""
        return short_check(model, example, self.captured, self.sizes)

    def begin(self, gm: GraphModule, begun: Begun) -> None:
        """Gets the canonical graph, which passes the model's gradient: later calls begin with a copy of it."""
        if self.canonical is None:
            self.canonical, self.begun = copied_capture(replace(self.captured, gm=gm)).gm, begun

    def finish(self, module: Explained) -> None:
        """Gets a module that was made of this capture and passed all checks. A copy of it is kept for calls with the same
        table and options, unless the table is the user's own, whose conditions may read what changes, or the module has
        values that were computed from those of the model."""
        if self.canonical is None or all(module.record.table is not table for table in TABLES.values()):
            return
        own = {id(x) for x in (*self.canonical.parameters(), *self.canonical.buffers())}
        if module.record.merged or not own.issuperset(map(id, (*module.parameters(), *module.buffers()))):
            return
        _to_front(self.modules, module._again(module.record))
        del self.modules[MOST_MODULES:]

    def finished(self, table: RuleTable, options: Options) -> Explained | None:
        """The module of an earlier call with this table and these options, to be copied and never changed."""
        return next((x for x in list(self.modules) if x.record.table is table and x._options == options), None)


@dataclass(frozen=True, slots=True, eq=False)
class _Calls:
    """Which calls a capture is for, but for their sizes: the names, nesting and kinds of their inputs, their settings, and
    how the example was made."""

    dynamic: bool
    spec: pytree.TreeSpec
    leaves: tuple[Any, ...]
    shapes: tuple[tuple[int, ...], ...]
    constants: Mapping[str, Any]
    made: tuple[Any, ...]

    @staticmethod
    def of(example: Example, dynamic: bool) -> _Calls:
        """Those of an example."""
        leaves, spec = pytree.tree_flatten(dict(example.kwargs))
        shapes = tuple(tuple(leaf.shape) for leaf in leaves if isinstance(leaf, Tensor))
        made = (
            tuple(example.kwargs), example.optional, example.dynamic_dims, example.made, example.positional, example.order,
        )  # fmt: skip
        return _Calls(dynamic, spec, tuple(map(_kind, leaves)), shapes, dict(example.constants), made)

    def are(self, example: Example, dynamic: bool) -> bool:
        """Whether a call with this example is one of these."""
        other = _Calls.of(example, dynamic)
        kinds = [(each.dynamic, each.spec, each.leaves, each.made, each.constants.keys()) for each in (self, other)]
        if kinds[0] != kinds[1]:
            return False
        same = all(same_setting(value, other.constants[name]) for name, value in self.constants.items())
        return same and (dynamic or self.shapes == other.shapes)


def _kind(leaf: Any) -> Hashable:
    """What the graph has written into it of an input, but for its sizes."""
    if not isinstance(leaf, Tensor):
        return type(leaf), repr(leaf)
    return type(leaf), leaf.dtype, leaf.device, leaf.dim(), leaf.is_contiguous()


@dataclass(slots=True, eq=False)
class _State:
    """A model as it was, with the settings of torch, and what was captured of it then."""

    facts: Remembered
    settings: Hashable
    captures: list[KeptCapture]

    def parameters(self) -> Iterator[int]:
        """The parameters that the captures hold, by identity."""
        for kept in self.captures:
            yield from map(id, kept.captured.gm.parameters())


class _Kept:
    """What is kept of each model that is alive, by its identity."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.models: dict[int, tuple[weakref.ref[nn.Module], list[_State]]] = {}

    def states(self, model: nn.Module) -> list[_State]:
        """The states of a model that something was captured of, the newest first."""
        found = self.models.get(id(model))
        if found is None or found[0]() is not model:
            key, models = id(model), self.models
            forget = partial(_forget, models, key)  # while Python ends, a lambda would no longer find the name
            found = self.models[key] = weakref.ref(model, forget), []
        return found[1]


def _forget(models: dict[int, tuple[weakref.ref[nn.Module], list[_State]]], key: int, ref: weakref.ref[nn.Module]) -> None:
    if key in models and models[key][0] is ref:
        models.pop(key, None)


_KEPT = _Kept()


def forget_captures() -> None:
    """Drops everything that is kept in this process."""
    with _KEPT.lock:
        _KEPT.models.clear()


def forget_model(model: nn.Module) -> None:
    """Drops what is kept of one model."""
    with _KEPT.lock:
        _KEPT.models.pop(id(model), None)


def forget_capture(model: nn.Module, kept: KeptCapture) -> None:
    """Drops one capture of a model."""
    with _KEPT.lock:
        for state in _KEPT.states(model) if id(model) in _KEPT.models else ():
            state.captures[:] = [each for each in state.captures if each is not kept]


def find_capture(model: nn.Module, example: Example, dynamic: bool) -> KeptCapture | None:
    """What was captured of the model as it is now, for calls like this one; None if there is nothing."""
    if id(model) not in _KEPT.models:
        return None
    now = model_now(model)
    with _KEPT.lock:
        states = [state for state in _KEPT.states(model) if state.settings == settings_for(model)]
    if isinstance(now, str) or not states:
        return None
    for state in states:
        if state.facts.is_same(now):
            for kept in list(state.captures):
                if kept.fits(example, dynamic):
                    _to_front(state.captures, kept)
                    return kept
    return None


def model_now(model: nn.Module) -> Remembered | str:
    """The model as it is, or why that cannot be compared later."""
    facts = facts_now(model)
    return facts if isinstance(facts, str) else remembered(facts)


def facts_now(model: nn.Module) -> list[Fact] | str:
    """The facts of the model; a sentence if there are too many, an object cannot be looked into, or another thread changes
    it at this moment."""
    try:
        return facts_of(model)
    except TooManyFacts as why:
        return str(why)
    except Exception as why:  # objects may raise anything when they are looked into
        return f"an object in it cannot be looked into ({type(why).__name__}: {why!s:.200})"


def sizes_of(captured: Captured) -> dict[str, tuple[int | None, ...]]:
    """The sizes of the inputs of a captured graph by name, None for a free one."""
    names, inputs = leaf_names(captured.example.kwargs), captured.gm.graph.find_nodes(op="placeholder")
    values = {name: node.meta.get("val") for name, node in zip(names, inputs, strict=True)}
    return {name: tuple(map(fixed_size, x.shape)) for name, x in values.items() if isinstance(x, Tensor)}


def state_of(model: nn.Module, gm: GraphModule, begun: Begun | None, written: Writes) -> ModelState:
    """What a graph took from its model."""
    if begun is None:
        return ModelState(model, [gm], gm.graph, written)
    return ModelState(model, [gm, *(front.module for front in begun.fronts)], begun.capture.graph, written)


def keep_capture(
    source: CapturedModel,
    asked: Example,
    dynamic: bool,
    written: Writes,
    before: Remembered | str,
    after: Remembered | str | None,
    sizes: Mapping[str, tuple[int | None, ...]],
) -> KeptCapture:
    """The captured graph with what it was captured for, for the calls that come. It is not kept, and serves one call only,
    where it would hold its model, or where the model has parts that cannot be compared later; `not_kept` says so. `before`
    are the facts of the model before it was captured, and `after` as its own forward leaves it, where that writes
    something."""
    captured = copied_capture(source.captured)
    kept = KeptCapture(
        _Calls.of(asked, dynamic), captured, source.proofs, source.embedding is not None,
        bool(source.packed.found), written, sizes, source.begun,
    )  # fmt: skip
    model, now = source.model, model_now(source.model)
    kept.not_kept = _why_not(kept, model, asked, before, now)
    if kept.not_kept or isinstance(before, str) or isinstance(now, str):
        LOG.info("captures of %s are not kept: %s", type(model).__name__, kept.not_kept)
        return kept
    with _KEPT.lock:
        states = _KEPT.states(model)
        own = set(map(id, model.parameters()))
        states[:] = [each for each in states if own.issuperset(each.parameters())]  # else memory of old weights stays
        settings, now = settings_for(model), now.less_changed(before)
        now = now.less_changed(after) if isinstance(after, Remembered) else now
        state = next((each for each in states if each.settings == settings and each.facts.is_same(now)), None)
        if state is None:
            states.insert(0, state := _State(now, settings, []))
        _to_front(states, state)
        _to_front(state.captures, kept)
        del states[MOST_STATES:], state.captures[MOST_CAPTURES:]
    return kept


def _why_not(
    kept: KeptCapture, model: nn.Module, asked: Example, before: Remembered | str, now: Remembered | str
) -> str:
    """Why a capture serves one call only; empty if it can be kept."""
    for facts in (before, now):
        if isinstance(facts, str):
            return facts
        if facts.uncertain:
            return f"{facts.uncertain:.200} is of a kind that cannot be compared later"
    if _has_own_objects(asked):
        return "an input is an object of a class of its own, whose attributes nothing compares"
    return "what is kept of it would hold the model itself" if _reaches(_held_by(kept, model), model) else ""


def copied_capture(captured: Captured) -> Captured:
    """The capture with a copy of its graph."""
    return copied(CapturedModel(nn.Module(), captured, None, {})).captured


def _to_front(several: list[Any], one: Any) -> None:
    with _KEPT.lock:
        several[:] = [one, *(each for each in several if each is not one)]


def settings_for(model: nn.Module) -> tuple[Hashable, ...]:
    """What capture depends on beside the model and the inputs. Autocast is not among it: a graph is that of the model
    without."""
    cuda: Any = torch.backends.cuda
    return (
        torch.get_default_dtype(), torch.get_default_device(), torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(), cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(), torch.backends.mkldnn.enabled, registered_in(model),
    )  # fmt: skip


def _has_own_objects(example: Example) -> bool:
    """Whether an input is an object of a class of the user, whose other attributes nothing compares."""
    return bool([*user_classes(pytree.tree_structure(dict(example.kwargs)))])


def _held_by(kept: KeptCapture, model: nn.Module) -> list[Any]:
    """What a capture holds beside tensors and the graph itself."""
    packed = [layer for x in kept.captured.gm.buffers() if (layer := packed_layer_of(x)) is not None]
    tensors = tensor_leaves(kept.captured.example.kwargs).values()
    hooks = [hooks_of_tensor(x) for x in (*tensors, *kept.captured.gm.parameters())]
    return [packed, kept.captured.example.constants, getattr(model, "config", None), hooks]


def _reaches(objects: Iterable[Any], model: nn.Module) -> bool:
    """Whether one of these objects holds the model, or so many others that nobody can tell."""
    todo, seen = list(objects), set[int]()
    while todo:
        one = todo.pop()
        if one is model:
            return True
        if id(one) in seen or isinstance(one, (type, ModuleType, BuiltinFunctionType, CodeType, Tensor, str)):
            continue
        seen.add(id(one))
        if len(seen) > MOST_REACHED:
            return True
        if isinstance(one, FunctionType):
            todo += [one.__closure__, one.__defaults__, one.__kwdefaults__]  # and not all globals of its module
        elif isinstance(one, partial):
            todo += [one.func, one.args, one.keywords]
        else:
            todo += gc.get_referents(one)
    return False
