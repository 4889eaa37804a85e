"""Further graphs of one model, for calls that its first graph is not made for."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lxt_fx.base.errors import CallError, InputError, SizeGuardError
from lxt_fx.base.one_capture import is_compiling, one_capture
from lxt_fx.base.user_objects import holds_tensors
from lxt_fx.base.warn_user import warn_user
from lxt_fx.compiler.call_inputs import has_other_dims
from lxt_fx.compiler.explained import Explained
from lxt_fx.ops.expectations import EXPECTATIONS
from lxt_fx.passes.capture.example import PASSED_ON, WITH_A_TEXT, with_fills
from lxt_fx.passes.capture.settings import MAY_BE_REPEATED, OMITTED, same_setting

MOST_GRAPHS = 16
"""The most graphs of each kind that a module has at once. The recaptured one that was not used for the longest time is
dropped, and of those for other calls the oldest."""


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """What further graphs are captured from: a model, or an explained module whose graphs get another table. `again`
    captures it on inputs by name. A copy has a copy of the model, with the parameters of the explained module that is
    copied with it."""

    model: nn.Module
    again: Callable[[Any, Mapping[str, Any]], Explained]

    def __call__(self, inputs: Mapping[str, Any]) -> Explained:
        return self.again(self.model, inputs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Source:
        tried = dict(memo)
        try:
            model = copy.deepcopy(self.model, tried)
        except Exception as error:  # whatever an object of the user raises; such a copy has its first graph only
            return Source(nn.Module(), _no_model(type(self.model).__name__, error))
        memo.update(tried)
        return Source(model, self.again)


def _no_model(name: str, why: Exception) -> Callable[[Any, Mapping[str, Any]], Explained]:
    def refuse(model: Any, inputs: Mapping[str, Any]) -> Explained:
        raise CallError(
            f"{name}: this call needs another graph, and this copy of an explained module has no model to capture it from, "
            f"since copy.deepcopy of the model failed ({type(why).__name__}: {why}); call the module that was copied"
        )

    return refuse


class Recaptures:
    """Further graphs of one model, for inputs that its first graph is not valid for, each captured when it is first needed.

    `again` captures the model on inputs by name. A graph is valid for inputs of the sizes that it was captured for, if the
    model's Python code reads the same values from them as from the example.
    """

    def __init__(self, again: Source) -> None:
        self.again = again
        self._used: dict[Explained, int] = {}  # by when it was used last
        self._clock = itertools.count()

    def __deepcopy__(self, memo: dict[int, Any]) -> Recaptures:
        return type(self)(copy.deepcopy(self.again, memo))

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
                found = self._known(given) or self._captured(first, given)  # another thread may have captured it
                for module in self.graphs[MOST_GRAPHS - 1 :]:
                    del self._used[module]
        self._used[found] = next(self._clock)
        return found

    def _captured(self, first: Explained, given: Mapping[str, Any]) -> Explained:
        return self.again(_as_called(first, given))

    def _known(self, given: Mapping[str, Any]) -> Explained | None:
        return next((module for module in self.graphs if _is_valid(module, given)), None)


class BeyondGuards(Recaptures):
    """Further graphs for sizes that are free in the first graph but that one of its guards refuses: a text of more than one
    chunk in a Mamba2. The user did not ask for further captures, so each is announced by a warning."""

    def _captured(self, first: Explained, given: Mapping[str, Any]) -> Explained:
        """A new graph for these inputs. Raises CallError if the model fails on them, too."""
        try:
            first._check_sizes(first._bound(given))
        except CallError as why:
            said = str(why).partition("; transform the model again")[0]
        warn_user(
            f"{said}; a graph for such inputs is captured now, once (transform(..., dynamic=\"recapture\") does so without "
            "this warning)"
        )
        try:
            return super()._captured(first, given)
        except InputError as error:
            raise CallError(f"{said}; and it cannot be captured for this call: {error}") from error


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
    `inputs_embeds` where the model then answers differently; and for calls with other settings. Each is captured when it is
    first needed.

    `again` transforms the model on inputs by name. `takes` are the names that the model's forward has for its inputs. If it
    has `**kwargs` too (`passes_on`), it also takes what comes with a text and what each model of transformers takes, and
    may ignore it; another name is an error.
    """

    def __init__(self, again: Source, takes: frozenset[str], passes_on: bool = False) -> None:
        self.again, self.takes, self.passes_on = again, takes, passes_on
        self.graphs: tuple[_Graph, ...] = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> OtherCalls:
        return OtherCalls(copy.deepcopy(self.again, memo), self.takes, self.passes_on)

    def fitting(self, first: Explained, inputs: Mapping[str, Any], settings: Mapping[str, Any]) -> Explained | None:
        """The module for a call with these inputs and settings, captured now if there is none; None for a call without
        inputs and with inputs that the model does not name. Raises what `transform` raises."""
        names = inputs.keys() | settings.keys()
        record, passed_on = first.record, WITH_A_TEXT | PASSED_ON | MAY_BE_REPEATED.keys() if self.passes_on else ()
        known = {*self.takes, *passed_on, *record.constants, *record.to_repeat, *record.called_with}
        if not inputs or not names <= known:
            return None
        if not all(map(holds_tensors, inputs.values())):
            return None
        dims = {name: x.dim() for name, x in inputs.items() if has_other_dims(record, name, x)}
        found, refused = self._known(inputs, settings, dims)
        if found is None:
            why = first._why_not({**inputs, **settings}) if refused is None else _said_of_sizes(refused)
            if is_compiling():
                raise CallError(
                    f"{why}. A compiled module cannot capture the model for such calls; make one call with these inputs "
                    "before you compile"
                )
            _say_by_embeddings(first, inputs)
            _say_settings(first, settings)
            with one_capture():
                found, _ = self._known(inputs, settings, dims)  # another thread may have captured it
                if found is None:
                    found = self._captured({**inputs, **settings}, str(why))
                    graph = _Graph(frozenset(inputs), dict(settings), dims, found)
                    self.graphs = (*self.graphs[-MOST_GRAPHS + 1 :], graph)
        return found

    def _known(
        self, inputs: Mapping[str, Any], settings: Mapping[str, Any], dims: Mapping[str, int]
    ) -> tuple[Explained | None, str | None]:
        """The graph for such calls. If there is none for these sizes, but for others: which sizes the last of these does
        not have. A decoder's text of one token, say, is captured with that length."""
        refused = None
        for graph in self.graphs:
            if graph.is_for(inputs, settings, dims):
                refused = _refused_sizes(graph.module, inputs)
                if refused is None:
                    return graph.module, None
        return None, refused

    def _captured(self, given: Mapping[str, Any], why: str) -> Explained:
        """A new graph for these inputs. Raises CallError if the inputs are such that the model fails on them, too."""
        try:
            return self.again(given)
        except InputError as error:
            raise CallError(f"{why}; and it cannot be captured for this call: {error}") from error


