"""Classifiers of texts, images and sounds: logits [batch, classes], and predicted values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lxt_fx.attribution.target_entry import logits_of
from lxt_fx.inputs.given import Example
from lxt_fx.tasks.asked import Asked
from lxt_fx.tasks.entry import classes, entry_in
from lxt_fx.tasks.task import Context, Number


@dataclass(frozen=True, slots=True)
class Classifying:
    """A class by index or label; by default the most likely one. A model with one output, or one that was trained for
    regression, predicts values: its number is called so. With several labels at once, the phrase states the probability."""

    name: str = "classifying"

    def number(self, asked: Asked, output: Any, index: int, example: Example, context: Context) -> Number:
        """An entry of logits [batch, classes], or the difference of two."""
        logits = logits_of(context.reading, output)[index]
        asked.refuse_spot(context.function, f"the logits of {context.model_class} have none")
        return class_number(asked, logits, context)


def class_number(asked: Asked, logits: Tensor, context: Context) -> Number:
    """The number in logits [classes]."""
    problem = getattr(context.config, "problem_type", None)
    if problem == "regression" or len(logits) == 1:
        return _predicted(asked, logits, context)
    entry = entry_in(asked, logits, classes(context))
    several = problem == "multi_label_classification" and len(entry.indices) == 1
    chance = f" with probability {float(torch.sigmoid(logits[entry.indices[0]].detach())):.3f}" if several else ""
    number = entry.of(logits)
    return Number(number.value, number.said + chance, number.label)


def _predicted(asked: Asked, logits: Tensor, context: Context) -> Number:
    """A value is no logit, and the largest of several values is no answer: with several the first is the default."""
    chosen = Asked(0 if asked.entry is None else asked.entry, asked.minus)
    entry = entry_in(chosen, logits, classes(context))
    one = len(logits) == 1
    said = "predicted value" if one else " minus ".join(f"predicted value {_name(i, context)}" for i in entry.indices)
    return Number(entry.of(logits).value, said, "value" if one else entry.label)


def _name(index: int, context: Context) -> str:
    named = index < len(context.labels) and context.labels[index] != f"LABEL_{index}"
    return f"'{context.labels[index]}'" if named else str(index)
