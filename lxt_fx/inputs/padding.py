"""Padding, and the positions of padded texts: a text in a batch must be explained as if it were alone.

`generate` counts the positions of a prompt from its first token that is no padding. The forward of most models does not: it
counts columns. Some count by the ids or by the mask, some have no positions. Which of these a model does cannot be told by
its names of inputs, so the model is asked: a few tokens with the padding that they have, and the same tokens alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lxt_fx.attribution.embeddings import as_called
from lxt_fx.base.as_it_was import as_it_was
from lxt_fx.base.errors import InputError
from lxt_fx.base.user_objects import tensors_of
from lxt_fx.inputs.facts import PICTURES, Facts

ASKED = 5
"""How many of a text's own tokens the model is asked about, and with how much of its padding before or behind them."""

SAME = {torch.float64: 1e-9, torch.float32: 1e-4}
"""The largest difference, relative to the largest value, that is rounding. Other dtypes: `HALF`."""
HALF = 16

BY_TOKEN = ("input_ids", "inputs_embeds", "attention_mask", "token_type_ids", "position_ids")


class PaddingShows(InputError):
    """The model computes something else for a padded text than for the text alone."""


def padded(rows: Sequence[Sequence[Any]], value: Any, side: str) -> Tensor:
    """The rows [batch, tokens] with `value` before (`left`) or behind them (`right`), each as long as the longest."""
    longest = max(map(len, rows))
    filled = [[value] * (longest - len(row)) for row in rows]
    left = side == "left"
    return torch.tensor([[*fill, *row] if left else [*row, *fill] for row, fill in zip(rows, filled, strict=True)])


def with_own_positions(
    facts: Facts, inputs: Mapping[str, Any], own: Sequence[Sequence[int]], more: Mapping[str, Any]
) -> dict[str, Any]:
    """The inputs of a batch of texts, with `position_ids` if the model needs them to compute for each text what it computes
    for that text alone. `own` are the columns of each text's own tokens; `more` are inputs that it must have beside a text
    (a decoder's first token), [1, ...].

    Raises PaddingShows if the model computes something else for a padded text whatever it is given.
    """
    whole = dict(inputs)
    leaf = "input_ids" if "input_ids" in whole else "inputs_embeds"
    count = whole[leaf].shape[1]
    index = min(range(len(own)), key=lambda row: (own[row][0] == 0, len(own[row])))
    if all(len(columns) == count for columns in own) or facts.in_training or whole[leaf].device.type == "meta":
        return whole
    shifted = any(list(columns) != list(range(len(columns))) for columns in own)
    needs = shifted and "position_ids" not in whole and facts.takes("position_ids")
    tries = [True, False] if needs else [False]
    if "pixel_values" in whole:
        tries.reverse()  # positions of pictures are the model's own
    asked = {name: value for name, value in whole.items() if name in BY_TOKEN}
    pictures = {name: whole[name][index : index + 1] for name in PICTURES if _one_each(whole.get(name), len(own))}
    differences = [_difference(facts, asked, own[index], index, more, pictures, counted) for counted in tries]
    same = SAME.get(facts.dtype, HALF * torch.finfo(facts.dtype).eps)
    best = min(differences)
    for counted, difference in zip(tries, differences, strict=True):
        if difference <= same and difference <= max(4 * best, same / 8):
            return {**whole, "position_ids": _counted(whole[leaf], own)} if counted else whole
    side = "on the left " if own[index][0] else ""
    how = f"by {best:.1g} of its largest value" if math.isfinite(best) else "to NaN, or to another shape,"
    raise PaddingShows(
        f"{facts.function}: padding {side}changes what {facts.model_class} computes for a text ({how} on a few tokens), so "
        "a padded text would not be explained as the model reads it alone; give the texts one at a time, or pad them on "
        "the other side"
    )