@dataclass(frozen=True, slots=True, eq=False)
class _Graph:
    """A graph for calls with inputs of these names and with these settings. `dims` counts the dims of inputs that the first
    graph takes with other dims (a mask [batch, 1, tokens, tokens])."""

    names: frozenset[str]
    settings: Mapping[str, Any]
    dims: Mapping[str, int]
    module: Explained

    def is_for(self, inputs: Mapping[str, Any], settings: Mapping[str, Any], dims: Mapping[str, int]) -> bool:
        return (
            self.names == inputs.keys()
            and self.dims == dims
            and self.settings.keys() == settings.keys()
            and all(same_setting(value, settings[name]) for name, value in self.settings.items())
        )


def _said_of_sizes(refused: str) -> str:
    """Which sizes a graph does not have, with a warning that another is captured."""
    said = refused.partition("; transform the model again")[0]
    warn_user(f"{said}; a graph for such inputs is captured now, once")
    return said


def _refused_sizes(module: Explained, inputs: Mapping[str, Any]) -> str | None:
    """Why a graph is not valid for inputs of these sizes; None if it is, or if it captures further ones by itself."""
    if is_compiling():
        return None
    try:
        module._check_sizes(module._bound(with_fills(inputs, module.record.optional)))
    except SizeGuardError:
        return None
    except CallError as error:
        return None if module._recaptures is not None else str(error)
    return None


def give_further(found: Explained, explained: Explained, source: Source) -> None:
    """Gives a module that was made from an explained one the ways to further graphs that this has: `source` makes each from
    the graph that this has for such inputs."""
    if isinstance(explained._other_calls, OtherCalls):
        found._other_calls = OtherCalls(source, explained._other_calls.takes, explained._other_calls.passes_on)
    if explained._recaptures is not None:
        found._recaptures = Recaptures(source)
    if explained._beyond_guards is not None:
        found._beyond_guards = BeyondGuards(source)


def without_omitted(given: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a call as the model gets them."""
    return {name: value for name, value in given.items() if value is not OMITTED}


def _say_by_embeddings(first: Explained, named: Mapping[str, Any]) -> None:
    """Warns that a call by leaves without their tokens is answered as the model answers to that."""
    for front in first._fronts:
        if front.leaf in named and front.reads[0] not in named:
            warn_user(
                f"{first.record.model_class} is called by {front.leaf} without {front.reads[0]}, and may answer "
                "differently then; a graph for such calls is captured now, once. For the answer to the tokens give "
                f"both, as explained.with_leaves({front.reads[0]}=...) does"
            )
            return


def _say_settings(first: Explained, settings: Mapping[str, Any]) -> None:
    """Warns that a call has other settings than the example, so that no one waits for a capture without knowing why."""
    own = first.record.constants
    others = {name: value for name, value in settings.items() if name not in own or not same_setting(own[name], value)}
    if not others:
        return
    called = [f"without {name}" if value is OMITTED else f"with {name}={value!r}" for name, value in others.items()]
    had = [f"{name}={own[name]!r}" if name in own else f"no {name}" for name in others]
    warn_user(
        f"{first.record.model_class} is called {' and '.join(called)}, and was captured with {', '.join(had)}; a graph for "
        "such calls is captured now, once"
    )
