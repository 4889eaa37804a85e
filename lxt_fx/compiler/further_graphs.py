"""Further graphs of one model, for calls that its first graph is not made for."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch

from lxt_fx.base.errors import CallError, InputError
from lxt_fx.base.one_capture import is_compiling, one_capture
from lxt_fx.base.user_objects import holds_tensors
from lxt_fx.base.warn_user import warn_user
from lxt_fx.compiler.call_inputs import has_other_dims
from lxt_fx.compiler.explained import Explained
from lxt_fx.ops.expectations import EXPECTATIONS
from lxt_fx.passes.capture.example import OUTPUT_SETTINGS, PASSED_ON, WITH_A_TEXT

MOST_GRAPHS = 16
"""The most recaptured graphs that a module has at once; the least recently used one is dropped."""


Setting = bool | int | float | str
"""What a graph can have as a constant."""

CallKind = tuple[frozenset[str], frozenset[tuple[str, str, Setting]]]
"""What a graph is captured for: the names of the inputs, and the settings among them, each with its type and value, beside
the number of dims of inputs that the first graph takes with other dims (a mask [batch, 1, tokens, tokens])."""


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
    """Further graphs of one model, for calls with other inputs than it was captured with: with `position_ids`, with
    `output_hidden_states=True`, or by `inputs_embeds` where the model then answers differently. Each is captured when it is
    first needed.

    `again` transforms the model on inputs by name. `takes` are the names that the model's forward has for its inputs. If it
    has `**kwargs` too, it also takes what comes with a text and what is asked of the output (`passes_on`), and may ignore
    it; another name is an error.
    """

    def __init__(
        self, again: Callable[[Mapping[str, Any]], Explained], takes: frozenset[str], passes_on: bool = False
    ) -> None:
        self.again, self.takes, self.passes_on = again, takes, passes_on
        self.graphs: dict[CallKind, Explained] = {}

    def fitting(self, first: Explained, named: Mapping[str, Any]) -> Explained | None:
        """The module for a call with these inputs, captured now if there is none; None for a call without inputs and with
        inputs that the model does not name. Raises what `transform` raises."""
        settings = {name: value for name, value in named.items() if isinstance(value, Setting)}
        taken = self.takes | WITH_A_TEXT | PASSED_ON | OUTPUT_SETTINGS if self.passes_on else self.takes
        inputs = [value for name, value in named.items() if name not in settings]
        if not inputs or not named.keys() <= taken:
            return None
        if not all(map(holds_tensors, inputs)):
            return None
        dims = {(name, "dims", x.dim()) for name, x in named.items() if has_other_dims(first.record, name, x)}
        kind = frozenset(named), frozenset((name, type(x).__name__, x) for name, x in settings.items()) | dims
        if kind not in self.graphs:
            if is_compiling():
                raise CallError(
                    f"{first._why_not(named)}. A compiled module cannot capture the model for such calls; make one call "
                    "with these inputs before you compile"
                )
            _say_by_embeddings(first, named)
            with one_capture():
                if kind not in self.graphs:  # another thread may have captured it
                    self._add(kind, self._captured(first, named))
        return self.graphs[kind]

    def _add(self, kind: CallKind, module: Explained) -> None:
        """A call with a number may come with any number, so the oldest graph of such calls is dropped."""
        with_settings = [each for each in self.graphs if each[1]]
        if kind[1] and len(with_settings) >= MOST_GRAPHS:
            del self.graphs[with_settings[0]]
        self.graphs[kind] = module

    def _captured(self, first: Explained, named: Mapping[str, Any]) -> Explained:
        """A new graph for these inputs. Raises CallError if the inputs are such that the model fails on them, too."""
        try:
            return self.again(named)
        except InputError as error:
            raise CallError(f"{first._why_not(named)}; and it cannot be captured for this call: {error}") from error


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
