"""One place of an explanation with its relevance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lxt_fx.base.one_line import one_line
from lxt_fx.results.part import Part


@dataclass(frozen=True, slots=True)
class PlaceRelevance:
    """One token, pixel, patch, step of time or number. `position` is its index along its axis (a tuple for pixels: row,
    column), `token` its name for a person (the token itself for a text), `part` the input that it belongs to.

    Unpacks as `position, token, relevance`.
    """

    position: int | tuple[int, ...]
    token: str
    relevance: float
    part: str

    def __repr__(self) -> str:
        token = self.token if len(self.token) <= 60 else one_line(self.token, 60)
        return f"PlaceRelevance({one_line(self.part, 40)} {self.position}, {token!r}, {self.relevance:+.4g})"

    def __iter__(self) -> Iterator[int | tuple[int, ...] | str | float]:
        return iter((self.position, self.token, self.relevance))


def place_relevance(part: Part, flat: int) -> PlaceRelevance:
    """The place with this index in order, of a part with one explained number."""
    position, name = part.place(flat)
    return PlaceRelevance(position, name, float(part.values.flatten()[flat]), part.name)
