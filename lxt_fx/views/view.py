"""What every view of an explanation shows (terminal, page, figure): facts as text, and tokens as cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TIE = "\u00a0"
"""A space at which no line breaks."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What was explained and how. `value` is None where several numbers were explained; then each has its own scale.
    `total` is the sum of relevance, `largest` the relevance of the strongest colour."""

    explained: str
    value: float | None
    total: float
    largest: float
    table_name: str
    model_class: str
    seconds: float
    own_scales: bool = True

    def written_value(self) -> str:
        """The value with four digits; nothing if there are several."""
        if self.value is None:
            return ""
        return f"{self.value:.4g}".replace("-", "−")

    def said(self) -> str:
        """What was explained, as it is drawn."""
        return self.explained.replace(" %", f"{TIE}%")

    def heading(self) -> str:
        """The explained number with its value."""
        return self.said() if self.value is None else f"{self.said()}{TIE}={TIE}{self.written_value()}"

    def ticks(self) -> tuple[str, str, str]:
        """The labels of the colour bar: left end, middle, right end."""
        if self.value is None and self.own_scales:
            return "−max", "0", "+max"
        if self.largest == 0:
            return "", "0", ""
        return number(-self.largest), "0", number(self.largest)

    def footnote(self) -> str:
        """One line: the sum of relevance, the rule table and the model."""
        if self.value is None:
            scales = "max: the largest of each number" if self.own_scales else "one scale for all"
            return f"{scales}  ·  rules {self.table_name}  ·  {self.model_class}"
        return f"sum of relevance {number(self.total)}  ·  rules {self.table_name}  ·  {self.model_class}"


@dataclass(frozen=True, slots=True)
class Cell:
    """One coloured box: a token, or the part of a token on one line.

    `share` is its relevance as a share of the largest absolute one, from -1 to 1. `gap` says that a space stands
    before the box, `starts` and `ends` that it is the first and the last box of a word, `ends_line` that the line ends
    after it.
    """

    position: int
    text: str
    relevance: float
    share: float
    gap: bool
    starts: bool
    ends: bool
    ends_line: bool


def number(value: float) -> str:
    """A signed number of three digits with a true minus sign; `0` has no sign."""
    return f"{value:+.3g}".replace("-", "−") if value else "0"


def summed(relevance: Tensor, across: int, down: int) -> Tensor:
    """Relevance [height, width] summed over rectangles of `across` x `down` pixels. Those at the right and lower edges may
    be smaller, so the total is the same."""
    height, width = relevance.shape
    padded = torch.nn.functional.pad(relevance, (0, -width % across, 0, -height % down))
    rows, columns = padded.shape
    return padded.reshape(rows // down, down, columns // across, across).sum(dim=(1, 3))


def shares(relevance: Tensor, largest: float | None = None) -> Tensor:
    """Relevance of any shape divided by `largest`, or by its own largest absolute value; all zero stays zero."""
    largest = float(relevance.abs().max()) if largest is None else largest
    return relevance / largest if largest else relevance


def cells(tokens: Sequence[str], relevance: Tensor, largest: float | None = None) -> tuple[Cell, ...]:
    """The tokens as a sequence of boxes, the strongest colour for the relevance `largest` (or the strongest of these). A
    word's leading space is outside its box, and a `↵` ends the line."""
    boxes = [
        (position, line, gap and index == 0)
        for position, token in enumerate(tokens)
        for gap in [token.startswith(" ") and not token.isspace()]
        for index, line in enumerate(_lines(token[1:] if gap else token))
    ]
    starts = [gap or at == 0 or boxes[at - 1][1].endswith("↵") for at, (_, _, gap) in enumerate(boxes)]
    values, share = relevance.tolist(), shares(relevance, largest).tolist()
    return tuple(
        Cell(position, line, values[position], share[position], gap, start, end, line.endswith("↵"))
        for (position, line, gap), start, end in zip(boxes, starts, [*starts[1:], True], strict=True)
    )


def _lines(token: str) -> list[str]:
    parts = token.split("↵")
    lines = [f"{part}↵" for part in parts[:-1]]
    return [*lines, parts[-1]] if parts[-1] or not lines else lines
