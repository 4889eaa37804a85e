"""What is known of one unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lxt_fx.inside.corpus.kept_samples import KeptSample
from lxt_fx.inside.corpus.units_by_token import Reads
from lxt_fx.inside.directions import Words


@dataclass(frozen=True, slots=True)
class UnitStatistic:
    """Over `count` positions: mean, standard deviation, smallest and largest activation, at which share of the positions it
    is active (above 0), the mean relevance and the mean absolute relevance."""

    count: int
    mean: float
    deviation: float
    active: float
    smallest: float
    largest: float
    relevance: float
    absolute: float


@dataclass(frozen=True, slots=True, eq=False)
class TopSample:
    """One of the largest samples of a unit: the `value` of the unit at a `position` of the `sample`, which counts from the
    text's first token. `reads` says what its positions are. `heatmap` is the relevance of each token, or [rows, columns] of
    the patches of a picture, that runs through the unit; None if it was not asked for."""

    value: float
    sample: KeptSample
    position: int
    reads: Reads
    heatmap: Tensor | None = None

    @property
    def tokens(self) -> tuple[str, ...]:
        """The tokens of the text that the position is in; () if it is not in a text."""
        return self.sample.texts.get(self.reads.leaf, ())

    @property
    def token(self) -> str:
        """The token at the position, or which patch it is."""
        if 0 <= self.position < len(self.tokens):
            return self.tokens[self.position]
        box = self.box()
        if box is not None:
            side = self.sample.patch * self.reads.merged
            return f"patch {box[0] // side}, {box[1] // side}"
        return f"position {self.position}" if self.reads.leaf else ""

    def box(self) -> tuple[int, int, int, int] | None:
        """Where the patch lies in the picture that the model saw, in pixels: top, left, bottom, right. None if the position
        is no patch."""
        side, at = self.sample.patch * self.reads.merged, self.position - self.reads.before
        if self.sample.picture is None or not side or at < 0:
            return None
        row, column = divmod(at, self.sample.size[1] // side)
        return row * side, column * side, (row + 1) * side, (column + 1) * side


@dataclass(frozen=True, slots=True, eq=False)
class UnitFacts:
    """A unit of a place: its label, its statistics, its largest samples by activation and by relevance, and the words that
    its direction speaks for and against, where these are known."""

    place: str
    unit: int
    model_class: str
    table_name: str
    label: str | None
    statistics: UnitStatistic
    by_activation: tuple[TopSample, ...]
    by_relevance: tuple[TopSample, ...]
    words: tuple[Words, ...] = ()

    def sentences(self) -> Sequence[str]:
        """The statistics in words."""
        s = self.statistics
        return (
            f"active at {100 * s.active:.3g} % of {s.count} positions; activation {s.mean:.3g} ± {s.deviation:.3g}, from "
            f"{s.smallest:.3g} to {s.largest:.3g}",
            f"mean relevance {s.relevance:.3g}, mean absolute relevance {s.absolute:.3g}",
        )
