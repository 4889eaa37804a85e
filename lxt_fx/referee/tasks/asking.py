"""A model is asked: what it returns for inputs of a task, and the units of a text as a person reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lxt_fx.attribution.readable_tokens import readable_tokens
from lxt_fx.base.as_it_was import answer_of
from lxt_fx.faithfulness.batch_inputs import evaluating
from lxt_fx.referee.case import Subject


def output_of(subject: Subject, **inputs: Tensor) -> Any:
    """What the model returns, in evaluation mode and without a graph; it stays as it is."""
    with evaluating(subject.model):
        return answer_of(subject.model, lambda: subject.model(**inputs, **subject.constants))


def ids_on_device(subject: Subject, ids: Sequence[Sequence[int]]) -> Tensor:
    """Token ids [examples, tokens] where the model is."""
    return torch.tensor(ids, device=next(subject.model.parameters()).device)


def units_of(subject: Subject, ids: Sequence[int]) -> tuple[str, ...]:
    """The texts of tokens."""
    tokenizer: Any = subject.processor
    return readable_tokens(tokenizer, ids)
