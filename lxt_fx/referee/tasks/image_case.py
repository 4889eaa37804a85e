"""A picture as a case: its patches, what is explained of it, and what removed patches become."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.referee.case import Case, Subject
from lxt_fx.referee.contest import NotForThisError
from lxt_fx.referee.tasks.asking import output_of

SALIENT = 0.1
"""The share of a map's pixels that is the salient region."""


@dataclass(frozen=True, slots=True)
class ClassLogit:
    """The explained number of a classifier's output: the logit of one class, [examples]."""

    index: int

    def __call__(self, output: Any) -> Tensor:
        found: Tensor = widened(answer(output))[:, self.index]
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Standing:
    """The explained number of a map [examples, height, width] that says which pixels draw the eye: its mean inside a region
    [height, width] less its mean outside, [examples]."""

    region: Tensor

    def __call__(self, output: Any) -> Tensor:
        flat = widened(answer(output)).flatten(1)
        weight = self.region.flatten().to(flat)
        return flat @ (weight / weight.sum() - (1 - weight) / (1 - weight).sum())


def answer(output: Any) -> Tensor:
    """The classes' logits [examples, classes] or the map [examples, height, width] that a model of pictures returns.

    Raises NotForThisError for another output.
    """
    found = getattr(output, "logits", output)
    if isinstance(found, Tensor) and found.dim() == 4 and found.shape[1] == 1:
        found = found[:, 0]
    if not isinstance(found, Tensor) or found.dim() not in (2, 3):
        said = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise NotForThisError(
            f"a model of pictures must return logits [examples, classes] or a map [examples, height, width], got {said}"
        )
    return found


def widened(values: Tensor) -> Tensor:
    """float16 and bfloat16 as float32."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def answers(subject: Subject, pictures: Tensor) -> Tensor:
    """What the model returns for pictures [n, channels, height, width], without a graph."""
    return widened(answer(output_of(subject, pixel_values=pictures)))


def as_read(subject: Subject, picture: Tensor) -> Tensor:
    """A picture [channels, height, width] as a batch where the model is, in its dtype."""
    weight = next(parameter for parameter in subject.model.parameters() if parameter.is_floating_point())
    return picture[None].to(weight.device, weight.dtype)


def picture_case(
    subject: Subject, key: str, picture: Tensor, value: Any, said: str, gold: Tensor | None = None, group: str = ""
) -> Case:
    """A picture [1, channels, height, width] as a case whose units are its patches. `gold` [rows, columns] marks patches.
    Views of one scene have its name as their `group`.

    Raises InputError for a picture that patches of the subject's side do not divide.
    """
    rows, columns = patch_grid(subject, picture)
    labels = tuple(f"row {row + 1}, column {column + 1}" for row in range(rows) for column in range(columns))
    marked = None if gold is None else gold.flatten()
    return Case(
        key, {"pixel_values": picture}, value, said, labels, torch.zeros(len(labels), dtype=torch.bool), marked, group
    )


def patch_grid(subject: Subject, picture: Tensor) -> tuple[int, int]:
    """The patches of a picture by rows and columns. Raises InputError if they do not divide it."""
    side, (height, width) = subject.unit, picture.shape[-2:]
    if not isinstance(side, int) or height % side or width % side:
        raise InputError(
            f"bench: patches of {side} pixels do not divide pictures of {height} x {width}; give the subject another unit"
        )
    return height // side, width // side


def salient_case(subject: Subject, key: str, picture: Tensor, found: Tensor, group: str = "") -> Case | None:
    """A picture [1, channels, height, width] and the map [height, width] of it: how much the tenth of the pixels that draws
    the eye most stands out. None for a map that is flat."""
    least = found.flatten().float().quantile(1 - SALIENT)
    region = (found > least).float().cpu()
    if not 0 < float(region.sum()) < region.numel():
        return None
    said = "mean of the map in the most salient tenth of the pixels less its mean elsewhere"
    return picture_case(subject, key, picture, Standing(region), said, group=group)


def picture_replacements(case: Case, others: Iterator[Tensor], draws: int) -> dict[str, Sequence[Tensor]]:
    """By name what removed patches become, each [1, channels, height, width]: `token`, the patch at the same place of
    another picture, one picture a draw; `zero`; `mean`, the picture's own mean by channel."""
    picture = case.inputs["pixel_values"]
    drawn = tuple(next(others).to(picture) for _ in range(draws))
    return {
        "token": drawn,
        "zero": (torch.zeros_like(picture),),
        "mean": (picture_mean(picture),),
    }


def picture_mean(picture: Tensor) -> Tensor:
    """The mean by channel of a picture [1, channels, height, width], in its shape."""
    return picture.double().mean((2, 3), keepdim=True).to(picture).expand_as(picture)


def others_of(labels: Sequence[int] | None, count: int, own: int, chance: random.Random) -> list[int]:
    """The places of pictures of other classes, shuffled; of all other pictures where classes are unknown.

    Raises InputError if there are none.
    """
    found = [each for each in range(count) if each != own and (labels is None or labels[each] != labels[own])]
    if not found:
        raise InputError(
            "a removed patch becomes that of a picture of another class, and there is none; give more pictures"
        )
    return chance.sample(found, len(found))
