"""The result of `explain` and of every call like it: the relevance of each input for the numbers that were explained."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex, Unpack, overload

from lxt_fx.base.errors import InputError
from lxt_fx.base.json_file import write_json
from lxt_fx.base.one_line import one_line
from lxt_fx.base.saved_json import Saved, read_json
from lxt_fx.results.account import Account as Account
from lxt_fx.results.account import combined
from lxt_fx.results.arithmetic import combined_numbers, combined_parts
from lxt_fx.results.first_part import NotInThisExplanation as NotInThisExplanation
from lxt_fx.results.first_part import OfFirstPart
from lxt_fx.results.look import Look, asked
from lxt_fx.results.merging import Merge, merged_parts
from lxt_fx.results.origin import ABSOLUTE, SOME, joined
from lxt_fx.results.origin import ExplainedNumber as ExplainedNumber
from lxt_fx.results.origin import Origin as Origin
from lxt_fx.results.part import TARGET, Part
from lxt_fx.results.place import PlaceRelevance, place_relevance
from lxt_fx.results.plain import from_plain, packed, to_plain
from lxt_fx.results.selecting import of_number, of_places
from lxt_fx.results.show import sheet_of, top_places
from lxt_fx.results.shown import Shown
from lxt_fx.results.words import Span

if TYPE_CHECKING:
    from pandas import DataFrame

    from lxt_fx.views.sheet import Sheet

Index = SupportsIndex | slice

LONGEST_FILE = 2**31
"""The most bytes of a JSON file that is read."""


class PlaceOutOfRange(InputError, IndexError):
    """There is no place or explained number with this index. An IndexError too, as indexing raises elsewhere."""


@dataclass(frozen=True, eq=False, repr=False)  # with slots, setting a property is a TypeError of dataclasses
class Explanation(OfFirstPart, Shown):
    """How much each place of the inputs of one example moved the explained numbers up (positive) or down (negative).

    `parts` are the inputs, the one that a person asks about first. `numbers` are the explained numbers: one, unless a list
    of targets was asked for; then `axes` of every part starts with "target". `account` is None until it was computed.

    As with an array, `len`, iteration and indexing go along the first axis of the first part. Of several explained numbers,
    each is an Explanation of that number, for all parts. Else `explanation[3]` is a `PlaceRelevance` (a token with its
    relevance), `explanation[3:7]` an Explanation of these places of the first part, and of a picture `explanation[2, 5]` is
    one place, `explanation[2:4, 0:3]` a piece.
    """

    parts: tuple[Part, ...]
    numbers: tuple[ExplainedNumber, ...]
    origin: Origin
    account: Account | None = None

    def __post_init__(self) -> None:
        names = [part.name for part in self.parts]
        if not names or len(set(names)) < len(names):
            raise InputError(f"an explanation needs parts of different names, got {names}")
        counts = {len(part.values) if part.several else None for part in self.parts}
        if counts not in ({None}, {len(self.numbers)}) or counts == {None} and len(self.numbers) != 1:
            shapes = {part.name: part.axes for part in self.parts}
            raise InputError(
                f"an explanation of {len(self.numbers)} numbers has the axes {shapes}; the first axis of each part is "
                f"{TARGET!r}, as long as there are numbers, or there is one number and no such axis"
            )

    # along the first axis

    def __len__(self) -> int:
        return len(self.parts[0].values)

    def __iter__(self) -> Iterator[Explanation | PlaceRelevance]:
        return (self[at] for at in range(len(self)))

    @overload
    def __getitem__(self, index: slice) -> Explanation: ...

    @overload
    def __getitem__(self, index: SupportsIndex | tuple[Index, ...]) -> Explanation | PlaceRelevance: ...

    def __getitem__(self, index: Index | tuple[Index, ...]) -> Explanation | PlaceRelevance:
        keys = index if isinstance(index, tuple) else (index,)
        main = self.parts[0]
        if len(keys) > len(main.axes):
            raise PlaceOutOfRange(f"explanation[...]: {len(keys)} indices for the axes {list(main.axes)}")
        checked = [_checked(key, size, axis) for key, size, axis in zip(keys, main.values.shape, main.axes, strict=False)]
        if not main.several:
            return self._places(checked)
        found = self._of_number(checked[0])
        return found if len(checked) == 1 else found._places(checked[1:])

    def _of_number(self, key: int | slice) -> Explanation:
        numbers = self.numbers[key] if isinstance(key, slice) else (self.numbers[key],)
        if not numbers or isinstance(key, slice) and (key.step or 1) < 1:
            raise PlaceOutOfRange(
                f"explanation[...]: {key} holds none of the {len(self)} explained numbers, or goes backwards"
            )
        return replace(self, parts=tuple(of_number(part, key) for part in self.parts), numbers=numbers, account=None)

    def _places(self, keys: Sequence[int | slice]) -> Explanation | PlaceRelevance:
        main = self.parts[0]
        places = [key for key in keys if not isinstance(key, slice)]
        if len(places) == len(main.place_shape) and not main.several:
            flat = 0
            for at, size in zip(places, main.place_shape, strict=True):
                flat = flat * size + at
            return place_relevance(main, flat)
        if all(key == slice(None) for key in keys):
            return self
        slices = [key if isinstance(key, slice) else slice(key, key + 1) for key in keys]
        parts = (of_places(main, slices, "explanation[...]"),)
        numbers = tuple(replace(n, said=n.said if n.said.endswith(SOME) else n.said + SOME) for n in self.numbers)
        return replace(self, parts=parts, numbers=numbers, account=None)

    def top(self, k: int = 10) -> tuple[PlaceRelevance, ...]:
        """The k places of largest absolute relevance of all parts, strongest first. Each unpacks as position, token,
        relevance."""
        if k < 1:
            raise InputError(f"Explanation.top: k must be at least 1, got {k}")
        self._number("top(k)")
        return top_places(self.parts, k)

    # sums

    def merge(
        self,
        what: Merge | Sequence[Span] | None = None,
        *,
        patch: int | None = None,
        seconds: float | None = None,
        part: str | None = None,
    ) -> Explanation:
        """The relevance of larger places, each the sum of what it holds; the total stays the same.

        `what` is for texts: "words" (by whitespace and punctuation; scripts without spaces by character), "sentences",
        "segments" (the texts of a pair), or spans: ranges of tokens (start, end) of one text, and strings, each merged
        wherever it stands. Tokens in no span, and special tokens, stay alone. "patches" are the model's own, for pictures.
        `patch` sums squares of so many pixels, `seconds` the steps of a sound. `part` names the one part that is merged;
        without it, each that the question fits.

        Raises InputError where no part fits, and for spans that are not in the text or share a token.
        """
        return replace(self, parts=merged_parts(self.parts, what, patch, seconds, part))

    def __neg__(self) -> Explanation:
        numbers = tuple(ExplainedNumber(f"minus ({n.said})", -n.value, f"−({n.label})") for n in self.numbers)
        account = None if self.account is None else combined(Account(0.0, {}, {}, 0.0), self.account, -1)
        return replace(self, parts=tuple(map(_negative, self.parts)), numbers=numbers, account=account)

    def __abs__(self) -> Explanation:
        """The absolute relevance of each place, for the same numbers."""
        numbers = tuple(replace(number, said=number.said + ABSOLUTE) for number in self.numbers)
        return replace(self, parts=tuple(map(_absolute, self.parts)), numbers=numbers, account=None)

    def __add__(self, other: Explanation) -> Explanation:
        return self._combined(other, 1) if isinstance(other, Explanation) else NotImplemented

    def __sub__(self, other: Explanation) -> Explanation:
        """The difference place by place, for the explained number "A minus B". Raises InputError where places differ."""
        return self._combined(other, -1) if isinstance(other, Explanation) else NotImplemented

    def _combined(self, other: Explanation, sign: int) -> Explanation:
        parts = combined_parts(self.parts, other.parts, sign)
        numbers = combined_numbers(self.numbers, other.numbers, sign)
        both = None
        if self.account is not None and other.account is not None:
            both = combined(self.account, other.account, sign)
        return Explanation(parts, numbers, joined(self.origin, other.origin), both)

    # files

    def to_dict(self, *, units: bool = False) -> dict[str, Any]:
        """Plain values for JSON. The first part and the explained number stand at the top level (`tokens`, `relevance`,
        `explained`, `value`, lists for several numbers), further parts in `further_parts`. Pictures and sounds are packed,
        and `units`, which are large, are written if asked for."""
        return to_plain(self.parts, self.numbers, self.origin, self.account, packed, units=units)

    def to_json(self, path: str | Path, *, units: bool = False) -> None:
        """Writes `to_dict()` as UTF-8 JSON, with every float exact."""
        write_json(self.to_dict(units=units), path)

    @classmethod
    def from_json(cls, path: str | Path) -> Explanation:
        """What `to_json` wrote. Raises InputError that names the place of a value that cannot be used."""
        return cls.read(json_of(path, "Explanation.from_json"))

    @classmethod
    def read(cls, saved: Saved) -> Explanation:
        """The explanation of checked plain values."""
        parts, numbers, origin, account = from_plain(saved)
        try:
            return Explanation(parts, numbers, origin, account)
        except InputError as error:
            saved.fail(f"cannot be used: {error}")

    def to_dataframe(self) -> DataFrame:
        """A pandas data frame with a line for each place and explained number: `target`, `part`, the axes (`position`,
        `row`, `column`, `time`), `token`, `start`, `end`, `relevance`, `explained`, `value`. Raises InputError without
        pandas."""
        from lxt_fx.results.frame import data_frame

        return data_frame([(self.parts, self.numbers)], number_examples=False)

    # views

    def sheet(self, **look: Unpack[Look]) -> Sheet:
        """What every view shows."""
        return sheet_of(self.parts, self.numbers, self.origin, self.account, asked(look, self.parts))

    def __repr__(self) -> str:
        numbers = f"{len(self.numbers)} numbers"
        if not self.parts[0].several:
            numbers = f"{one_line(self.explained, 80)} = {self.value:.4g}"
        sizes = ", ".join(_size(part) for part in self.parts[:3]) + (", ..." if len(self.parts) > 3 else "")
        return f"Explanation({numbers}, {sizes}, rules {one_line(self.table_name, 24)})"


def json_of(path: str | Path, function: str) -> Saved:
    """The JSON of a file, not yet checked. Raises InputError for a file that is too large or no JSON."""
    path = Path(path)
    if (size := path.stat().st_size) > LONGEST_FILE:
        raise InputError(f"{function}: {path.name} has {size} bytes; {LONGEST_FILE} is the most")
    try:
        return read_json(path.read_text(encoding="utf-8"), f"{function}: {path.name}")
    except UnicodeDecodeError as error:
        raise InputError(f"{function}: {path.name} is no UTF-8 text: {error.reason}") from error


def _checked(key: object, size: int, axis: str) -> int | slice:
    if isinstance(key, slice):
        return key
    try:
        at = operator.index(key)  # type: ignore[arg-type]
    except TypeError:
        hint = "explanation.part(name) finds a part by its name" if isinstance(key, str) else "give numbers or slices"
        raise InputError(f"explanation[...]: {key!r} is no index; {hint}") from None
    if not -size <= at < size:
        raise PlaceOutOfRange(f"explanation[...]: {axis} {at} is out of range, there are {size}")
    return at % size


def _negative(part: Part) -> Part:
    return replace(part, values=-part.values, units=None if part.units is None else -part.units)


def _absolute(part: Part) -> Part:
    return replace(part, values=part.values.abs(), units=None)


def _size(part: Part) -> str:
    places = " x ".join(map(str, part.place_shape))
    unit = {"text": " tokens", "sound": " steps", "numbers": " numbers"}.get(part.kind, "")
    return f"{places}{unit}"
