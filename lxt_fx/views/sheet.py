"""What one view shows from top to bottom: the explained number, one section for each input, the strongest places, the
accounts. Terminal, page and figure draw the same sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lxt_fx.views.panels import Panel
from lxt_fx.views.view import Cell, Facts, shares


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
    """A picture, its heatmap, and both; `relevance` [rows, columns] of its squares, and the relevance of the strongest
    colour."""

    title: str
    panels: tuple[Panel, ...]
    relevance: Tensor
    largest: float


@dataclass(frozen=True, slots=True, eq=False)
class Track:
    """A sound: relevance [steps] of steps of `step` seconds from `start` on, and the loudness of each step from 0 to 1,
    None where the sound is not known. `scaled_by` are the relevances whose largest bar is the full height: its own, and
    those of the sounds that it is compared with."""

    title: str
    relevance: Tensor
    largest: float
    step: float
    start: float
    loudness: Tensor | None
    scaled_by: tuple[Tensor, ...] = ()

    def bars(self, most: int) -> tuple[Tensor, Tensor, int]:
        """The relevance of at most `most` bars, their shares of the full height, from -1 to 1, and the steps of a bar. Sums
        of several steps may be larger than any step, so their scale is that of the sums."""
        sums, size = binned(self.relevance, most)
        largest = self.largest
        if size > 1 or self.scaled_by:
            largest = max(float(binned(each, most)[0].abs().max()) for each in self.scaled_by or (self.relevance,))
        return sums, shares(sums, largest), size


@dataclass(frozen=True, slots=True, eq=False)
class Bars:
    """Numbers as bars, each a name with its relevance; `left_out` says how many weaker ones are not shown."""

    title: str
    bars: tuple[tuple[str, float], ...]
    largest: float
    left_out: int


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """Several explained numbers for one text. Each row of `shares` [numbers, tokens] is one number with its own scale from
    -1 to 1; `rows` are its label and value. The answer starts at column `split`, which is the number of tokens if there is
    none."""

    title: str
    rows: tuple[tuple[str, float], ...]
    tokens: tuple[str, ...]
    shares: Tensor
    split: int


Section = Heading | Tokens | Pictures | Track | Bars | Matrix


@dataclass(frozen=True, slots=True, eq=False)
class Sheet:
    """`top` are the strongest places as (relevance, name, where it is), `notes` the lines at the foot."""

    facts: Facts
    sections: tuple[Section, ...]
    top: tuple[tuple[float, str, str], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def pictured(self) -> bool:
        """Whether a section has pictures, whose colours are those of the light theme."""
        return any(isinstance(section, Pictures) for section in self.sections)


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
