"""The op that `steer` puts into a graph: what a value is multiplied with, or what is added to it, at some positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lxt_fx.base.errors import CallError
from lxt_fx.ops.library import define


@define(
    "steered(Tensor amount, Tensor like, float elsewhere, int dim, int[]? at=None, int[]? span=None, Tensor? mask=None) "
    "-> Tensor"
)
def steered(
    amount: Tensor,
    like: Tensor,
    elsewhere: float,
    dim: int,
    at: list[int] | None = None,
    span: list[int] | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """The amount at the chosen positions along `dim` of `like`, and `elsewhere` at the others, in a shape that broadcasts
    to `like`. `at` are positions, `span` is the start, stop and step of a slice, `mask` [tokens] or [1, tokens] has a place
    for each position; without any of them all positions are chosen. Of `like` only the shape and the dtype are read: no
    gradient flows.

    Raises CallError for a position that `like` does not have, and for a mask that is too short.
    """
    amount = amount.detach().to(like.dtype)
    if at is None and span is None and mask is None:
        return amount
    count = like.shape[dim]
    if beyond := [position for position in at or () if not -count <= position < count]:
        raise CallError(
            f"steer: position {beyond[0]} is to be changed, and this call has {count} positions; give positions that it "
            "has, or a slice, which may reach beyond"
        )
    chosen = at_positions(count, 0, at, span, mask, like.device).view(-1, *[1] * (like.dim() - 1 - dim))
    return torch.where(chosen, amount, elsewhere)


def at_positions(
    count: int,
    first: int,
    at: Sequence[int] | None,
    span: Sequence[int] | None,
    mask: Tensor | None,
    device: torch.device,
) -> Tensor:
    """Which of `count` positions are chosen, the first of which is position `first` of a text: [count], or with a mask of
    several examples [examples, count]. A position may stand before or behind this part of the text.

    Raises CallError for a mask that is too short, and for positions that count from the end of a text that was continued:
    it has no end yet.
    """
    if mask is not None:
        if mask.shape[-1] < first + count:
            raise CallError(
                f"steer: the mask says which of {mask.shape[-1]} positions are changed, and this call reaches position "
                f"{first + count - 1}; give a mask that is as long as the longest text, generated tokens too"
            )
        return mask[..., first : first + count].to(device)
    numbers = [*(at or ()), *(span[:2] if span is not None else ())]
    if first and any(number < 0 for number in numbers):
        raise CallError(
            f'steer: positions that count from the end ({min(numbers)}; "last" is -1) are others at each step of a text '
            f"that grows, and this call continues one behind position {first - 1}, by its cache; count from the start, "
            "such as slice(5, None), or generate with use_cache=False, where each call is a text of its own"
        )
    if span is not None:
        wanted: Sequence[int] = range(*slice(*span).indices(first + count))
    else:
        wanted = [position + count if position < 0 else position for position in at or ()]
    inside = [position - first for position in wanted if first <= position < first + count]
    chosen = torch.zeros(count, dtype=torch.bool, device=device)
    chosen[torch.tensor(inside, dtype=torch.long, device=device)] = True
    return chosen
