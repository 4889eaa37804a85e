"""What a place holds, as units at positions: which axis is that of the units, and which positions are a sample's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lxt_fx.attribution.places import InsidePlace
from lxt_fx.base.errors import InputError
from lxt_fx.inputs.places import ImagePlace, TextPlace
from lxt_fx.inside.inside_call import InsideCall
from lxt_fx.inside.laid_out import LaidOut, refuse_merged
from lxt_fx.inside.units import check_units
from lxt_fx.tasks.own_text import DECODER

SMALLEST = 16
"""How many times coarser than its patches the positions of a vision model may lie."""


@dataclass(frozen=True, slots=True)
class Reads:
    """What the positions of a place are: tokens of the text that is the input `leaf`; of a picture its patches in squares
    of `merged`, behind `before` positions of their own (a class token, registers); or nothing that is known, with no
    leaf."""

    leaf: str = ""
    before: int = 0
    merged: int = 0


def by_token(
    place: InsidePlace, laid: LaidOut, activation: Tensor, relevance: Tensor, function: str
) -> tuple[Tensor, Tensor]:
    """Activation and relevance [batch, tokens, units] of a place whose value is laid out so. Each head is one unit: its
    activation is the norm of its vector, that of a pattern the largest weight of a query; its relevance is the sum.

    Raises InputError for a place whose axes are not known to be of a batch, tokens and units, and for neurons of experts.
    """
    check_units(place, function)
    found, known = [], laid.token_axis is not None or len(laid.axes) == 2
    if not known:
        raise InputError(
            f"{function}: {place.name} has the axes {', '.join(place.axes) or 'none'} [{','.join(place.shape)}], of which "
            "it is not known which are tokens and which are units; take a standard place (lxt_fx.places), or a value "
            "[batch, tokens, units]"
        )
    for values, is_relevance in ((laid.of(activation), False), (laid.of(relevance), True)):
        if laid.token_axis is None:
            found.append(values[:, None])
            continue
        order = [0, laid.token_axis, laid.unit_axis]
        rest = [axis for axis in range(values.dim()) if axis not in order]
        values = values.permute(*order, *rest)
        if rest:
            values = values.flatten(3)
            largest = values.amax if "keys" in laid.axes else values.norm
            values = values.sum(3) if is_relevance else largest(dim=3)
        found.append(values)
    return found[0], found[1]


def unit_count(place: InsidePlace, function: str) -> int:
    """How many units a place has. Raises InputError for a place whose number of units is free."""
    sizes = dict(zip(place.axes, place.shape, strict=True)) | dict(place.merged)
    size = sizes.get("heads") or sizes.get(place.axes[-1] if place.axes else "", "")
    if not size.isdigit():
        raise InputError(f"{function}: {place.name} [{','.join(place.shape)}] has no fixed number of units")
    return int(size)


def reads_of(inside: InsideCall, name: str, tokens: int) -> tuple[Reads, Tensor | None]:
    """What the `tokens` positions of a place are, and which of them [batch, tokens] are the samples' own: all if None.

    Raises InputError where the value does not say which sample is where, or samples are padded and the place has other
    positions than the padded texts.
    """
    place, laid, examples = inside.places[name], inside.layouts[name], inside.call.given.examples
    if laid.rows != tuple((row,) for row in range(len(examples))):
        raise refuse_merged(place, "corpus")
    if laid.token_axis is None:
        return Reads(), None
    texts = [one for example in examples for one in example.places if isinstance(one, TextPlace)]
    named = inside.tokens.of(place, tokens)
    if named is not None:
        decodes = named is inside.tokens.texts.get(DECODER)
        read = [text for text in texts if text.leaf.startswith(DECODER) is decodes]
        return Reads(read[0].leaf), _own(read, tokens)
    padded = [text for text in texts if len(text.own) < _width(text)]
    if padded:
        raise InputError(
            f"corpus: {place.name} has {tokens} positions, and the texts of the batch have {_width(padded[0])} with their "
            "padding, so it is not known which positions are padding; choose a place with a position for each token"
        )
    pictures = [one for example in examples for one in example.places if isinstance(one, ImagePlace)]
    return (_patches(pictures[0], tokens) if pictures and not texts else Reads()), None


def _width(text: TextPlace) -> int:
    """How many columns the row of the batch has, padding included."""
    return int(text.row[text.leaf].shape[1]) if text.ids is None else len(text.ids)


def _own(texts: Sequence[TextPlace], tokens: int) -> Tensor | None:
    """Which columns are a text's own. The places of the inputs say it also for a model that takes no mask."""
    found = torch.zeros(len(texts), tokens, dtype=torch.bool)
    for row, text in enumerate(texts):
        found[row, list(text.own)] = True
    return None if bool(found.all()) else found


def _patches(picture: ImagePlace, tokens: int) -> Reads:
    """The patches of a picture in squares of 1, 2, 4, ... of them; a few positions before them are no patches."""
    pixels, patch, merged = picture.reading.pixel_values, picture.reading.patch, 1
    while pixels is not None and patch > 1 and merged <= SMALLEST:
        rows, columns = (size // (patch * merged) for size in pixels.shape[-2:])
        before = tokens - rows * columns
        if rows * columns and (before == 0 or merged == 1 and 0 < before <= SMALLEST):
            return Reads(picture.leaf, before, merged)
        merged *= 2
    return Reads(picture.leaf)
