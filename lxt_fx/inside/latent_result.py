"""What `latent` returns: relevance and activation at places inside a model, by token and by unit."""

from __future__ import annotations

import fnmatch
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, SupportsIndex

import torch
from torch import Tensor

from lxt_fx.attribution.places import InsidePlace, nearest
from lxt_fx.base.errors import InputError, UnknownNameError
from lxt_fx.base.public_door import public
from lxt_fx.inside.inside_call import InsideCall
from lxt_fx.inside.latent_value import LatentValue
from lxt_fx.inside.units import units_of
from lxt_fx.results.explanation import Explanation
from lxt_fx.results.origin import ExplainedNumber
from lxt_fx.views.listed import Listed

if TYPE_CHECKING:
    from pandas import DataFrame
    from rich.console import RenderableType

TARGETS = "targets"


@dataclass(frozen=True, slots=True)
class TopUnit:
    """One unit of a place. `relevance` is summed over its tokens; `token` and `position` are where it is largest in
    absolute value, and `activation` the value there, for a head the norm of it."""

    place: str
    unit: int
    relevance: float
    activation: float
    position: int
    token: str


class TopUnits(Listed, Mapping[str, tuple[int, ...]]):
    """Units by place: what `steer` takes, and `conditional` too where they are of one place. `found` are the same one by
    one, largest first."""

    def __init__(self, found: Sequence[TopUnit]) -> None:
        self.found = tuple(found)
        self._units: dict[str, tuple[int, ...]] = {}
        for each in self.found:
            self._units[each.place] = (*self._units.get(each.place, ()), each.unit)

    def __getitem__(self, place: str) -> tuple[int, ...]:
        return self._units[place]

    def __iter__(self) -> Iterator[str]:
        return iter(self._units)

    def __len__(self) -> int:
        return len(self._units)

    def __repr__(self) -> str:
        return f"TopUnits({self._units})"

    def __rich__(self) -> RenderableType:
        from lxt_fx.inside.latent_view import units_view

        return units_view(self.found)


class Latent(Listed, Mapping[str, LatentValue]):
    """Relevance and activation at places inside a model, by the name of the place, in the order asked for.

    `explanations` has, for each example, the relevance of its inputs from the same backward. `several` says whether a list
    of targets was given; only then the tensors of `relevance` have an axis of targets.
    """

    def __init__(
        self, values: Mapping[str, LatentValue], explanations: tuple[Explanation, ...], several: bool
    ) -> None:
        self._values, self.explanations, self.several = dict(values), explanations, several

    def __getitem__(self, name: str) -> LatentValue:
        if name not in self._values:
            raise UnknownNameError(f"latent: {name!r} was not asked for; {nearest(name, self._values)}")
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    @property
    def relevance(self) -> Mapping[str, Tensor]:
        """The relevance at each place: [*axes] of the place, with an axis of targets before them if a list was given."""
        return {name: value.relevance if self.several else value.relevance[0] for name, value in self._values.items()}

    @property
    def activation(self) -> Mapping[str, Tensor]:
        """The value at each place, [*axes]."""
        return {name: value.activation for name, value in self._values.items()}

    @property
    def axes(self) -> Mapping[str, tuple[str, ...]]:
        """The names of the axes of `relevance`."""
        before = (TARGETS,) if self.several else ()
        return {name: (*before, *value.axes) for name, value in self._values.items()}

    def numbers(self, example: int = 0) -> tuple[ExplainedNumber, ...]:
        """What was explained in an example: one number for each target."""
        return self.explanations[self._example(example)].numbers

    def total(self, name: str, target: int = 0, example: int = 0) -> float:
        """All relevance at a place, for one target of one example."""
        value = self[name].relevance[self._target(target)]
        return float(value[self[name].rows(self._example(example))].double().sum())

    def heads(self, places: str = "attention.*.heads", target: int = 0, example: int = 0) -> Tensor:
        """The relevance of each head, [layers, heads]: what it gave, summed over tokens and size. A layer with fewer heads
        has NaN behind them. Raises UnknownNameError if no such place was asked for, InputError for one without heads."""
        found, at = [], self._example(example)
        for name in self.fitting(places):
            if "heads" not in self[name].axes:
                raise InputError(f"latent: {name} has the axes {', '.join(self[name].axes)}, and none of them is of heads")
            found.append(self[name].by_unit()[self._target(target), self[name].rows(at)].sum(0))
        return torch.nn.utils.rnn.pad_sequence(found, batch_first=True, padding_value=torch.nan)

    def fitting(self, places: str) -> list[str]:
        """The names of the places that fit a pattern. Raises UnknownNameError if there are none."""
        found = [name for name in self if fnmatch.fnmatchcase(name, places)]
        if not found:
            raise UnknownNameError(f"latent: no place was asked for that fits {places!r}; {nearest(places, self._values)}")
        return found

    def top(
        self,
        k: int = 10,
        places: str = "mlp.*.neurons",
        *,
        target: int = 0,
        example: int = 0,
        by: str = "relevance",
        positions: int | Sequence[int] | slice | None = None,
    ) -> TopUnits:
        """The k units of these places with the largest relevance, summed over tokens; `by="absolute"` counts what speaks
        against the answer too, `by="activation"` takes the largest activation at any token. Each with the token where its
        relevance is largest in absolute value, by activation that with the largest activation.

        `positions` are those of the text that count, by default all: with `slice(1, None)` the first token, on which
        many models rest whatever the text says, is left out. Raises InputError for a `k` below 1, another `by` and
        positions that the text does not have, and for neurons of experts, UnknownNameError if no such place was asked for.
        """
        if by not in ("relevance", "absolute", "activation"):
            raise InputError(f'latent: by must be "relevance", "absolute" or "activation", got {by!r}')
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise InputError(f"latent: k must be a whole number of at least 1, got {k!r}")
        scored: list[tuple[float, TopUnit]] = []
        for name in self.fitting(places):
            units = _units(self[name], self._target(target), self._example(example), by, positions)
            score = {"relevance": units.relevance, "absolute": units.relevance.abs(), "activation": units.largest}[by]
            best = score.topk(min(k, len(score)))
            scored += [(float(s), units.one(name, int(unit))) for s, unit in zip(best.values, best.indices, strict=True)]
        scored.sort(key=lambda one: -one[0])
        return TopUnits([unit for _, unit in scored[:k]])

    def to_dataframe(self, places: str = "*", by: str = "unit") -> DataFrame:
        """The relevance as lines of a data frame: for each target, example and place one line by `unit`, by `token`, or for
        each `value` of a token and a unit.

        Raises InputError if pandas is not installed.
        """
        from lxt_fx.inside.latent_frame import latent_frame

        return latent_frame({name: self[name] for name in self.fitting(places)}, len(self.explanations), by)

    def to_html(self, path: str | Path) -> None:
        """Writes one self-contained page in which each example and its inside are explored (`lxt_fx.explore`)."""
        public("explore")(self, path=path)

    def __repr__(self) -> str:
        numbers = "; ".join(number.said for number in self.numbers())
        return f"Latent({numbers}, {len(self)} places)"

    def __rich__(self) -> RenderableType:
        from lxt_fx.inside.latent_view import latent_view

        totals = {name: self.total(name) for name in self}
        return latent_view(self.numbers()[0], totals, len(self.explanations), len(self.numbers()))

    def _repr_html_(self) -> str:
        return self.explanations[0]._repr_html_() + super()._repr_html_()

    def _target(self, target: int) -> int:
        return _index(target, len(self.numbers()), "target")

    def _example(self, example: int) -> int:
        return _index(example, len(self.explanations), "example")


