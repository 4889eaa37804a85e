"""The module that explains a corpus, made once for all its samples."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from lxt_fx.attribution.as_explained import as_explained
from lxt_fx.attribution.embeddings import as_called
from lxt_fx.base.errors import InputError
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.options import Rules
from lxt_fx.compiler.transform import transform
from lxt_fx.inputs.facts import facts_of
from lxt_fx.inside.corpus.batches import Bad, Measured, given_of, measured
from lxt_fx.inside.corpus.samples import Sample
from lxt_fx.passes.capture.settings import is_transformers
from lxt_fx.tasks.explained_call import called_as


def peeked(samples: Iterator[Sample], count: int, function: str) -> tuple[list[Sample], Iterator[Sample]]:
    """The first `count` samples, and all of them. Raises InputError if there is none."""
    first = list(itertools.islice(samples, count))
    if not first:
        raise InputError(f"{function}: there are no samples")
    return first, itertools.chain(first, samples)


def explained_for(
    module: nn.Module, processor: Any, samples: Sequence[Sample], rules: Rules | None, function: str
) -> Explained:
    """The module itself, or the model transformed once for all batches: a model of texts that describes its own inputs
    without an example, any other on the first sample that can be read, whose size a picture has from its processor."""
    if isinstance(module, Explained) and rules is None:
        return module
    if not isinstance(module, Explained) and is_transformers(module) and facts_of(module, function).reads_text:
        return transform(module, rules="attnlrp" if rules is None else rules)
    good, bad = list[Measured](), list[Bad]()
    for sample in samples:
        good, wrong = measured(module, processor, [sample], function)
        bad += wrong
        if good:
            break
    else:
        raise InputError(none_good([(each.sample.key, each.reason) for each in bad], function))
    inputs = as_called(module, called_as(module, given_of(module, processor, [good[0].sample], function)[0].inputs))
    if isinstance(module, Explained):
        return as_explained(module, (), inputs, function, rules)
    return transform(module, (), dict(inputs), rules="attnlrp" if rules is None else rules)


def none_good(bad: Sequence[tuple[str, str]], function: str) -> str:
    """That nothing can be explained: the key of each sample with the reason, of which the first is said."""
    key, reason = bad[0]
    return f"{function}: none of the first {len(bad)} samples can be explained; the first is {key!r}: {reason}"
