"""Detectors: `pred_boxes` [batch, boxes, 4] and `logits` [batch, boxes, classes]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lxt_fx.attribution.target import Wanted
from lxt_fx.attribution.target_entry import indices_of, logits_of
from lxt_fx.base.errors import InputError
from lxt_fx.inputs.given import Example
from lxt_fx.tasks.asked import Asked
from lxt_fx.tasks.entry import classes, entry_in
from lxt_fx.tasks.task import Context, Number


@dataclass(frozen=True, slots=True)
class Detection:
    """The logit of a class for a box. By default the box and the class that the model is most certain of; an index is a
    box, with its own class; a name is a class, with the box that shows it best; `Target.at(box, class)` is both."""

    name: str = "detection"

    def number(self, asked: Asked, output: Any, index: int, example: Example, context: Context) -> Number:
        """An entry of logits [batch, boxes, classes]."""
        logits, boxes = logits_of(context.reading, output)[index], output["pred_boxes"][index]
        real = logits[:, : -1 if has_no_object(logits, context) else None]
        box, chosen = _box(asked, certainty(logits, context), len(logits), context)
        entry = entry_in(chosen, real[box], classes(context), f" of box {box} at {_corners(boxes[box])}")
        number = entry.of(real[box])
        return Number(number.value, number.said, f"{number.label}, box {box}")


def has_no_object(logits: Tensor, context: Context) -> bool:
    """Whether the last of the classes means that there is no object: where the logits have one class more than the
    model."""
    known = getattr(context.config, "num_labels", None)
    return isinstance(known, int) and logits.shape[-1] == known + 1


def certainty(logits: Tensor, context: Context) -> Tensor:
    """How certain the model is of each class [..., classes], without the class for no object: its probability, or its logit
    where each class is decided alone."""
    logits = logits.detach()
    return logits.softmax(-1)[..., :-1] if has_no_object(logits, context) else logits


def _box(asked: Asked, certain: Tensor, count: int, context: Context) -> tuple[int, Asked]:
    """The box that a target means, and what is asked of its classes."""
    if asked.spot is not None:
        return _checked(asked.spot, count, context), Asked(asked.entry, asked.minus)
    if isinstance(asked.entry, int):
        return _checked(asked.entry, count, context), Asked(None, asked.minus)
    if asked.entry is None:
        box, best = divmod(int(certain.argmax()), certain.shape[1])
        return box, Asked(best, asked.minus)
    (named,) = indices_of(Wanted(asked.entry), certain[0], classes(context))
    return int(certain[:, named].argmax()), Asked(named, asked.minus)


def _checked(box: Any, count: int, context: Context) -> int:
    if isinstance(box, int) and -count <= box < count:
        return box % count
    raise InputError(
        f"{context.function}: {context.model_class} gives {count} boxes (0 to {count - 1}), and there is no box "
        f"{box if isinstance(box, (int, tuple)) else 'given by a mask'}; give an index, or a class by its name"
    )


def _corners(box: Tensor) -> str:
    """The box as parts of the picture, left, top, right and bottom in percent."""
    x, y, width, height = (100 * float(each) for each in box.detach())
    left, top = x - width / 2, y - height / 2
    return f"left {left:.0f} %, top {top:.0f} %, right {left + width:.0f} %, bottom {top + height:.0f} %"
