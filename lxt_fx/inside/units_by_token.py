"""What a place holds, as units at positions: which axis is that of the units, and which positions are a sample's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lxt_fx.attribution.places import InsidePlace
from lxt_fx.base.errors import InputError
from lxt_fx.inputs.given import Example
from lxt_fx.inputs.places import ImagePlace, TextPlace
from lxt_fx.inside.laid_out import unit_axis

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


def by_token(place: InsidePlace, activation: Tensor, relevance: Tensor, batch: int, function: str) -> tuple[Tensor, Tensor]:
    """Activation and relevance [batch, tokens, units] of a place whose value has its axes. Each head is one unit: its
    activation is the norm of its vector, that of a pattern the largest weight of a query; its relevance is the sum.

    Raises InputError for a place whose axes are not known to be of a batch, tokens and units.
    """
    axes = place.axes
    if axes[-4:] == ("batch", "heads", "tokens", "size"):
        return activation.norm(dim=-1).transpose(1, 2), relevance.sum(-1).transpose(1, 2)
    if axes[-4:] == ("batch", "heads", "queries", "keys"):
        return activation.amax(-1).transpose(1, 2), relevance.sum(-1).transpose(1, 2)
    if len(axes) == 3 and axes[0] == "batch":
        return activation, relevance
    if len(axes) == 2 and axes[0] == "batch":
        return activation[:, None], relevance[:, None]
    if len(axes) == 2 and axes[0] == "tokens" and len(activation) % batch == 0:  # examples and tokens in one dimension
        whole = (batch, -1, activation.shape[-1])
        return activation.reshape(whole), relevance.reshape(whole)
    raise InputError(
        f"{function}: {place.name} has the axes {', '.join(axes) or 'none'} [{','.join(place.shape)}], of which it "
        "is not known which are tokens and which are units; take a standard place (lxt_fx.places), or a value [batch, "
        "tokens, units]"
    )


def unit_count(place: InsidePlace, function: str) -> int:
    """How many units a place has. Raises InputError for a place whose number of units is free."""
    size = place.shape[unit_axis(place.axes)] if place.shape else ""
    if not size.isdigit():
        raise InputError(f"{function}: {place.name} [{','.join(place.shape)}] has no fixed number of units")
    return int(size)


def reads_of(place: InsidePlace, tokens: int, examples: Sequence[Example], batch: int) -> tuple[Reads, Tensor | None]:
    """What the `tokens` positions of a place are, and which of them [batch, tokens] are the samples' own: all if None.

    Raises InputError where samples are padded and the place has other positions than the padded texts.
    """
    if len(place.axes) == 2 and place.axes[0] == "batch":
        return Reads(), None
    texts = [one for example in examples for one in example.places if isinstance(one, TextPlace)]
    leaf = _leaf(place.name, [text for text in texts if _width(text) == tokens])
    if leaf is not None:
        return Reads(leaf), _own(leaf, texts, tokens, batch)
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


def _leaf(name: str, fitting: Sequence[TextPlace]) -> str | None:
    """The text that the positions belong to: that of the decoder, except in the stream of an encoder."""
    leaves = list(dict.fromkeys(text.leaf for text in fitting))
    if not leaves:
        return None
    wanted = [leaf for leaf in leaves if leaf.startswith("decoder_") is not name.startswith("encoder.")]
    return (wanted or leaves)[0]


def _own(leaf: str, texts: Sequence[TextPlace], tokens: int, batch: int) -> Tensor | None:
    found = torch.zeros(batch, tokens, dtype=torch.bool)
    for text in texts:
        if text.leaf == leaf:
            found[text.within, list(text.own)] = True
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
