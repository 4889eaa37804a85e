"""The result of a corpus: for each unit the largest samples by activation and relevance, statistics, words, a label."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lxt_fx.attribution.places import nearest
from lxt_fx.attribution.target import TargetLike
from lxt_fx.base.errors import InputError, UnknownNameError
from lxt_fx.base.frames import pandas_for
from lxt_fx.base.public_door import public
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.transform import transform
from lxt_fx.compiler.weights_hash import weights_hash
from lxt_fx.inside.corpus.extremes import NONE, Extremes
from lxt_fx.inside.corpus.fingerprint import rules_hash
from lxt_fx.inside.corpus.folder import (
    BAD,
    KEYS,
    LABELS,
    WORDS,
    CorpusFolder,
    PlaceUnits,
    Progress,
    differences,
)
from lxt_fx.inside.corpus.header import places_in
from lxt_fx.inside.corpus.kept_samples import KeptSample
from lxt_fx.inside.corpus.labels import Labels
from lxt_fx.inside.corpus.unit_facts import TopSample, UnitStatistic
from lxt_fx.inside.corpus.unit_report import UnitReport
from lxt_fx.inside.corpus.units_by_token import Reads
from lxt_fx.inside.directions import read_words
from lxt_fx.views.listed import Listed

if TYPE_CHECKING:
    from pandas import DataFrame
    from rich.console import RenderableType

BY_HAND = ("batch_tokens", "window")
"""What two results that are merged may differ in."""


class Corpus(Listed, Mapping[str, tuple[int, ...]]):
    """The result of `lxt_fx.corpus`, opened from its folder: the units that were read, by place.

        found = lxt_fx.Corpus("neurons")
        print(found.unit("mlp.3.neurons", 17))
        found.labels["mlp.3.neurons", 17] = "capital cities"

    With a `model`, or what `transform` made from it, and its `processor`, `heatmaps` can be asked for. Raises InputError
    for a folder of something else, for a pass that is not done yet, and for a model that the folder is not of; it says
    which.
    """

    def __init__(self, folder: str | Path, *, model: nn.Module | None = None, processor: Any = None) -> None:
        self._store, self.processor = CorpusFolder(folder), processor
        self.header = self._store.header("Corpus")
        self._progress = self._store.progress()
        if not self._progress.done:
            raise InputError(
                f"Corpus: {str(folder)!r} has the first {self._progress.read} samples of a pass that is not done; call "
                "lxt_fx.corpus with the same arguments to go on"
            )
        self.model = None if model is None else _checked_model(model, self.header, self._store.path)
        self.places = places_in(self.header)
        self._units: dict[str, PlaceUnits] | None = None
        self._samples: dict[int, KeptSample] | None = None
        self.labels = Labels(self._store.path / LABELS)

    def __getitem__(self, place: str) -> tuple[int, ...]:
        if place not in self.places:
            raise UnknownNameError(f"Corpus: {place!r} was not read; {nearest(place, self.places)}")
        return self.places[place].ids

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def __repr__(self) -> str:
        units = sum(place.read for place in self.places.values())
        return (
            f"Corpus({self.header['model_class']}, {self.samples} samples, {units} units of {len(self)} places, "
            f"{str(self.folder)!r})"
        )

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table("place", "units", "units with a label")
        for name, place in self.places.items():
            labelled = sum(1 for at, _ in self.labels if at == name)
            table.add_row(Text(name), str(place.read), str(labelled))
        made = f"corpus of {self.samples} samples, {self.header['model_class']}, rules {self.header['table']}"
        more = f"{str(self.folder)!r}; corpus.unit(place, unit) shows one unit"
        return Group(Text(made, style="bold"), table, Text(more))

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self._store.path

    @property
    def samples(self) -> int:
        """How many samples were explained."""
        return self._progress.good

    def bad(self) -> Iterator[dict[str, Any]]:
        """The samples that could not be explained: `key`, `number` and `reason` of each."""
        return self._store.lines(BAD)

    def to_html(self, path: str | Path) -> None:
        """Writes one self-contained page in which the strongest units of each place are explored (`lxt_fx.explore`)."""
        public("explore")(self, path=path)

    def unit(self, place: str, unit: int) -> UnitReport:
        """All that is known of one unit, which prints well; of the samples with the largest relevance those in which it is
        positive. Raises UnknownNameError for a place and InputError for a unit
        that was not read."""
        unit, row = self._row(place, unit)
        found = self._of(place)
        statistics = found.statistics
        numbers = UnitStatistic(
            count=statistics.count,
            mean=float(statistics.mean[row]),
            deviation=float(statistics.deviation()[row]),
            active=float(statistics.active[row]) / max(statistics.count, 1),
            smallest=float(statistics.smallest[row]),
            largest=float(statistics.largest[row]),
            relevance=float(statistics.relevance[row]),
            absolute=float(statistics.absolute[row]),
        )
        return UnitReport(
            place,
            unit,
            self.header["model_class"],
            self.header["table"],
            self.labels.get((place, unit)),
            numbers,
            tuple(self._top(place, found.activation, row)),
            tuple(top for top in self._top(place, found.relevance, row) if top.value > 0),
            tuple(read_words(self.folder / WORDS, place, unit)),
        )

    def values(self, place: str, by: str = "activation") -> Tensor:  # type: ignore[override]
        """The largest activations (or `by="relevance"`) of all units of a place, [units, top]; -inf where there are fewer
        samples."""
        return self._extremes(place, by).values

    def statistics(self, place: str) -> dict[str, Tensor]:
        """The statistics of all units of a place, [units] in float64: `mean` and `deviation` of the activation, the share
        of positions at which it is `active` (above 0), `smallest`, `largest`, mean `relevance`, mean `absolute` relevance;
        and `count`, the number of positions."""
        self[place]
        found = self._of(place).statistics
        named = found.tensors()
        named["active"] = named["active"] / max(found.count, 1)
        del named["squares"]
        return {**named, "deviation": found.deviation()}

    def to_dataframe(self, place: str, by: str = "activation") -> DataFrame:
        """The largest samples as lines: `unit`, `rank`, `value`, `key`, `position`, `token`. Raises InputError without
        pandas."""
        pandas = pandas_for("Corpus.to_dataframe")
        found = self._extremes(place, by)
        lines = [
            {
                "unit": unit,
                "rank": rank,
                "value": top.value,
                "key": top.sample.key,
                "position": top.position,
                "token": top.token,
            }
            for row, unit in enumerate(self[place])
            for rank, top in enumerate(self._top(place, found, row))
        ]
        return pandas.DataFrame(lines, columns=["unit", "rank", "value", "key", "position", "token"])

    def heatmaps(
        self,
        place: str,
        unit: int,
        *,
        by: str = "activation",
        count: int = 4,
        target: TargetLike = None,
        labels: Sequence[str] | None = None,
    ) -> UnitReport:
        """The report of a unit with a heatmap of its first `count` samples: the relevance of the inputs that runs through
        this unit at the position of its largest value (its conditional relevance, Achtibat et al. 2023). `target` and
        `labels` are those of the corpus.

        Runs the model once for each sample. Raises InputError without a model, for another target, and for a sample that
        was a picture or a sound in memory, which is no longer there.
        """
        from lxt_fx.inside.corpus.unit_heatmaps import unit_heatmaps

        if self.model is None:
            raise InputError("Corpus.heatmaps: needs the model: lxt_fx.Corpus(folder, model=..., processor=...)")
        report = self.unit(place, unit)
        tops = list(report.by_relevance if by == "relevance" else report.by_activation)
        self._extremes(place, by)
        some = tops[:count]
        made = unit_heatmaps(self.model, self.processor, self.header, place, report.unit, some, target, labels)
        whole = (*made, *tops[count:])
        return replace(report, by_relevance=whole) if by == "relevance" else replace(report, by_activation=whole)

    def merge(self, other: Corpus, folder: str | Path) -> Corpus:
        """The result over the samples of both, in a new folder, as one pass over both would give it (words are those of
        this one, labels of both; of two labels of one unit, this one's). Samples of `other` are numbered behind these.

        Raises InputError if they are of other models, places, units or targets, if both have read a sample of the same
        key, and for a folder that has something in it.
        """
        if not isinstance(other, Corpus):
            raise InputError(
                f"Corpus.merge: the other result is a Corpus, got {other!r:.100}; lxt_fx.Corpus(folder) opens one"
            )
        if differ := differences(self.header, other.header, BY_HAND):
            raise InputError(f"Corpus.merge: the two results differ in {'; '.join(differ[:3])}")
        both = set(self._store.lines(KEYS)).intersection(other._store.lines(KEYS))
        if both:
            raise InputError(
                f"Corpus.merge: {len(both)} samples were read by both, such as {sorted(both)[0]!r}; a sample counts once"
            )
        return _merged(self, other, CorpusFolder(folder))

    def _extremes(self, place: str, by: str) -> Extremes:
        if by not in ("activation", "relevance"):
            raise InputError(f'Corpus: by must be "activation" or "relevance", got {by!r}')
        self[place]
        found = self._of(place)
        return found.activation if by == "activation" else found.relevance

    def _row(self, place: str, unit: int) -> tuple[int, int]:
        self[place]
        try:
            unit = operator.index(unit)
        except TypeError as error:
            raise InputError(f"Corpus: a unit is a whole number, got {unit!r}") from error
        return unit, self.places[place].row(place, unit, "Corpus")

    def _of(self, place: str) -> PlaceUnits:
        if self._units is None:
            self._units = self._store.units(self._progress, self.places, "Corpus")
        return self._units[place]

    def _top(self, place: str, found: Extremes, row: int) -> Iterator[TopSample]:
        if self._samples is None:
            self._samples = {sample.number: sample for sample in self._store.kept(self._progress)}
        reads = self._progress.reads.get(place, Reads())
        columns = (each[row].tolist() for each in (found.values, found.samples, found.positions))
        for value, number, position in zip(*columns, strict=True):
            if number != NONE and math.isfinite(value):
                yield TopSample(value, self._samples[number], position, reads)


def _checked_model(model: nn.Module, header: Mapping[str, Any], path: Path) -> nn.Module:
    """The model, which may be explained. Raises InputError for another one than that of the header."""
    made = model if isinstance(model, Explained) else transform(model, rules=header["table"])
    record = made.record
    own = {"model_class": record.model_class, "table": record.table_name, "weights": weights_hash(made)}
    own |= {"rules": rules_hash(made)}
    if differ := differences({name: header[name] for name in own}, own):
        raise InputError(
            f"Corpus: {str(path)!r} is the result of another model, which differs in {'; '.join(differ)}; where only rules "
            "differ, give what transform or splice made, as it was read"
        )
    return model


def _merged(one: Corpus, other: Corpus, store: CorpusFolder) -> Corpus:
    store.begin(one.header, "Corpus.merge")
    first, second, shift = one._progress, other._progress, one._progress.read
    progress = Progress(
        windows=first.windows + second.windows, read=first.read + second.read, good=first.good + second.good,
        digest=f"{first.digest} {second.digest}", reads={**second.reads, **first.reads},
    )  # fmt: skip
    units = one._store.units(first, one.places, "Corpus.merge")
    for place, further in other._store.units(second, other.places, "Corpus.merge").items():
        for extremes in (further.activation, further.relevance):
            extremes.samples = torch.where(extremes.samples == NONE, NONE, extremes.samples + shift)
        units[place].merge(further)
    for name in (KEYS, BAD):
        lines = (line if name == KEYS else {**line, "number": line["number"] + shift} for line in other._store.lines(name))
        store.append_all(progress, name, itertools.chain(one._store.lines(name), lines))
    numbers = set(torch.cat([each.numbers() for each in units.values()]).tolist())
    moved = (replace(sample, number=sample.number + shift) for sample in other._store.kept(second))
    kept = (sample for sample in itertools.chain(one._store.kept(first), moved) if sample.number in numbers)
    if (one.folder / WORDS).is_file():
        (store.path / WORDS).write_bytes((one.folder / WORDS).read_bytes())
    store.finish(progress, units, kept)
    made = Corpus(store.path, model=one.model, processor=one.processor)
    for key, label in {**other.labels, **one.labels}.items():
        made.labels[key] = label
    return made
