"""The samples of a corpus on their way: from any source, each with a key of its own, without those that are done."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lxt_fx.base.errors import InputError
from lxt_fx.inside.corpus.samples import ENDINGS, Fields, Sample, samples_of

SECOND = "the key is that of another sample"


@dataclass(frozen=True, slots=True)
class Keyed:
    """A sample, and which of those with its key it is, from 1 on. Only the first is explained."""

    sample: Sample
    occurrence: int = 1


@dataclass(slots=True)
class Done:
    """What a folder has: so many lines, the content of each sample that is done by its key, and the further samples of a
    key, with their count, that were refused."""

    lines: int = 0
    contents: dict[str, str] = field(default_factory=dict)
    again: set[tuple[str, int]] = field(default_factory=set)

    def has(self, keyed: Keyed) -> bool:
        """Whether a sample is done."""
        if keyed.occurrence > 1:
            return (keyed.sample.key, keyed.occurrence) in self.again
        return keyed.sample.key in self.contents


def is_ray_dataset(samples: Any) -> bool:
    """Whether this is a data set of Ray Data, of which no module is imported to see it."""
    return type(samples).__module__.split(".")[:2] == ["ray", "data"] and hasattr(samples, "iter_rows")


def read_samples(samples: Any, fields: Fields, function: str) -> Iterator[Sample]:
    """The samples of a file, a folder of files, a data set or any iterable. A sample of a file that has no key has the name
    of the file and its line. Raises what `samples_of` raises, and InputError for a folder without such files."""
    if is_ray_dataset(samples):
        return samples_of(samples.iter_rows(), fields, function)
    if not isinstance(samples, (str, Path)):
        return samples_of(samples, fields, function)
    path = Path(samples)
    if not path.is_dir():
        return samples_of(path, fields, function, path.name)
    files = sorted(each for each in path.rglob("*") if each.suffix in ENDINGS)
    if not files:
        raise InputError(f"{function}: the folder {str(path)!r} has no file that ends in {', '.join(ENDINGS)}")
    every = (samples_of(each, fields, function, each.relative_to(path).as_posix()) for each in files)
    return (replace(one, number=number) for number, one in enumerate(itertools.chain.from_iterable(every)))


def count_of(samples: Any) -> int | None:
    """How many samples there are, where that is known without reading them."""
    if is_ray_dataset(samples):
        return None
    if isinstance(samples, Sized) and not isinstance(samples, (str, Path)):
        return len(samples)
    if isinstance(samples, (str, Path)) and Path(samples).suffix == ".parquet" and Path(samples).is_file():
        from pyarrow import ArrowException, parquet

        try:
            return int(parquet.read_metadata(samples).num_rows)
        except (ArrowException, OSError):  # it is said where the file is read
            return None
    return None


def keyed(samples: Iterable[Sample]) -> Iterator[Keyed]:
    """The samples with keys that no two of them share. The same content again, without a key of its own, is a sample of its
    own (`-2` behind its key); a second sample of a given key is a bad one."""
    seen: dict[str, int] = {}
    for sample in samples:
        count = seen[sample.key] = seen.get(sample.key, 0) + 1
        if count == 1:
            yield Keyed(sample)
        elif sample.key == sample.content:
            yield Keyed(replace(sample, key=f"{sample.key}-{count}"))
        else:
            yield Keyed(replace(sample, reason=f"{SECOND}, which came before it: each needs its own"), count)


def not_done(samples: Iterable[Keyed], done: Done, function: str, folder: Path) -> Iterator[Keyed]:
    """The samples that a folder has not. Raises InputError for one that was another when it was read."""
    for one in samples:
        if not done.has(one):
            yield one
        elif one.occurrence == 1 and done.contents[one.sample.key] != one.sample.content:
            raise InputError(
                f"{function}: the sample {one.sample.key!r} is another now than when {str(folder)!r} was written; give the "
                "changed one another key, another folder for all, or resume=False to begin anew"
            )


def windows_of(samples: Iterable[Keyed], size: int) -> Iterator[list[Keyed]]:
    """The samples in groups of `size`; the last may be smaller. Whole groups that are done, and left out, do not change the
    others: the same samples stand together, so the same numbers come out."""
    stream = iter(samples)
    while found := list(itertools.islice(stream, size)):
        yield found


