"""The strongest links of a circuit between parts at tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.inside.circuits.circuit import By
from lxt_fx.inside.circuits.edge_scores import EdgeScores

Link = tuple[str, int, str, int, float]
"""A writer and the token that it writes at, a reader and the token that what is made of it is written at, and the score."""


def strongest_links(scores: EdgeScores, pair: int, count: int, by: By) -> list[Link]:
    """The links of a pair with the largest scores, without those of score 0. Raises InputError for scores that were not
    kept by token."""
    found = scores_by_token(scores, pair, "links")
    return [
        (scores.writers[writer], at, scores.readers[reader], to, float(found[at, to, writer, reader]))
        for at, to, writer, reader in largest_entries(found, count, by)
    ]


def scores_by_token(scores: EdgeScores, pair: int, function: str) -> Tensor:
    """Those of one pair, [tokens, tokens, writers, readers]."""
    if scores.by_token is None:
        raise InputError(
            f"{function}: these scores are sums over tokens; call lxt_fx.circuit_scores(..., by_token=True) to keep them "
            "by token"
        )
    if isinstance(pair, bool) or not isinstance(pair, int) or not 0 <= pair < len(scores.by_token):
        raise InputError(f"{function}: there is no pair {pair!r}; the scores are of {len(scores.by_token)} (0 and on)")
    return scores.by_token[pair]


def largest_entries(scores: Tensor, count: int, by: By) -> list[tuple[int, ...]]:
    """The indices of the largest scores that are not 0, the largest first."""
    flat = scores.flatten()
    ranked = flat.abs() if by == "absolute" else flat
    order = ranked.topk(min(count, len(flat))).indices
    order = order[flat[order] != 0]
    return list(zip(*(each.tolist() for each in torch.unravel_index(order, scores.shape)), strict=True))