def _index(index: int, count: int, what: str) -> int:
    if isinstance(index, bool) or not isinstance(index, SupportsIndex):
        raise InputError(f"latent: {what} must be a whole number, got {index!r}")
    if not -count <= operator.index(index) < count:
        raise InputError(f"latent: there is no {what} {index}; there are {count} (0 to {count - 1})")
    return operator.index(index) % count


@dataclass(frozen=True, slots=True, eq=False)
class _Units:
    """Units of one place in one example: relevance summed over tokens, the largest activation at any token, and the index
    among its own tokens of the one that each unit is shown with. `names` are the position and the token of each."""

    relevance: Tensor
    largest: Tensor
    best: Tensor
    activation: Tensor
    names: Sequence[tuple[int, str]]

    def one(self, place: str, unit: int) -> TopUnit:
        at = int(self.best[unit])
        return TopUnit(place, unit, float(self.relevance[unit]), float(self.activation[at, unit]), *self.names[at])


def _units(
    value: LatentValue, target: int, example: int, by: str, positions: int | Sequence[int] | slice | None
) -> _Units:
    relevance, activation = value.by_token_and_unit()[target], value.activation_by_token_and_unit()
    places: list[tuple[int, int]] = []
    names: list[tuple[int, str]] = []
    for row in value.rows(example):
        columns, tokens = value.text(row)
        chosen = _chosen(positions, len(columns), value.place.name)
        places += [(row, columns[position]) for position in chosen]
        names += [(position, tokens[position]) for position in chosen]
    own, values = (torch.stack([each[place] for place in places]) for each in (relevance, activation))
    best = values.argmax(0) if by == "activation" else own.abs().argmax(0)
    return _Units(own.sum(0), values.amax(0), best, values, names)


def _chosen(positions: int | Sequence[int] | slice | None, count: int, place: str) -> list[int]:
    """The positions that count, of the `count` that a text has."""
    if isinstance(positions, slice):
        positions = range(count)[positions]
    return units_of(positions, count, place, "latent", "position")


def made_value(inside: InsideCall, place: InsidePlace, activation: Tensor, relevance: Tensor) -> LatentValue:
    """The value at a place as a person reads it: [batch, ...], whatever the model does with the examples of a batch, and
    with the names of its tokens."""
    layout = inside.layouts[place.name]
    activation, relevance = layout.of(activation.detach().cpu()), layout.of(relevance, 1)
    value = LatentValue(place, layout, activation, relevance)
    texts = None if layout.token_axis is None else inside.tokens.of(place, activation.shape[layout.token_axis])
    if texts is None or len(texts) != len(activation):
        return value
    names, columns = tuple(text.tokens for text in texts), tuple(text.columns for text in texts)
    return LatentValue(place, layout, activation, relevance, names, columns)
