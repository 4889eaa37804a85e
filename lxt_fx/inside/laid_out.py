"""A value inside a model with its examples in a dimension of their own, the first one, wherever the model has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from lxt_fx.attribution.place_axes import token_axis, unit_axis
from lxt_fx.attribution.places import InsidePlace
from lxt_fx.base.errors import InputError
from lxt_fx.inputs.given import Example

BATCH = "batch"


@dataclass(frozen=True, slots=True)
class LaidOut:
    """How a value becomes one with the dimensions `axes`, of which the first holds the examples. `rows` are the entries of
    that dimension that belong to each example of the call; None where they cannot be told apart. `at` is the dimension of
    the value that holds the examples, and `inner` the size of what its first dimension holds beside them."""

    axes: tuple[str, ...]
    rows: tuple[tuple[int, ...], ...] | None
    at: int | None
    inner: int | None = None

    @property
    def unit_axis(self) -> int:
        """The axis whose indices are the units of the place."""
        return unit_axis(self.axes)

    @property
    def token_axis(self) -> int | None:
        """The axis of tokens: that of the queries where the place is a pattern of attention. None if there is none."""
        return token_axis(self.axes)

    def of(self, value: Tensor, before: int = 0) -> Tensor:
        """The value laid out; a view of it. It has `before` further dimensions, which stay in front."""
        if self.inner is not None:
            sizes = (-1, self.inner) if self.at == 0 else (self.inner, -1)
            value = value.reshape(*value.shape[:before], *sizes, *value.shape[before + 1 :])
        return value.unsqueeze(before) if self.at is None else value.movedim(before + self.at, before)

    def back(self, laid_out: Tensor, sizes: Sequence[int]) -> Tensor:
        """A tensor that is broadcast to a value laid out, as one that is broadcast to the value, which has these sizes."""
        if self.at is None:
            return laid_out.squeeze(0)
        found = laid_out.movedim(0, self.at)
        if self.inner is None:
            return found
        pair = (sizes[0] // self.inner, self.inner)
        return found.expand(*(pair if self.at == 0 else pair[::-1]), *found.shape[2:]).flatten(0, 1)


def laid_out(place: InsidePlace, value: Tensor, examples: Sequence[Example], batches: Mapping[str, int]) -> LaidOut:
    """How the value at a place is laid out. `batches` has the size of the first dimension of each input of the call.

    Where the graph does not say how a value holds the examples, a single example still has all of it.
    """
    axes, whole = place.axes, ((0,),) if len(examples) == 1 else None
    if BATCH in axes:
        at = axes.index(BATCH)
        count = value.shape[at]
        rows = _rows(examples, batches, count)
        return LaidOut((BATCH, *axes[:at], *axes[at + 1 :]), rows, at)
    if place.merged:
        names = tuple(name for name, _ in place.merged)
        at = names.index(BATCH)
        inner = _inner(place.merged[1 - at][1], value.shape[0], examples, batches)
        if inner is not None:
            return LaidOut((BATCH, *axes), _rows(examples, batches, value.shape[0] // inner), at, inner)
    return LaidOut((BATCH, *axes), whole, None)


def _inner(size: str, both: int, examples: Sequence[Example], batches: Mapping[str, int]) -> int | None:
    """The size of what the first dimension holds beside the examples: a fixed number, or what is left of it. None where the
    inputs have batches of several sizes."""
    if size.isdigit():
        return int(size)
    counts = {sum(map(len, rows)) for rows in _all_rows(examples, batches)}
    count = counts.pop() if len(counts) == 1 else 0
    return both // count if count and both % count == 0 else None


def _rows(examples: Sequence[Example], batches: Mapping[str, int], count: int) -> tuple[tuple[int, ...], ...] | None:
    """The entries of each example, among `count`. Where inputs have batches of different sizes, those that have as many say
    so, if they agree."""
    if len(examples) == 1:
        return (tuple(range(count)),)
    fitting = {rows for rows in _all_rows(examples, batches) if sum(map(len, rows)) == count}
    return fitting.pop() if len(fitting) == 1 else None


def _all_rows(examples: Sequence[Example], batches: Mapping[str, int]) -> set[tuple[tuple[int, ...], ...]]:
    """The entries of each example in each input that all examples have a part of, and no part of which is left out."""
    found = set()
    for leaf, size in batches.items():
        rows = tuple(tuple(sorted(set(_entries(example, leaf)))) for example in examples)
        if all(rows) and sum(map(len, rows)) == size:
            found.add(rows)
    return found


def _entries(example: Example, leaf: str) -> list[int]:
    within = [place.within for place in example.places if place.leaf == leaf]
    return [n for each in within for n in ([each] if isinstance(each, int) else range(each.start or 0, each.stop))]


def refuse_merged(place: InsidePlace, function: str) -> InputError:
    """The error for a value of which no part is known to belong to an example."""
    return InputError(
        f"{function}: the graph does not say which part of {place.name} [{', '.join(place.shape)}] belongs to which "
        "example of the batch; give the examples one at a time"
    )
