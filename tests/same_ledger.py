"""Whether two ledgers are the same: each line, amount and name, in one order."""

from __future__ import annotations

from torch import Tensor

import lxt_fx

AMOUNTS = ("reaching", "passing", "heads", "positions", "profile")
FACTS = ("explained", "model_class", "table_name", "dtype", "rotates", "inside", "places")


def check_same_ledger(found: lxt_fx.Ledger, wanted: lxt_fx.Ledger, limit: float) -> None:
    """Amounts may differ by `limit` of the largest relevance that reached a node; all else is equal."""
    scale = wanted.scale()

    def check(one: Tensor, other: Tensor, what: object) -> None:
        assert one.shape == other.shape, what
        off = (one - other).abs().reshape(len(one), -1).sum(1)
        assert bool((off <= limit * scale).all()), (what, off / scale)

    for fact in FACTS:
        assert getattr(found, fact) == getattr(wanted, fact), fact
    lines = [[(entry.place, entry.cause, entry.name) for entry in ledger.entries] for ledger in (found, wanted)]
    assert lines[0] == lines[1]
    for entry, other in zip(found.entries, wanted.entries, strict=True):
        check(entry.amount, other.amount, (entry.place.node, entry.cause))
    for source, own in zip(found.sources, wanted.sources, strict=True):
        assert (source.name, source.tokens, source.looked_up_by) == (own.name, own.tokens, own.looked_up_by)
        check(source.relevance, own.relevance, source.name)
        check(source.elsewhere, own.elsewhere, source.name)
    for kind in AMOUNTS:
        amounts, others = getattr(found, kind), getattr(wanted, kind)
        assert list(amounts) == list(others), kind
        for key in others:
            check(amounts[key], others[key], (kind, key))
    for sums in ("value", "relevance", "leaks", "residual"):
        check(getattr(found, sums), getattr(wanted, sums), sums)
    found.check()
    wanted.check()