def _counted(leaf: Tensor, own: Sequence[Sequence[int]]) -> Tensor:
    """The positions as `generate` makes them: from 0 at a text's first token, 0 at the padding before it."""
    mask = torch.zeros(leaf.shape[:2], dtype=torch.long, device=leaf.device)
    for row, columns in enumerate(own):
        mask[row, list(columns)] = 1
    return (mask.cumsum(-1) - 1).clamp(min=0)


def _one_each(pictures: Any, texts: int) -> bool:
    return isinstance(pictures, Tensor) and pictures.dim() == 4 and len(pictures) == texts


def _difference(
    facts: Facts, inputs: Mapping[str, Tensor], own: Sequence[int], index: int, more: Mapping[str, Any],
    pictures: Mapping[str, Tensor], counted: bool,
) -> float:  # fmt: skip
    """How far the outputs for a few tokens in their padding are from those for the same tokens alone. `counted` says
    whether the padded ones get positions of their own. A model that reads no text without its picture is asked about the
    whole text with it."""
    count = inputs["input_ids" if "input_ids" in inputs else "inputs_embeds"].shape[1]
    whole = (slice(0, count), list(own)), index, {**more, **pictures}, counted
    if pictures and facts.needs(*pictures):
        return _difference_in(facts, inputs, *whole)
    try:
        return _difference_in(facts, inputs, _window(own, count), index, more, counted)
    except InputError:
        if not pictures:
            raise
    return _difference_in(facts, inputs, *whole)  # an explained module of such a model


def _difference_in(
    facts: Facts, inputs: Mapping[str, Tensor], where: tuple[slice, list[int]], index: int, more: Mapping[str, Any],
    counted: bool,
) -> float:  # fmt: skip
    """The same in a part of the columns, in which the text has these."""
    (window, inside), leaf = where, inputs["input_ids" if "input_ids" in inputs else "inputs_embeds"]
    twice = [index] * min(2, len(leaf))  # some models refuse a batch of padded texts
    among = {name: value[twice, window] for name, value in inputs.items()}
    more = {name: value.expand(len(twice), *value.shape[1:]) for name, value in more.items()}
    alone = {name: value[:, inside] for name, value in among.items() if name != "position_ids"}
    if counted:
        among["position_ids"] = _counted(next(iter(among.values())), [inside] * len(twice))
    with torch.no_grad(), as_it_was(facts.model):
        try:
            together, single = (_compared(facts.model(**as_called(facts.model, given), **more)) for given in (among, alone))
        except Exception as error:
            raise InputError(
                f"{facts.function}: the texts must be padded, and {facts.model_class} could not be asked what it computes "
                f"for a padded text ({type(error).__name__}: {str(error)[:200]}); give the texts one at a time"
            ) from error
    found = 0.0
    compared = False
    for padded_value, value in zip(together, single, strict=False):
        if value.dim() > 1 and value.shape[1] == len(inside) and padded_value.shape[1] == window.stop - window.start:
            padded_value = padded_value[:, inside]
        if padded_value.shape == value.shape and value.numel():
            compared = True
            scale = float(value.abs().max()) or 1.0
            difference = float((padded_value - value).abs().max()) / scale
            found = max(found, difference if difference == difference else float("inf"))  # NaN where all is masked
    return found if compared else float("inf")


def _compared(output: Any) -> list[Tensor]:
    """The logits of an output; all of its numbers if it has none. States of a recurrence go on behind the text."""
    logits = output.get("logits") if isinstance(output, Mapping) else None
    return [logits] if isinstance(logits, Tensor) else [each for each in tensors_of(output) if each.is_floating_point()]


def _window(own: Sequence[int], count: int) -> tuple[slice, list[int]]:
    """A part of the columns with padding and a few of the text's own, and where these are in it."""
    real = set(own)
    if own[0] > 0:
        window = slice(max(0, own[0] - ASKED), min(count, own[0] + ASKED))
    else:
        gap = next(column for column in range(count) if column not in real)
        window = slice(max(0, gap - ASKED), min(count, gap + ASKED))
    return window, [column - window.start for column in range(window.start, window.stop) if column in real]
