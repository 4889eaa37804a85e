"""Samples explained in batches by length: in one process, in each worker, and as a stage of a user's own pipeline."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lxt_fx.attribution.attributed import attributed, call_at_all_leaves
from lxt_fx.attribution.places import places_at
from lxt_fx.attribution.target import TargetLike
from lxt_fx.base.errors import InputError, LxtFxError
from lxt_fx.base.grad_mode import gradients_on
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.options import Rules
from lxt_fx.compiler.saved_module import load
from lxt_fx.corpora.last_position import after_last_token
from lxt_fx.corpora.lines import Line, columns_of, line_schema
from lxt_fx.corpora.wanted import TOKENS, Wanted
from lxt_fx.inside.corpus.batches import Bad, batches, given_of, measured, one_by_one
from lxt_fx.inside.corpus.explained_for import explained_for
from lxt_fx.inside.corpus.header import check_counts, check_target
from lxt_fx.inside.corpus.samples import Fields, Sample, needs_pyarrow, samples_of
from lxt_fx.inside.inside_call import inside_targeted, targeted_call
from lxt_fx.inside.latent import latent_of
from lxt_fx.tasks.asked import asked_of
from lxt_fx.tasks.explain import explanations_from
from lxt_fx.tasks.explained_call import explained_call
from lxt_fx.tasks.reading import opened_with


class CorpusExplainer:
    """Explains batches of samples: a class for `map_batches` of Ray Data, and for any loop of your own.

        data = ray.data.read_parquet("texts.parquet")
        found = data.map_batches(
            lxt_fx.CorpusExplainer, fn_constructor_args=(model, tokenizer), batch_size=256, concurrency=2
        )
        found.write_parquet("explained")

    `model` is a model, what `transform` made from one, or the path of a file that `save` wrote; a model is transformed by
    each worker, with a capture of another one if `LXT_FX_CACHE` names a folder. `processor`, `target`, `field`, `key`,
    `labels`, `rules`, `latent`, `top` and `batch_tokens` are as in `explain_corpus`. A call takes a batch as Ray Data gives
    it (a dict of arrays, a table of pyarrow, a data frame) or a list of samples, and returns a table of pyarrow with a line
    for each sample, in their order. It has the columns of `explain_corpus` and `reason`: why a sample could not be
    explained, null for all others. Keys are not compared with those of other batches.

    Raises InputError for arguments and batches that do not fit, and without pyarrow.
    """

    def __init__(
        self,
        model: nn.Module | str | Path | Any,
        processor: Any,
        target: TargetLike = None,
        *,
        field: str | None = None,
        key: str | None = None,
        labels: Sequence[str] | None = None,
        rules: Rules | None = None,
        latent: str | Sequence[str] = (),
        top: int = 10,
        batch_tokens: int = TOKENS,
        function: str = "CorpusExplainer",
    ) -> None:
        needs_pyarrow(function)
        check_target(target, function)
        check_counts(function, top=top, batch_tokens=batch_tokens)
        opened = load(model) if isinstance(model, (str, Path)) else model
        self._module, self.processor = opened_with(opened, processor, function)
        if isinstance(self._module, Explained):
            self._module._refuse_steering(function)
        places = (latent,) if isinstance(latent, str) else tuple(latent)
        self.wanted = Wanted(target, labels, places, top, batch_tokens)
        self._fields, self._rules, self.function = Fields(field, key), rules, function
        self._explained: Explained | None = None

    def __repr__(self) -> str:
        name = type(self._module).__name__ if self._explained is None else self._explained.record.model_class
        return f"CorpusExplainer({name})"

    def __call__(self, batch: Any) -> Any:
        """The lines of a batch, as a table of pyarrow."""
        pa = needs_pyarrow(self.function)
        samples = list(samples_of(_rows(batch, self.function), self._fields, self.function))
        lines, bad = self.explained(samples) if samples else ([], [])
        rows = {line.number: columns_of(line) for line in lines}
        rows |= {
            each.sample.number: {"key": each.sample.key, "number": each.sample.number, "content": each.sample.content,
                                 "reason": each.reason} for each in bad
        }  # fmt: skip
        schema = self.schema().append(pa.field("reason", pa.string()))
        return pa.Table.from_pylist([rows[number] for number in sorted(rows)], schema=schema)

    def module(self, samples: Sequence[Sample]) -> Explained:
        """The explained module, made when it is first asked for, on the first of these samples that can be read."""
        if self._explained is None:
            with gradients_on():
                made = explained_for(self._module, self.processor, samples, self._rules, self.function)
                asked = (self._module, self.processor, self.wanted, self._rules, self.function)
                made, self.processor = after_last_token(made, *asked) or (made, self.processor)
            if self.wanted.places:
                places_at(made, self.wanted.places, self.function)
            self._explained = made
        return self._explained

    def schema(self) -> Any:
        """The columns of a line."""
        of = self._module if self._explained is None else self._explained
        wide = any(each.dtype == torch.float64 for each in of.parameters())
        return line_schema(needs_pyarrow(self.function), wide, bool(self.wanted.places))

    def explained(self, samples: Sequence[Sample]) -> tuple[list[Line], list[Bad]]:
        """The lines of these samples and those that cannot be explained, both by number."""
        readable = [each for each in samples if not each.reason]
        if self._explained is None and not readable:
            return [], [Bad(each, each.reason) for each in samples]
        module = self._made(readable)
        if module is None:
            return [], measured(self._module, self.processor, samples, self.function)[1]
        with gradients_on():
            good, bad = measured(module, self.processor, samples, self.function)
            lines = list[Line]()
            for batch in batches(good, self.wanted.batch_tokens):
                found, wrong = one_by_one(batch, self._batch, self.function)
                lines += found
                bad += wrong
        return sorted(lines, key=lambda line: line.number), sorted(bad, key=lambda each: each.sample.number)

    def _made(self, samples: Sequence[Sample]) -> Explained | None:
        """The module; None if it needs a sample, and none of these can be read."""
        try:
            return self.module(samples)
        except LxtFxError:
            if measured(self._module, self.processor, samples, self.function)[0]:
                raise
            return None

    def _batch(self, batch: Sequence[Sample]) -> list[Line]:
        """The lines of one batch. An error of another kind than ours says at which samples it was."""
        try:
            return self._latent(batch) if self.wanted.places else self._plain(batch)
        except LxtFxError:
            raise
        except Exception as error:
            keys = ", ".join(each.key for each in batch[:4])
            error.add_note(f"{self.function}: explaining {len(batch)} samples: {keys}{', ...' if len(batch) > 4 else ''}")
            raise

    def _plain(self, batch: Sequence[Sample]) -> list[Line]:
        module, wanted = self.module(batch), self.wanted
        given, tokenizer = given_of(module, self.processor, batch, self.function)
        asked, _ = asked_of(wanted.target, len(batch), given.batched, self.function)
        call = explained_call(module, tokenizer, given, asked, wanted.labels, None, self.function)
        call.numbers.answers = []
        leaves = call_at_all_leaves(call.explained, call.inputs, self.function)
        found = attributed(leaves, call.numbers, self.function, units=False)
        explanations = explanations_from(call, leaves, found, several=False)
        return [
            Line(sample.number, sample.key, sample.content, answer, one)
            for sample, answer, one in zip(batch, call.numbers.answers, explanations, strict=True)
        ]

    def _latent(self, batch: Sequence[Sample]) -> list[Line]:
        wanted, start = self.wanted, time.perf_counter()
        given, _ = given_of(self.module(batch), self.processor, batch, self.function)
        asked = targeted_call(
            self.module(batch), self.processor, given, wanted.target, self.function, labels=wanted.labels
        )
        answers = asked.call.numbers
        answers.answers = []
        inside = inside_targeted(asked, wanted.places, self.function)
        found = latent_of(inside, self.function, start)
        lines = []
        for row, sample in enumerate(batch):
            units = [unit for place in found for unit in found.top(wanted.top, place, example=row).found]
            answer, explanation = answers.answers[row], found.explanations[row]
            lines.append(Line(sample.number, sample.key, sample.content, answer, explanation, tuple(units)))
        return lines


def _rows(batch: Any, function: str) -> list[Any]:
    """The samples of a batch."""
    if hasattr(batch, "to_pylist"):  # a table of pyarrow
        return list(batch.to_pylist())
    if hasattr(batch, "to_dict") and hasattr(batch, "columns"):  # a data frame of pandas
        return list(batch.to_dict("records"))
    if isinstance(batch, Mapping):
        columns = {name: _plain_values(values) for name, values in batch.items()}
        if len({len(values) for values in columns.values()}) > 1:
            raise InputError(f"{function}: the columns of a batch are of several lengths: {', '.join(columns)}")
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        return list(batch)
    raise InputError(
        f"{function}: a batch is a dict of columns, a table, a data frame or a list of samples; got a "
        f"{type(batch).__name__}"
    )


def _plain_values(values: Any) -> list[Any]:
    """The values of a column, numbers and texts of numpy as those of Python; a chat is a list again."""
    found = values.tolist() if getattr(values, "ndim", 1) == 1 and hasattr(values, "tolist") else list(values)
    return [each.tolist() if str(getattr(each, "dtype", "")) == "object" else each for each in found]
