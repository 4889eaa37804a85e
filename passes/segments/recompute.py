"""Recomputes segments of a graph in the backward instead of saving their values: less memory for a second forward.

The graph is cut into segments of consecutive nodes. Only the inputs of a segment are saved; its inner values are computed
again when the backward reaches it. With about sqrt(n) layers per segment, memory grows as sqrt(n) (Chen et al. 2016,
"Training deep nets with sublinear memory cost").
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from torch.utils.checkpoint import checkpoint as recomputed

from lxt_fx.base.errors import InputError
from lxt_fx.passes.segments.by_segments import Segment, forward_of

Checkpoint = Literal["layers", "sqrt"] | int | None
"""How many layers a segment has: one ("layers"), about sqrt(n) of n ("sqrt"), or this number. None cuts nothing."""


def check_checkpoint(asked: object) -> None:
    """Raises InputError if `asked` is not a `Checkpoint`."""
    if asked is None or (isinstance(asked, str) and asked in ("layers", "sqrt")):
        return
    if not isinstance(asked, int) or isinstance(asked, bool) or asked < 1:
        raise InputError(
            'transform: checkpoint must be None, "layers" (one segment a layer), "sqrt" (about sqrt(n) layers a segment), '
            f"or how many layers a segment has, 1 or more; got {asked!r}"
        )


def recomputing(segment: Segment) -> Callable[..., Any]:
    """The segment as a function whose inner values are computed again in the backward."""
    return recomputed_in_backward(partial(forward_of(segment.graph), None), segment)


def recomputed_in_backward(part: Callable[..., Any], segment: Segment) -> Callable[..., Any]:
    """The function that a segment became, with its inner values computed again in the backward."""

    def called(*values: Any) -> Any:
        return recomputed(part, *values, use_reentrant=False, preserve_rng_state=segment.draws)

    called.__name__ = f"segment_{segment.index}"
    return called
