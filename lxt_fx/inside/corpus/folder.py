"""The folder of a corpus while it is read and afterwards: each step is complete or was not taken, so a pass that was killed
goes on where it was.

| file | what it holds |
|---|---|
| `corpus.json` | what was asked of which model: it must be the same when a pass is continued or two are merged |
| `progress.json` | how far the pass is. It is replaced last, and names the file of the units that belongs to it |
| `units.safetensors` | of each place the largest samples of each unit, and the statistics |
| `samples.parquet` | the samples that some unit has among its largest |
| `keys.jsonl`, `bad.jsonl` | the key of each sample that was read; those that could not be explained, with the reason |
| `words.parquet` | what each unit writes, where that is known |
| `labels.toml` | labels, which a person writes |

While the pass runs, `units-7.safetensors` belongs to window 7, and `samples/7.parquet` has the samples of that window.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.base.whole_file import to_disk, whole_file
from lxt_fx.inside.corpus.batches import Bad
from lxt_fx.inside.corpus.extremes import Extremes, distinct
from lxt_fx.inside.corpus.kept_samples import KeptSample, read_samples, write_samples
from lxt_fx.inside.corpus.samples import Sample
from lxt_fx.inside.corpus.unit_statistics import UnitStatistics
from lxt_fx.inside.corpus.units_by_token import Reads

FORMAT = 2
HEADER, PROGRESS, UNITS, SAMPLES = "corpus.json", "progress.json", "units.safetensors", "samples.parquet"
KEYS, BAD, WORDS, LABELS = "keys.jsonl", "bad.jsonl", "words.parquet", "labels.toml"
OURS = (HEADER, PROGRESS, UNITS, SAMPLES, KEYS, BAD, WORDS)


@dataclass(slots=True, eq=False)
class PlaceUnits:
    """What was found of the units of one place so far."""

    activation: Extremes
    relevance: Extremes
    statistics: UnitStatistics

    @classmethod
    def empty(cls, units: int, top: int, dtype: torch.dtype, device: torch.device) -> PlaceUnits:
        """No sample yet."""
        by_activation, by_relevance = (Extremes.empty(units, top, dtype, device) for _ in range(2))
        return cls(by_activation, by_relevance, UnitStatistics.empty(units, device))

    def to(self, device: torch.device) -> PlaceUnits:
        """The same on this device."""
        return PlaceUnits(self.activation.to(device), self.relevance.to(device), self.statistics.to(device))

    def numbers(self) -> Tensor:
        """The numbers of all samples that some unit has, sorted."""
        return distinct(torch.cat([self.activation.numbers(), self.relevance.numbers()]))

    def merge(self, other: PlaceUnits) -> None:
        """Takes in what was found in other samples."""
        self.activation.merge(other.activation)
        self.relevance.merge(other.relevance)
        self.statistics.merge(other.statistics)


@dataclass(slots=True, eq=False)
class Progress:
    """How far a pass is: `read` samples in so many `windows`, of which `good` were explained. `digest` is a hash of the
    keys and the contents of all that were read. `lengths` are the bytes of the files that only grow; `reads` says what the
    positions of each place are. `units` is the file of the units; `done` says that all samples were read."""

    windows: int = 0
    read: int = 0
    good: int = 0
    digest: str = ""
    lengths: dict[str, int] = field(default_factory=lambda: {KEYS: 0, BAD: 0})
    reads: dict[str, Reads] = field(default_factory=dict)
    units: str = ""
    done: bool = False

    def chained(self, samples: Iterable[Sample]) -> str:
        """The digest behind these further samples."""
        found = self.digest
        for sample in samples:
            found = hashlib.sha256(f"{found} {sample.key} {sample.content}".encode()).hexdigest()
        return found


class CorpusFolder:
    """The files of one corpus."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def exists(self) -> bool:
        """Whether a corpus was begun here."""
        return (self.path / HEADER).is_file()

    def begin(self, header: Mapping[str, Any], function: str) -> None:
        """Makes the folder. Raises InputError if something else is in it."""
        if self.path.exists() and any(each.name != LABELS for each in self.path.iterdir()):
            raise InputError(
                f"{function}: {str(self.path)!r} is a folder with other files ({_some(self.path)}); give an empty "
                "or a new one"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        self._replace(HEADER, _json(header))

    def clear(self) -> None:
        """Takes away what a pass wrote; labels, which a person wrote, stay."""
        (self.path / HEADER).unlink()  # first, so that a half-cleared folder is none of a corpus
        shutil.rmtree(self.path / "samples", ignore_errors=True)
        for each in (
            *(self.path / name for name in OURS),
            *self.path.glob("units-*.safetensors"),
            *self.path.glob("*.new"),
        ):
            each.unlink(missing_ok=True)

    def header(self, function: str) -> dict[str, Any]:
        """What was asked. Raises InputError for a folder that is not of a corpus, or of another version."""
        if not self.exists():
            raise InputError(f"{function}: {str(self.path)!r} is no folder of a corpus: it has no {HEADER}")
        return read_header(self.path / HEADER, FORMAT, function)

    def progress(self) -> Progress:
        """How far the pass is."""
        if not (self.path / PROGRESS).is_file():
            return Progress()
        found = json.loads((self.path / PROGRESS).read_text(encoding="utf-8"))
        reads = {name: Reads(**each) for name, each in found.pop("reads").items()}
        return Progress(**found, reads=reads)

    def units(self, progress: Progress, places: Iterable[str], function: str) -> dict[str, PlaceUnits]:
        """What was found so far, by place. Raises InputError for a file that is damaged."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            found = load_file(self.path / progress.units)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{function}: {str(self.path / progress.units)!r} cannot be read: {error}") from error
        return {
            place: PlaceUnits(
                Extremes.of_tensors(_below(found, f"{place}/activation/")),
                Extremes.of_tensors(_below(found, f"{place}/relevance/")),
                UnitStatistics.of_tensors(_below(found, f"{place}/statistics/")),
            )
            for place in places
        }

    def truncate(self, progress: Progress) -> None:
        """Takes away what was written behind the last complete step."""
        for name, length in progress.lengths.items():
            with (self.path / name).open("ab") as file:
                file.truncate(length)
        for each in (self.path / "samples").glob("*.parquet*"):
            if int(each.name.partition(".")[0]) > progress.windows:
                each.unlink()

    def save_window(
        self, progress: Progress, units: Mapping[str, PlaceUnits], kept: Iterable[KeptSample], samples: Iterable[Sample],
        bad: Iterable[Bad],
    ) -> None:  # fmt: skip
        """Completes a window, whose number is that of `progress`."""
        (self.path / "samples").mkdir(exist_ok=True)
        write_samples(kept, self.path / "samples" / f"{progress.windows}.parquet")
        lines = ({"key": each.sample.key, "number": each.sample.number, "reason": each.reason} for each in bad)
        self._append(progress, BAD, lines)
        self._append(progress, KEYS, (sample.key for sample in samples))
        self._commit(progress, units, f"units-{progress.windows}.safetensors")

    def window_samples(self, windows: int, numbers: Tensor) -> Iterator[KeptSample]:
        """The samples of all windows that have these numbers."""
        for window in range(1, windows + 1):
            yield from read_samples(self.path / "samples" / f"{window}.parquet", numbers)

    def finish(self, progress: Progress, units: Mapping[str, PlaceUnits], samples: Iterable[KeptSample]) -> None:
        """Completes the pass: one file of samples, without those that no unit has any more."""
        write_samples(samples, self.path / f"{SAMPLES}.new")
        os.replace(self.path / f"{SAMPLES}.new", self.path / SAMPLES)
        progress.done = True
        self._commit(progress, units, UNITS)
        shutil.rmtree(self.path / "samples", ignore_errors=True)

    def kept(self, progress: Progress) -> Iterator[KeptSample]:
        """The samples that the folder has."""
        if progress.done:
            yield from read_samples(self.path / SAMPLES)
        else:
            for window in range(1, progress.windows + 1):
                yield from read_samples(self.path / "samples" / f"{window}.parquet")

    def lines(self, name: str) -> Iterator[Any]:
        """The lines of one of the files that grow."""
        with (self.path / name).open(encoding="utf-8") as file:
            yield from map(json.loads, file)

    def append_all(self, progress: Progress, name: str, lines: Iterable[Any]) -> None:
        """Adds lines to one of the files that grow."""
        self._append(progress, name, lines)

    def _append(self, progress: Progress, name: str, lines: Iterable[Any]) -> None:
        with (self.path / name).open("ab") as file:
            for line in lines:
                file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            to_disk(file)
            progress.lengths[name] = file.tell()

    def _commit(self, progress: Progress, units: Mapping[str, PlaceUnits], name: str) -> None:
        from safetensors.torch import save_file

        before, progress.units = progress.units, name
        save_file(
            {
                f"{place}/{part}/{key}": tensor
                for place, found in units.items()
                for part in ("activation", "relevance", "statistics")
                for key, tensor in getattr(found, part).tensors().items()
            },
            self.path / f"{name}.new",
        )
        os.replace(self.path / f"{name}.new", self.path / name)
        self._replace(PROGRESS, _json(asdict(progress)))
        if before and before != name:
            (self.path / before).unlink(missing_ok=True)

    def _replace(self, name: str, text: str) -> None:
        with whole_file(self.path / name) as file:
            file.write(text.encode())


def _json(found: Any) -> str:
    return json.dumps(found, ensure_ascii=False, indent=1) + "\n"


def _below(found: Mapping[str, Tensor], start: str) -> dict[str, Tensor]:
    return {name.removeprefix(start): tensor for name, tensor in found.items() if name.startswith(start)}


def _some(path: Path) -> str:
    return ", ".join(sorted(each.name for each in path.iterdir())[:4])


def read_header(path: Path, version: int, function: str) -> dict[str, Any]:
    """What the header of a folder says. Raises InputError for one that cannot be read, or of another version."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        own = found["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{function}: {str(path)!r} cannot be read: {error}") from error
    if own != version:
        raise InputError(f"{function}: {str(path.parent)!r} has format {own}, and this version reads {version}")
    return found


def differences(one: Mapping[str, Any], other: Mapping[str, Any], apart: Iterable[str] = ()) -> list[str]:
    """What two headers differ in, each with both values, but for the entries named in `apart`."""
    found, without = list[str](), set(apart)
    for name in dict.fromkeys((*one, *other)):
        mine, theirs = one.get(name), other.get(name)
        if name in without or mine == theirs:
            continue
        if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
            found += [f"{name}: {each}" for each in differences(mine, theirs)]
        else:
            found.append(f"{name} {_short(mine)} and {_short(theirs)}")
    return found


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
