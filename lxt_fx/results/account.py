"""The accounts of one explained number: how much of it reached the inputs, and what took the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Account:
    """`value` = sum of `reached` + sum of `took` + `residual`, in float64.

    `reached` is the relevance that each input received, by its name. `took` is what the model's own parts absorbed, by
    cause in the words of the ledger (`lxt_fx.Cause`): biases, positions, the softmax's offset, and so on. `residual` is
    rounding.
    """

    value: float
    reached: Mapping[str, float]
    took: Mapping[str, float]
    residual: float
