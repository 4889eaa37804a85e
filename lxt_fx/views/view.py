"""What every view of an explanation shows (terminal, page, figure): facts as text, and tokens as cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lxt_fx.views.scaling import Ending, Scaling, scaling

TIE = "\u00a0"
"""A space at which no line breaks."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What was explained and how. `value` is None where several numbers were explained; then each has its own scale.
    `total` is the sum of relevance, `end` the relevance at which the colours end, and `ending` says so in words."""

    explained: str
    value: float | None
    total: float
    end: float
    table_name: str
    model_class: str
    seconds: float
    own_scales: bool = True
    ending: Ending | None = None

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
        if self.is_rank:
            return "strongest", "0", "strongest"
        if self.value is None and self.own_scales:
            return "−end", "0", "+end"
        if self.end == 0:
            return "", "0", ""
        return number(-self.end), "0", number(self.end)

    @property
    def is_rank(self) -> bool:
        """Whether colour is the rank of the relevance."""
        return self.ending is not None and self.ending.scales[0].kind == "rank"

    def scale_said(self, mark: str) -> str:
        """In words where the colours end; `mark` is how a view draws what goes beyond. Nothing where there is no scale."""
        return "" if self.ending is None else self.ending.said(mark)

    def footnote(self) -> str:
        """One line: the sum of relevance, the rule table and the model."""
        if self.value is None:
            shared = "" if self.own_scales else "one scale for all  ·  "
            return f"{shared}rules {self.table_name}  ·  {self.model_class}"
        return f"sum of relevance {number(self.total)}  ·  rules {self.table_name}  ·  {self.model_class}"


@dataclass(frozen=True, slots=True)
class Cell:
    """One coloured box: a token, or the part of a token on one line.

    `share` is its relevance as a share of the full colour, from -1 to 1. `gap` says that a space stands before the box,
    `starts` and `ends` that it is the first and the last box of a word, `ends_line` that the line ends after it. `beyond`
    says that its relevance goes beyond the end of the scale, `muted` that it is left out of the colours.
    """

    position: int
    text: str
    relevance: float
    share: float
    gap: bool
    starts: bool
    ends: bool
    ends_line: bool
    beyond: bool = False
    muted: bool = False


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


def cells(
    tokens: Sequence[str], relevance: Tensor, scale: Scaling | None = None, counts: Tensor | None = None
) -> tuple[Cell, ...]:
    """The tokens as a sequence of boxes with the colours of a scale (None: up to the strongest of these). `counts` [tokens]
    are those that have a colour; None: all. A word's leading space is outside its box, and a `↵` ends the line."""
    scale = scaling(relevance, counts, "max") if scale is None else scale
    boxes = [
        (position, line, gap and index == 0)
        for position, token in enumerate(map(safe, tokens))
        for gap in [token.startswith(" ") and not token.isspace()]
        for index, line in enumerate(_lines(token[1:] if gap else token))
    ]
    starts = [gap or at == 0 or boxes[at - 1][1].endswith("↵") for at, (_, _, gap) in enumerate(boxes)]
    muted = [False] * len(tokens) if counts is None else (~counts).tolist()
    values, share, beyond = relevance.tolist(), scale.shares(relevance).tolist(), scale.goes_beyond(relevance).tolist()
    return tuple(
        Cell(
            position, line, values[position], 0.0 if muted[position] else share[position], gap, start, end,
            line.endswith("↵"), beyond[position] and not muted[position], muted[position],
        )
        for (position, line, gap), start, end in zip(boxes, starts, [*starts[1:], True], strict=True)
    )  # fmt: skip


def safe(token: str) -> str:
    """The token with a sign in the place of each character that would steer a terminal, or turn the direction of the text
    behind it."""
    return token.translate(_SIGNS)


_SIGNS = {at: chr(0x2400 + at) for at in range(32)} | {0x7F: "\u2421"}
_SIGNS |= {at: f"⟨U+{at:04X}⟩" for at in (*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def _lines(token: str) -> list[str]:
    parts = token.split("↵")
    lines = [f"{part}↵" for part in parts[:-1]]
    return [*lines, parts[-1]] if parts[-1] or not lines else lines
