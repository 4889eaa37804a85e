"""A whole corpus explained: for each sample the relevance of its tokens or patches, as a line of parquet."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lxt_fx.attribution.target import TargetLike
from lxt_fx.base.errors import InputError
from lxt_fx.base.progress import lasting, stage
from lxt_fx.compiler.options import Rules
from lxt_fx.corpora.explainer import CorpusExplainer
from lxt_fx.corpora.folder import DONE, FORMAT, ExplainedFolder
from lxt_fx.corpora.ray_workers import steps_on_ray
from lxt_fx.corpora.result import ExplainedCorpus
from lxt_fx.corpora.steps import Step, step_of
from lxt_fx.corpora.stream import Done, Keyed, count_of, keyed, not_done, read_samples, windows_of
from lxt_fx.corpora.wanted import TOKENS
from lxt_fx.inside.corpus.explained_for import none_good, peeked
from lxt_fx.inside.corpus.header import check_counts, model_facts
from lxt_fx.inside.corpus.samples import Fields, Sample
from lxt_fx.tasks.made_explanation import versions_now

FUNCTION = "explain_corpus"

WINDOW = 128
"""How many samples are sorted by length at once, and are one file of the result."""

FIRST = 16
"""Of how many samples the first that can be read is what a model of pictures is captured on."""


@lasting
def explain_corpus(
    model: nn.Module | Any,
    processor: Any,
    samples: Any,
    target: TargetLike = None,
    *,
    folder: str | Path,
    field: str | None = None,
    key: str | None = None,
    labels: Sequence[str] | None = None,
    rules: Rules | None = None,
    latent: str | Sequence[str] = (),
    top: int = 10,
    batch_tokens: int = TOKENS,
    workers: int | None = None,
    resume: bool = True,
    progress: bool | None = None,
) -> ExplainedCorpus:
    """Explains every sample of a corpus: what `explain` gives for each of them becomes a line of parquet files in `folder`.

    `model`, `processor`, `target`, `labels` and `rules` are as in `explain`; one target is for all samples. `samples` is a
    file (`.jsonl` or `.parquet`), a folder of such files, a data set of Hugging Face or of Ray, or an iterable of what
    `explain` takes as one input: texts, chats, pictures, paths of pictures, dicts with these. Of a dict or a line `field`
    is read, else `text`, `messages` or `image`.

        found = lxt_fx.explain_corpus(model, tokenizer, "texts.parquet", folder="explained", workers=2)
        found["texts.parquet:17"]          # the explanation of one sample
        found.to_table()                   # all of them, as a table of pyarrow

    Each sample has a key: its field `key`, else its own `key` or `id`; in a file the name of the file and its line;
    elsewhere a hash of its content, with `-2` behind it where the same content comes again. A line has `key`, `number` (the
    place in the corpus), `tokens`, `relevance`, `explained` (which number), its `value`, and `answer`, what the model says
    by itself. With `latent`, names of places (`lxt_fx.places`), it has the `top` strongest `units` of each place. Pictures
    are written with the relevance of their patches. The metadata of each file says what was asked of which model.

    A sample is explained once. Samples are read in windows of 128, which are explained in batches by length of at most
    `batch_tokens` tokens with their padding; a window is one file, which has its name once it is whole. A run that was
    killed, whenever that was, goes on if it is called again with the same arguments; so does one whose corpus has grown.
    With `resume=False` it begins anew. A sample that cannot be read or explained, and a second one of a key, is a line in
    `bad/` with the reason. Memory holds a window, and the keys of all samples.

    With `workers` so many processes of Ray explain windows, on this machine or on the cluster that `ray.init` reached; the
    lines are the same. A worker that dies is started again. `CorpusExplainer` is the same as a stage of your own pipeline.

    Raises InputError for a source that is empty, cannot be read or lacks the field, for a folder that holds something else,
    the result of another model or of other arguments (it says which), or another sample of the same key, if no sample of
    the first window can be explained, and without pyarrow or, for workers, Ray; UnknownNameError for a place that there is
    not; CallError for a module inside a block of `steer`.
    """
    if workers is not None:
        check_counts(FUNCTION, workers=workers)
    explainer = CorpusExplainer(
        model, processor, target, field=field, key=key, labels=labels, rules=rules, latent=latent, top=top,
        batch_tokens=batch_tokens, function=FUNCTION,
    )  # fmt: skip
    first, stream = peeked(read_samples(samples, Fields(field, key), FUNCTION), FIRST, FUNCTION)
    header = header_of(explainer, first)
    store = ExplainedFolder(folder)
    run = _Run(store, store.open(header, FUNCTION, resume=resume), count_of(samples))
    windows = windows_of(not_done(run.counted(keyed(stream)), run.done, FUNCTION, store.path), WINDOW)
    if workers is None:
        run.take(step_of(window, explainer, header) for window in windows)
    else:
        run.take(steps_on_ray(windows, explainer, header, workers))
    return ExplainedCorpus(folder)


def header_of(explainer: CorpusExplainer, first: Sequence[Sample]) -> dict[str, Any]:
    """What is asked of which model and processor, as plain values. `first` are the first samples of the corpus."""
    explained, wanted = explainer.module(first), explainer.wanted
    return {
        "format": FORMAT,
        **model_facts(explained, explainer.processor, wanted.target, wanted.labels, FUNCTION),
        "latent": list(wanted.places),
        "top": wanted.top if wanted.places else 0,
        "batch_tokens": wanted.batch_tokens,
        "window": WINDOW,
        "versions": versions_now(),
    }


@dataclass(slots=True, eq=False)
class _Run:
    """One call: `done` is what the folder had before, `total` the number of samples if it is known; `read` of them were
    read so far, `explained` and `bad` are those of this call."""

    store: ExplainedFolder
    done: Done
    total: int | None
    read: int = 0
    explained: int = 0
    bad: int = 0

    def counted(self, samples: Iterable[Keyed]) -> Iterator[Keyed]:
        """The samples, counted as they are read."""
        for one in samples:
            self.read += 1
            yield one

    def take(self, steps: Iterator[Step]) -> None:
        """Writes one window after another, and that all of them are there. Raises InputError if the first one has no sample
        that can be explained."""
        begun = time.perf_counter()
        while True:
            with stage(self._said()):
                step = next(steps, None)
            if step is None:
                break
            if not self.done.lines and not self.explained and not len(step.lines):
                raise InputError(none_good([(each["key"], each["reason"]) for each in step.bad], FUNCTION))
            self.store.take(step)
            self.explained += len(step.lines)
            self.bad += len(step.bad)
        last = {"explained": self.explained, "bad": self.bad, "seconds": time.perf_counter() - begun}
        self.store.replace(DONE, {"samples": self.read, "last_run": last})

    def _said(self) -> str:
        behind = len(self.done.contents) + len(self.done.again) + self.explained + self.bad
        return f"explaining samples ({behind} of {'all' if self.total is None else self.total} done)"
