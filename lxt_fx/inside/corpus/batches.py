"""The batches of a corpus: samples of a bounded window, by length, so that little is padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from torch import nn

from lxt_fx.attribution.readable_tokens import Tokenizer
from lxt_fx.base.errors import InputError, LxtFxError
from lxt_fx.inputs.given import Given
from lxt_fx.inputs.places import ImagePlace, TextPlace
from lxt_fx.inside.corpus.samples import Sample
from lxt_fx.tasks.reading import read

T = TypeVar("T")

WINDOW = 128
"""How many samples are sorted by length at once. Behind each window the result so far is saved."""


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """A sample that can be read, and how many tokens or patches it has."""

    sample: Sample
    length: int


@dataclass(frozen=True, slots=True, eq=False)
class Bad:
    """A sample that could not be read or explained, and why."""

    sample: Sample
    reason: str


def windows(samples: Iterator[Sample], size: int = WINDOW) -> Iterator[list[Sample]]:
    """The samples in groups of `size`; the last may be smaller."""
    while found := list(islice(samples, size)):
        yield found


def measured(
    model: nn.Module, processor: Any, samples: Sequence[Sample], function: str
) -> tuple[list[Measured], list[Bad]]:
    """The samples that can be read, and those that cannot."""
    good, bad = list[Measured](), list[Bad]()
    for sample in samples:
        if sample.reason:
            bad.append(Bad(sample, sample.reason))
            continue
        try:
            good.append(Measured(sample, _length(given_of(model, processor, [sample], function)[0])))
        except LxtFxError as error:
            bad.append(Bad(sample, reason_of(error, function)))
        except (ValueError, TypeError, KeyError, IndexError, OSError) as error:  # of the tokenizer, or of pillow
            bad.append(Bad(sample, f"cannot be read: {type(error).__name__}: {error}".splitlines()[0]))
    return good, bad


def batches(samples: Sequence[Measured], tokens: int) -> Iterator[list[Sample]]:
    """The samples from the shortest to the longest, in batches of at most so many tokens with their padding. A longer
    sample is a batch of its own."""
    batch: list[Sample] = []
    for one in sorted(samples, key=lambda each: (each.length, each.sample.number)):
        if batch and (len(batch) + 1) * one.length > tokens:
            yield batch
            batch = []
        batch.append(one.sample)
    if batch:
        yield batch


def given_of(
    model: nn.Module, processor: Any, samples: Sequence[Sample], function: str
) -> tuple[Given, Tokenizer | None]:
    """The inputs of one call with these samples, and the tokenizer. Raises InputError for what cannot be read, and for
    samples that are not one entry of the batch each."""
    values = [sample.value for sample in samples]
    given, tokenizer = read(model, processor, values, function, answer=None, sampling_rate=None)
    apart = len(given.examples) == len(samples) and all(
        place.within in (row, slice(row, row + 1)) for row, one in enumerate(given.examples) for place in one.places
    )
    if not apart:
        raise InputError(
            f"{function}: a sample must be one entry of the batch (one text, one picture); a pair that is read as two "
            "texts, or a picture in a list of patches, is none"
        )
    return given, tokenizer


def _length(given: Given) -> int:
    lengths = [1]
    for place in given.examples[0].places:
        if isinstance(place, TextPlace):
            lengths.append(len(place.own))
        elif isinstance(place, ImagePlace) and place.reading.pixel_values is not None:
            height, width = place.reading.pixel_values.shape[-2:]
            lengths.append(height * width // max(place.reading.patch, 1) ** 2)
    return max(lengths)


def reason_of(error: LxtFxError, function: str) -> str:
    """The first line of an error, without the name of the function."""
    return str(error).splitlines()[0].removeprefix(f"{function}: ")


def one_by_one(
    batch: Sequence[Sample], explain: Callable[[Sequence[Sample]], list[T]], function: str
) -> tuple[list[T], list[Bad]]:
    """What `explain` finds in a batch. Where the batch cannot be explained, its samples are explained one by one, and those
    that cannot be are returned too."""
    try:
        return explain(batch), []
    except LxtFxError as error:
        if len(batch) == 1:
            return [], [Bad(batch[0], reason_of(error, function))]
    found, bad = list[T](), list[Bad]()
    for sample in batch:
        good, wrong = one_by_one([sample], explain, function)
        found += good
        bad += wrong
    return found, bad
