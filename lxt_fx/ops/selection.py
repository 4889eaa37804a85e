"""The op that takes some positions of every example: what `transform(positions=...)` puts into a graph."""

from __future__ import annotations

import torch
from torch import Tensor

from lxt_fx.base.errors import CallError
from lxt_fx.ops.library import define


@define("positions(Tensor self, int dim, int[] positions, SymInt tokens=-1, SymInt inner=1) -> Tensor")
def positions(self: Tensor, dim: int, positions: list[int], tokens: int = -1, inner: int = 1) -> Tensor:
    """The entries of `self` at these positions along `dim`, in this order; negative ones count from the end.

    [batch, tokens, hidden] becomes [batch, len(positions), hidden]. Where `dim` holds more than tokens (the examples of a
    batch one after another, k experts of each token), `tokens` and `inner` take it apart: [outer * tokens * inner].

    Raises CallError for a position that the input does not have.
    """
    if tokens == -1:
        return _selected(self, dim, positions)
    apart: Tensor = self.unflatten(dim, (-1, tokens, inner))  # type: ignore[no-untyped-call]
    return _selected(apart, dim + 1, positions).flatten(dim, dim + 2)


def _selected(x: Tensor, dim: int, positions: list[int]) -> Tensor:
    """A view where the positions are neighbours, else a copy of them."""
    count = x.size(dim)
    if not all(-count <= position < count for position in positions):
        raise CallError(
            f"the module answers at positions {', '.join(map(str, positions))}, and these inputs have {count} tokens; "
            "give longer inputs, or transform the model with other positions"
        )
    parts = [x.narrow(dim, first % count, length) for first, length in _runs(positions)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _runs(positions: list[int]) -> list[tuple[int, int]]:
    """(first, length) of each run of neighbours; a run does not go over the end."""
    runs: list[tuple[int, int]] = []
    for position in positions:
        if runs and position == sum(runs[-1]) and position != 0:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((position, 1))
    return runs
