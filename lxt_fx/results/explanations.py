"""Several explanations: what a call with a list returns, or a collection of one's own."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, SupportsIndex, Unpack, overload

from lxt_fx.base.errors import InputError
from lxt_fx.base.json_file import write_json
from lxt_fx.base.one_line import one_line
from lxt_fx.base.public_door import public
from lxt_fx.results.explanation import Explanation, PlaceOutOfRange, json_of
from lxt_fx.results.look import Look
from lxt_fx.results.parquet import read_parquet, write_parquet
from lxt_fx.results.plain import raw, to_plain

if TYPE_CHECKING:
    from pandas import DataFrame
    from rich.console import RenderableType


class Explanations(Sequence[Explanation]):
    """Explanations in order, as a tuple has them: indexing, slices and `+` (with any sequence of explanations)."""

    __slots__ = ("_found",)

    def __init__(self, found: Iterable[Explanation] = ()) -> None:
        self._found = tuple(found)
        for at, one in enumerate(self._found):
            if not isinstance(one, Explanation):
                raise InputError(f"Explanations: item {at} is a {type(one).__name__}, no Explanation")

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[Explanation]:
        return iter(self._found)

    @overload
    def __getitem__(self, index: SupportsIndex) -> Explanation: ...

    @overload
    def __getitem__(self, index: slice) -> Explanations: ...

    def __getitem__(self, index: SupportsIndex | slice) -> Explanation | Explanations:
        if isinstance(index, slice):
            return Explanations(self._found[index])
        try:
            return self._found[operator.index(index)]
        except (IndexError, TypeError) as error:
            raise PlaceOutOfRange(f"explanations[{index!r}]: there are {len(self)}, from 0 on; {error}") from None

    def __add__(self, other: Iterable[Explanation]) -> Explanations:
        return (
            NotImplemented
            if isinstance(other, Explanation) or not isinstance(other, Iterable)
            else Explanations([*self, *other])
        )

    def __radd__(self, other: Iterable[Explanation]) -> Explanations:
        return (
            NotImplemented
            if isinstance(other, Explanation) or not isinstance(other, Iterable)
            else Explanations([*other, *self])
        )

    def to_dataframe(self) -> DataFrame:
        """A pandas data frame as of `Explanation.to_dataframe`, with the column `example` before."""
        from lxt_fx.results.frame import data_frame

        return data_frame([(one.parts, one.numbers) for one in self], number_examples=True)

    def save(self, path: str | Path, *, units: bool = False) -> None:
        """Writes all of it as one parquet file, with a line for each explanation; `units`, which are large, if asked for.

        Raises InputError if pyarrow is not installed (`pip install 'lxt_fx[parquet]'`).
        """
        rows = (to_plain(one.parts, one.numbers, one.origin, one.account, raw, units=units) for one in self)
        write_parquet(rows, path)

    @classmethod
    def load(cls, path: str | Path) -> Explanations:
        """What `save` wrote. Raises InputError for a file of another kind, or a value that cannot be used."""
        return Explanations(Explanation.read(saved) for saved in read_parquet(path))

    def to_json(self, path: str | Path, *, units: bool = False) -> None:
        """Writes `to_dict` of each explanation as UTF-8 JSON."""
        write_json({"explanations": [one.to_dict(units=units) for one in self]}, path)

    @classmethod
    def from_json(cls, path: str | Path) -> Explanations:
        """What `to_json` wrote. Raises InputError that names the place of a value that cannot be used."""
        saved = json_of(path, "Explanations.from_json")
        return Explanations(Explanation.read(one) for one in saved.item("explanations").parts())

    def to_html(self, path: str | Path, *, patch: int | None = None) -> None:
        """Writes one page in which every explanation is explored (`lxt_fx.explore`)."""
        public("explore")(self._some("to_html"), path=path, patch=patch)

    def to_png(self, path: str | Path, *, width: float = 6.5, **look: Unpack[Look]) -> tuple[Path, ...]:
        """Writes the figure of each explanation (`Explanation.to_png`) one after the other: `name.png`, `name-2.png` and so
        on. Returns the paths."""
        from lxt_fx.views.files import write_png

        return write_png([one.sheet(**look) for one in self._some("to_png")], path, width)

    def to_pdf(self, path: str | Path, *, width: float = 6.5, **look: Unpack[Look]) -> None:
        """Writes the figure of each explanation as vectors, with a page of its own."""
        from lxt_fx.views.files import write_pdf

        write_pdf([one.sheet(**look) for one in self._some("to_pdf")], path, width)

    def _some(self, method: str) -> Explanations:
        if not self:
            raise InputError(f"Explanations.{method}: there is no explanation")
        return self

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.rule import Rule

        return Group(repr(self), *(view for one in self for view in (Rule(style="dim"), one)))

    def __str__(self) -> str:
        from lxt_fx.views.terminal import as_text

        return as_text(self)

    def __repr__(self) -> str:
        if not self:
            return "Explanations(none)"
        places = [sum(part.values.numel() for part in one.parts) for one in self]
        tables = list(dict.fromkeys(one.table_name for one in self))
        named = f"rules {one_line(tables[0], 40)}" if len(tables) == 1 else f"{len(tables)} rule tables"
        return f"Explanations({len(self)}, {min(places)} to {max(places)} places each, {named})"

    def _repr_html_(self) -> str:
        from lxt_fx.views.page import fragment

        return fragment([one.sheet() for one in self])
