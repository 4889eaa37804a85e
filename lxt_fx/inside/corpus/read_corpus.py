"""What the units of a model stand for: the samples of a corpus with the largest activation and the largest relevance."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lxt_fx.attribution.places import places_at
from lxt_fx.attribution.target import TargetLike
from lxt_fx.base.errors import InputError, NonFiniteError
from lxt_fx.base.grad_mode import gradients_on
from lxt_fx.base.progress import lasting, stage
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.options import Rules
from lxt_fx.inside.corpus.batches import WINDOW, batches, given_of, measured, one_by_one, windows
from lxt_fx.inside.corpus.explained_for import explained_for, none_good, peeked
from lxt_fx.inside.corpus.extremes import distinct
from lxt_fx.inside.corpus.folder import WORDS, CorpusFolder, PlaceUnits, Progress, differences
from lxt_fx.inside.corpus.header import PlaceHeader, Units, check_counts, check_target, header_of, place_headers
from lxt_fx.inside.corpus.kept_samples import KeptSample, kept_sample
from lxt_fx.inside.corpus.result import Corpus
from lxt_fx.inside.corpus.samples import Fields, Sample, needs_pyarrow, samples_of
from lxt_fx.inside.corpus.unit_statistics import UnitStatistics
from lxt_fx.inside.corpus.units_by_token import Reads, by_token, reads_of
from lxt_fx.inside.inside_call import inside_call
from lxt_fx.tasks.reading import opened_with

FUNCTION = "corpus"
TOKENS = 2048
"""The most tokens of a batch, padding included."""


@lasting
def corpus(
    model: nn.Module | Any,
    processor: Any,
    samples: Any,
    places: str | Sequence[str],
    *,
    folder: str | Path,
    target: TargetLike = None,
    units: Units = None,
    top: int = 16,
    field: str | None = None,
    labels: Sequence[str] | None = None,
    rules: Rules | None = None,
    batch_tokens: int = TOKENS,
    words: int = 8,
    resume: bool = True,
    progress: bool | None = None,
) -> Corpus:
    """Reads a corpus, and gives for each unit of some places the samples that make it largest, its statistics, and what it
    writes.

    `model` is a model or what `transform` made from one, `processor` its tokenizer or image processor. `samples` is a
    file (`.jsonl` or `.parquet`, with `field`, else `text`, `messages` or `image` in each line) or an iterable of what
    `explain` takes as one input: texts, chats, pictures, paths of pictures, dicts with these. `places` are standard names,
    module paths or `%node`s with an axis of tokens (`lxt_fx.places`); a unit is an index of the last axis, or one head.
    `units` chooses some: numbers for every place, or numbers by place.

    For each unit the `top` samples with the largest activation at one of their tokens are found, and apart from these the
    `top` with the largest relevance: what made the model say what it says is often something else than what made the unit
    large (relevance maximisation, Achtibat et al. 2023, From Attribution Maps to Human-Understandable Explanations through
    Concept Relevance Propagation). What is explained is the `target` of each sample, one for all, by default what
    `explain` takes: what the model says. A head's activation is the norm of its output, its relevance the sum over it.

        found = lxt_fx.corpus(model, tokenizer, "texts.jsonl", "mlp.*.neurons", folder="neurons")
        print(found.unit("mlp.3.neurons", 17))

    One forward and one backward run for each batch, of at most `batch_tokens` tokens with their padding, which is in no
    result. The corpus is read once, in windows of 128 samples, and memory does not grow with it. Behind each window all is
    written to `folder`. A pass that was killed goes on where it was if it is called again with the same arguments, and
    gives the same files; with `resume=False` it begins anew. A sample that cannot be read or explained is a line in
    `bad.jsonl` with the reason. `words` is how many tokens of what a unit writes are stored (`lxt_fx.inside.directions`), 0
    for none. `labels` are names of classes as in `explain`.

    Raises InputError for a file that is empty, is no text or lacks the field, for units that a place does not have, for a
    folder that holds something else or the result of another model or other arguments (it says which), if no sample of
    the first window can be explained, and without pyarrow; UnknownNameError for a place that there is not; CallError for
    a module inside a block of `steer`.
    """
    needs_pyarrow(FUNCTION)
    check_target(target, FUNCTION)
    check_counts(FUNCTION, top=top, batch_tokens=batch_tokens)
    with gradients_on():
        module, processor = opened_with(model, processor, FUNCTION)
        if isinstance(module, Explained):
            module._refuse_steering(FUNCTION)
        first, stream = peeked(samples_of(samples, Fields(field), FUNCTION), WINDOW, FUNCTION)
        explained = explained_for(module, processor, first, rules, FUNCTION)
        found = place_headers(places_at(explained, places, FUNCTION), units, FUNCTION)
        header = header_of(explained, processor, found, target, labels, top, batch_tokens, WINDOW, FUNCTION)
        store = CorpusFolder(folder)
        state = _begun(store, header, resume)
        one_pass = _Pass(explained, processor, store, found, target, labels, top, batch_tokens, state)
        one_pass.run(stream, words)
        return Corpus(folder, model=explained, processor=processor)


def _begun(store: CorpusFolder, header: Mapping[str, Any], resume: bool) -> Progress:
    """How far the pass of this folder is. Raises InputError for one that was asked something else."""
    if store.exists() and not resume:
        store.clear()
    if not store.exists():
        store.begin(header, FUNCTION)
        return Progress()
    if differ := differences(store.header(FUNCTION), header):
        raise InputError(
            f"{FUNCTION}: {str(store.path)!r} has the result of another call, which differs in {'; '.join(differ[:3])}; "
            "give another folder, or resume=False to begin anew"
        )
    return store.progress()


@dataclass(slots=True, eq=False)
class _Read:
    """What one batch gave at one place: activation and relevance [batch, tokens, units], which positions [batch, tokens]
    are the samples' own (None: all), and the statistics over these."""

    activation: Tensor
    relevance: Tensor
    mask: Tensor | None
    statistics: UnitStatistics
    reads: Reads


