"""What one view shows from top to bottom: the explained number, one section for each input, the strongest places, the
accounts. Terminal, page and figure draw the same sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lxt_fx.views.panels import Panel
from lxt_fx.views.scaling import Scaling, scaling
from lxt_fx.views.view import Cell, Facts


@dataclass(frozen=True, slots=True, eq=False)
class Heading:
    """A line that names what stands below it: one explanation of several."""

    text: str


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """A text as coloured boxes."""

    title: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """A picture, its heatmap, and both; `relevance` [rows, columns] of its squares."""

    title: str
    panels: tuple[Panel, ...]
    relevance: Tensor
    scale: Scaling


@dataclass(frozen=True, slots=True, eq=False)
class Track:
    """A sound: relevance [steps] of steps of `step` seconds from `start` on, and the loudness of each step from 0 to 1,
    None where the sound is not known. `scaled_by` are the relevances whose largest bar is the full height: its own, and
    those of the sounds that it is compared with."""

    title: str
    relevance: Tensor
    scale: Scaling
    step: float
    start: float
    loudness: Tensor | None
    scaled_by: tuple[Tensor, ...] = ()

    def bars(self, most: int) -> tuple[Tensor, Scaling, int]:
        """The relevance of at most `most` bars, their scale, and the steps of a bar. Sums of several steps may be larger
        than any step, so their scale is that of the sums."""
        sums, size = binned(self.relevance, most)
        if size == 1 and not self.scaled_by:
            return sums, self.scale, size
        every = torch.cat([binned(each, most)[0] for each in self.scaled_by or (self.relevance,)])
        return sums, scaling(every, None, self.scale.kind), size


@dataclass(frozen=True, slots=True, eq=False)
class Bars:
    """Numbers as bars, each a name with its relevance; `left_out` says how many weaker ones are not shown."""

    title: str
    bars: tuple[tuple[str, float], ...]
    scale: Scaling
    left_out: int

    def share(self, relevance: float) -> tuple[float, bool]:
        """The share of the full colour, and whether it goes beyond the end of the scale."""
        one = torch.tensor(relevance, dtype=torch.float64)
        return float(self.scale.shares(one)), bool(self.scale.goes_beyond(one))


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """Several explained numbers for one text. Each row of `shares` [numbers, tokens] is one number with its own scale from
    -1 to 1; `rows` are its label and value. The answer starts at column `split`, which is the number of tokens if there is
    none. Of the same shape, `beyond` are the cells that go beyond the end of the scale, `muted` those that are left out of
    the colours, and `relevance` is what the colours show."""

    title: str
    rows: tuple[tuple[str, float], ...]
    tokens: tuple[str, ...]
    shares: Tensor
    split: int
    beyond: Tensor
    muted: Tensor
    relevance: Tensor

    def strongest(self, most: int) -> Matrix:
        """The matrix with its strongest columns, in their order, and a title that says how many there are."""
        count = self.shares.shape[1]
        if count <= most:
            return self
        strength = self.shares.abs().amax(0) + self.beyond.any(0)
        chosen = strength.argsort(descending=True, stable=True)[:most].sort().values
        said = f"the {most} of {count} tokens with the strongest relevance"
        return Matrix(
            f"{self.title}: {said}" if self.title else said, self.rows, tuple(self.tokens[at] for at in chosen.tolist()),
            self.shares[:, chosen], int((chosen < self.split).sum()), self.beyond[:, chosen], self.muted[:, chosen],
            self.relevance[:, chosen],
        )  # fmt: skip


Section = Heading | Tokens | Pictures | Track | Bars | Matrix


@dataclass(frozen=True, slots=True)
class Strong:
    """One of the strongest places: its relevance, its share of the full colour, its name, and where it is."""

    relevance: float
    share: float
    name: str
    where: str


@dataclass(frozen=True, slots=True, eq=False)
class Sheet:
    """`top` are the strongest places that count, `notes` the lines at the foot."""

    facts: Facts
    sections: tuple[Section, ...]
    top: tuple[Strong, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def pictured(self) -> bool:
        """Whether a section has pictures, whose colours are those of the light theme."""
        return any(isinstance(section, Pictures) for section in self.sections)

    @property
    def dotted(self) -> bool:
        """Whether a section has squares, in which a dot is the sign of what speaks against."""
        return any(isinstance(section, (Pictures, Matrix)) for section in self.sections)


def binned(values: Tensor, most: int) -> tuple[Tensor, int]:
    """Values [steps] summed over as many neighbours as needed for at most `most` sums, and how many these are."""
    size = -(-len(values) // most)
    count = -(-len(values) // size)
    padded = values.new_zeros(count * size)
    padded[: len(values)] = values
    return padded.reshape(count, size).sum(1), size


def seconds_of(track: Track, at: int, size: int = 1) -> str:
    """The time of a bin of `size` steps, as text."""
    return f"{track.start + at * size * track.step:.3g} s"


def strongest_names(names: Sequence[str], values: Tensor, most: int) -> tuple[tuple[tuple[str, float], ...], int]:
    """The `most` strongest numbers in their order, and how many are left out."""
    strong = sorted(values.abs().argsort(descending=True, stable=True)[:most].tolist())
    return tuple((names[i], float(values[i])) for i in strong), len(names) - len(strong)
