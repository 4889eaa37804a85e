"""Which graph of a module a call runs, and the inputs of that graph."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from types import CodeType
from typing import Any, Protocol, Self, TypeVar

from torch import Tensor, nn
from torch.fx import Graph

from lxt_fx.base.errors import CallError, SizeGuardError
from lxt_fx.base.one_capture import is_compiling
from lxt_fx.base.torch_internals import io_of
from lxt_fx.compiler.call_inputs import (
    check_valid,
    graph_inputs,
    named_inputs,
    repeated_settings,
    settings_in,
    why_not,
)
from lxt_fx.compiler.model_changes import ModelState
from lxt_fx.compiler.nested_inputs import by_leaf, in_captured_order
from lxt_fx.compiler.record import Record
from lxt_fx.compiler.size_guards import compiled_guard
from lxt_fx.compiler.steered_module import SteeredModule
from lxt_fx.passes.canonical.cut_at_lookups import Front
from lxt_fx.passes.capture.example import with_fills

M = TypeVar("M")


class GraphsBySize(Protocol[M]):
    """Further graphs of a model, for inputs that its first graph is not valid for (`Recaptures`)."""

    @property
    def graphs(self) -> list[M]:
        """Those that there are."""

    def fitting(self, first: M, given: Mapping[str, Any]) -> M:
        """The module whose graph is valid for these inputs."""


class GraphsByNames(Protocol[M]):
    """Further graphs of a model, for calls with other inputs or settings than its first graph has (`OtherCalls`)."""

    @property
    def takes(self) -> frozenset[str]:
        """The names that the model has for its inputs."""

    def fitting(self, first: M, inputs: Mapping[str, Any], settings: Mapping[str, Any]) -> M | None:
        """The module whose graph has these inputs and settings, if there can be one."""


class FittingModule(SteeredModule):
    """A module that finds the graph for the inputs of a call: its own, or a further one of its model."""

    _recaptures: GraphsBySize[Self] | None = None
    _beyond_guards: GraphsBySize[Self] | None = None
    _other_calls: GraphsByNames[Self] | None = None
    _model_state: ModelState | None = None

    def __init__(self, root: nn.Module | dict[str, Any], graph: Graph, class_name: str = "Explained") -> None:
        super().__init__(root, graph, class_name)
        self._guards: list[tuple[str, CodeType]] = []
        self._repeated: dict[str, Any] = {}

    def _attach(
        self,
        record: Record,
        fronts: tuple[Front, ...],
        embedding: nn.Module | None = None,
        config: Any = None,
        generation: Any = None,
    ) -> None:
        self.record, self._fronts = record, fronts
        self.config = config  # the model's own, for the names of its classes; a few of its facts after load
        self.generation_config = generation  # the model's own, for the tokens that end a text; only these after load
        self._repeated = repeated_settings(io_of(self.graph).out_spec)
        self._guards = [(guard, compiled_guard(guard)) for guard in record.guards]
        # in a tuple, so that it does not become a submodule: only `embed` uses it, not the graph
        self._embedding = () if embedding is None else (embedding,)

    def _new_leaves(self, bound: Mapping[str, Any]) -> dict[str, Tensor]:
        """The float inputs at which relevance is read, each as a new tensor that requires a gradient."""
        given = by_leaf(bound)
        found = {name: given[name] for name in self.record.leaves if isinstance(given.get(name), Tensor)}
        floats = {name: value for name, value in found.items() if value.is_floating_point() or value.is_complex()}
        return {name: value.detach().clone().requires_grad_(True) for name, value in floats.items()}

    def _prepared(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Self, dict[str, Any]]:
        """The module whose graph is valid for these inputs, and the inputs of that graph by name: this module, one that
        `dynamic="recapture"` adds, or one for calls with other inputs.

        Raises CallError for inputs that do not fit the graph.
        """
        module, inputs = self._for_names_of(self._named(args, kwargs))
        return module._fitting(with_fills(inputs, module.record.optional))

    def _for_names_of(self, named: Mapping[str, Any]) -> tuple[Self, dict[str, Any]]:
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

    def _fitting(self, filled: Mapping[str, Any]) -> tuple[Self, dict[str, Any]]:
        """The module whose graph is valid for the sizes and values of these inputs, none of which is missing, as it is
        steered, and the inputs of that graph."""
        fitting, bound = self._valid_for(filled)
        return self._as_steered(fitting), bound

    def _valid_for(self, filled: Mapping[str, Any]) -> tuple[Self, dict[str, Any]]:
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