@dataclass(slots=True, eq=False)
class _Pass:
    """One pass over a corpus, from where `progress` is."""

    explained: Explained
    processor: Any
    store: CorpusFolder
    places: Mapping[str, PlaceHeader]
    target: TargetLike
    labels: Sequence[str] | None
    top: int
    tokens: int
    progress: Progress
    found: dict[str, PlaceUnits] = field(default_factory=dict)

    def run(self, samples: Iterator[Sample], words: int) -> None:
        """Reads all windows that were not read yet, and completes the folder."""
        if self.progress.windows:
            self._skip(samples)
        if self.progress.done:
            if next(samples, None) is not None:
                raise self._others("there are more now")
            return
        self.store.truncate(self.progress)
        for window in windows(samples):
            with stage(f"reading samples {self.progress.read + 1} to {self.progress.read + len(window)}"):
                self._window(window)
        from lxt_fx.inside.directions import write_words

        with stage("reading what the units write"):
            write_words(self.explained, self.processor, self.places, words, self.store.path / WORDS)
            kept = self.store.window_samples(self.progress.windows, self._numbers())
            self.store.finish(self.progress, self.found, kept)

    def _skip(self, samples: Iterator[Sample]) -> None:
        """Goes on behind the samples that were read. Raises InputError if these are others."""
        again = Progress()
        for window in windows(itertools.islice(samples, self.progress.read)):
            again.digest = again.chained(window)
            again.read += len(window)
        if again.read < self.progress.read:
            raise self._others(f"there are {again.read} now")
        if again.digest != self.progress.digest:
            raise self._others("their keys or contents differ")
        self.found = self.store.units(self.progress, self.places, FUNCTION)

    def _others(self, why: str) -> InputError:
        return InputError(
            f"{FUNCTION}: {str(self.store.path)!r} is the result of {self.progress.read} other samples ({why}); give the "
            "same ones to go on, another folder for others (and merge the two), or resume=False to begin anew"
        )

    def _window(self, window: Sequence[Sample]) -> None:
        good, bad = measured(self.explained, self.processor, window, FUNCTION)
        kept, before = list[KeptSample](), len(bad)
        for batch in batches(good, self.tokens):
            found, wrong = one_by_one(batch, self._explained, FUNCTION)
            kept += found
            bad += wrong
        explained = len(good) - (len(bad) - before)
        if self.progress.good + explained == 0:
            raise InputError(none_good([(each.sample.key, each.reason) for each in bad], FUNCTION))
        now = self._numbers()
        wanted = set(now[now >= window[0].number].tolist())
        progress = self.progress
        progress.windows, progress.read = progress.windows + 1, progress.read + len(window)
        progress.good, progress.digest = progress.good + explained, progress.chained(window)
        kept = sorted((one for one in kept if one.number in wanted), key=lambda one: one.number)
        bad.sort(key=lambda one: one.sample.number)
        self.store.save_window(progress, self.found, kept, window, bad)

    def _numbers(self) -> Tensor:
        """The numbers of all samples that some unit has."""
        return distinct(torch.cat([each.numbers() for each in self.found.values()]))

    def _explained(self, batch: Sequence[Sample]) -> list[KeptSample]:
        """Takes in a batch, if all of it can be explained. Returns the samples that some unit has now."""
        given, _ = given_of(self.explained, self.processor, batch, FUNCTION)
        inside = inside_call(
            self.explained, self.processor, given, self.target, tuple(self.places), FUNCTION, labels=self.labels
        )
        (relevance,) = inside.run.relevance(inside.run.inside, None)
        read = dict[str, _Read]()
        for (name, place), activation, own in zip(inside.places.items(), inside.run.inside, relevance, strict=True):
            values = by_token(place, inside.layouts[name], activation.detach(), own[0], FUNCTION)
            reads, mask = reads_of(inside, name, values[0].shape[1])
            read[name] = self._of_place(name, *values, reads, mask)
        numbers = torch.tensor([sample.number for sample in batch])
        entered = torch.zeros(len(batch), dtype=torch.bool)
        for name, one in read.items():
            entered |= self._take(name, one, numbers)
        examples, explained = inside.call.given.examples, inside.call.numbers.numbers
        return [
            kept_sample(sample, examples[row], explained[row][0]) for row, sample in enumerate(batch) if bool(entered[row])
        ]

    def _of_place(self, name: str, activation: Tensor, relevance: Tensor, reads: Reads, mask: Tensor | None) -> _Read:
        units = self.places[name].units
        if units is not None:
            chosen = torch.tensor(units, device=activation.device)
            activation, relevance = activation.index_select(2, chosen), relevance.index_select(2, chosen)
        wide = torch.promote_types(activation.dtype, torch.float32)
        activation, relevance = activation.to(wide), relevance.to(wide)
        mask = None if mask is None else mask.to(activation.device)
        own = [each.flatten(0, 1) if mask is None else each[mask] for each in (activation, relevance)]
        statistics = UnitStatistics.of(*own)
        if not statistics.finite():
            raise NonFiniteError(f"{FUNCTION}: activation or relevance at {name} is NaN or infinite")
        return _Read(activation, relevance, mask, statistics, reads)

    def _take(self, name: str, read: _Read, numbers: Tensor) -> Tensor:
        """Takes in what a batch gave at a place. Returns which of its samples some unit has now."""
        device = read.activation.device
        if name not in self.found:
            units, dtype = self.places[name].read, read.activation.dtype
            self.found[name] = PlaceUnits.empty(units, self.top, dtype, device)
        elif self.found[name].activation.values.device != device:
            self.found[name] = self.found[name].to(device)  # what was read from the folder
        self.progress.reads.setdefault(name, read.reads)
        found, own = self.found[name], numbers.to(device)
        found.statistics.merge(read.statistics)
        entered = found.activation.add(_own(read.activation, read.mask), own)
        return (entered | found.relevance.add(_own(read.relevance, read.mask), own)).cpu()


def _own(values: Tensor, mask: Tensor | None) -> Tensor:
    """Values [batch, tokens, units] moved so that each sample's own come first, in order, and -inf behind them."""
    if mask is None:
        return values
    first = mask.to(torch.uint8).argmax(1)
    if bool(first.any()):  # padding on the left: positions count from a text's own first token
        columns = (torch.arange(mask.shape[1], device=mask.device) + first[:, None]) % mask.shape[1]
        rows = torch.arange(len(mask), device=mask.device)[:, None]
        values, mask = values[rows, columns], mask[rows, columns]
    return values.masked_fill(~mask[..., None], -torch.inf)
