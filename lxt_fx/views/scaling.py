"""Where the colours of a heatmap end. Terminal, figure, notebook and the page (web/src/scale.ts) share this definition.

`max`: the colour ends at the largest absolute relevance of the places that count. `robust`: at the 99 % quantile, so that
one place (the last token, most often) does not take all colour from the others; but never below a tenth of the largest, and
with fewer than 4 places or a quantile of 0 at the largest. `rank`: the share is the rank of the absolute relevance among
the places that count, divided by their number, with its sign; equal ones share the mean of their ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from lxt_fx.base.errors import InputError

Ends = Literal["robust", "max", "rank"]

QUANTILE, LEAST, FEWEST = 0.99, 0.1, 4
"""The quantile at which the robust scale ends, the least share of the largest at which it may, and the fewest places."""

MARKED = 0.12
"""The share from which a sign is drawn as a line below the token."""


@dataclass(frozen=True, slots=True, eq=False)
class Scaling:
    """What relevance the colours show. They end at `end`; `largest` is the largest absolute relevance of the places that
    count, and `beyond` the number of these that go beyond the end. `sizes` [places] are their absolute relevances in
    order."""

    kind: Ends
    end: float
    largest: float
    beyond: int = 0
    sizes: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))

    def shares(self, relevance: Tensor) -> Tensor:
        """Relevance of any shape as shares of the full colour, from -1 to 1, in float64."""
        relevance = relevance.double()
        if self.kind == "rank" and len(self.sizes):
            size = relevance.abs().contiguous()
            below, upto = torch.searchsorted(self.sizes, size), torch.searchsorted(self.sizes, size, right=True)
            return relevance.sign() * ((below + upto + 1) / 2 / len(self.sizes)).clamp(max=1)
        return (relevance / self.end).clamp(-1, 1) if self.end else torch.zeros_like(relevance)

    def goes_beyond(self, relevance: Tensor) -> Tensor:
        """Which of these places, of any shape, go beyond the end of the scale, and are marked by their shape."""
        if self.kind == "rank":
            return torch.zeros_like(relevance, dtype=torch.bool)
        return relevance.double().abs() > self.end


def scaling(relevance: Tensor, counts: Tensor | None = None, ends: Ends = "robust") -> Scaling:
    """The scale of relevance of any shape; `counts`, of the same shape, says which places count (None: all)."""
    sizes = (relevance if counts is None else relevance[counts]).double().abs().flatten().sort().values
    largest = float(sizes[-1]) if len(sizes) else 0.0
    end = largest
    if ends == "robust" and len(sizes) >= FEWEST:
        quantile = float(sizes[math.floor(QUANTILE * (len(sizes) - 1))])
        end = max(quantile, LEAST * largest) if quantile else largest
    beyond = 0 if ends == "rank" else int((sizes > end).sum())
    return Scaling(ends, end, largest, beyond, sizes)


def ends_at(end: float) -> Scaling:
    """The scale whose colours end at this relevance."""
    return Scaling("max", end, end)


def checked_ends(ends: object, where: str) -> Ends:
    """The argument `scale=`. Raises InputError that lists what it may be."""
    for known in get_args(Ends):
        if ends == known:
            return known  # type: ignore[no-any-return]
    raise InputError(f"{where}: scale must be one of {', '.join(map(repr, get_args(Ends)))}, got {ends!r}")


@dataclass(frozen=True, slots=True, eq=False)
class Ending:
    """Where the colours of a view end: its scales, one for each explained number; what one `place` is called; the relevance
    of each place that is left out of the colours."""

    scales: tuple[Scaling, ...]
    place: str
    left_out: tuple[float, ...] = ()

    def said(self, mark: str) -> str:
        """In words. `mark` is how a view draws what goes beyond the end."""
        return " ".join(filter(None, (self._ends(f", {mark}" if mark else ""), self._left_out())))

    def _ends(self, mark: str) -> str:
        kind, beyond, several = self.scales[0].kind, sum(scale.beyond for scale in self.scales), len(self.scales) > 1
        if not any(scale.largest for scale in self.scales):
            return "No relevance is shown here."
        if kind == "rank":
            return f"Colour is the rank of the relevance among the {self.place}s, not its size."
        end = written(self.scales[0].end)
        if kind == "max":
            said = "Each number has its own scale, up to its largest relevance."
            return said if several else f"The scale ends at {end}, the largest relevance."
        found = "Each number has its own robust scale" if several else f"The scale is robust and ends at {end}"
        if not beyond:
            return f"{found}; nothing goes beyond it."
        goes = f"1 {self.place} goes" if beyond == 1 else f"{beyond} {self.place}s go"
        how = mark if several else f", up to {written(self.scales[0].largest)}{mark}"
        return f"{found}; {goes} beyond its end{how}."

    def _left_out(self) -> str:
        if not self.left_out:
            return ""
        place = "cell" if len(self.scales) > 1 else "token"
        many = f"1 {place} is" if len(self.left_out) == 1 else f"{len(self.left_out)} {place}s are"
        return f"{many} left out of the colours, together {sum(self.left_out):+.3g}.".replace("-", "−")


def written(amount: float) -> str:
    """An amount with three digits and no sign."""
    return f"{amount:.3g}".replace("-", "−")
