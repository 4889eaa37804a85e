"""The accounts of one explained number: how much of it reached the inputs, and what took the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

NAMED, SMALL, ROUNDING = 4, 0.01, 0.001
"""How many causes are named at most, the share of the value below which a cause is counted with the rest, and the share
from which rounding is named."""


@dataclass(frozen=True, slots=True)
class Account:
    """`value` = sum of `reached` + sum of `took` + `residual`, in float64.

    `reached` is the relevance that each input received, by its name. `took` is what the model's own parts absorbed, by
    cause in the words of the ledger (`lxt_fx.Cause`): biases, positions, the softmax's offset, and so on. `residual` is
    rounding. `print` says it in words, the largest causes first.
    """

    value: float
    reached: Mapping[str, float]
    took: Mapping[str, float]
    residual: float

    def __str__(self) -> str:
        reached = [f"{self._amount(amount)} reached the {name}" for name, amount in list(self.reached.items())[:1]]
        reached += [f"{self._amount(amount)} the {name}" for name, amount in list(self.reached.items())[1:]]
        said = f"of {_written(self.value)}, {_listed(reached) or 'nothing reached the inputs'}"
        took = f"; {_listed(self._causes()) or 'nothing was taken on the way'}"
        rounding = self.residual != 0 and abs(self.residual) >= ROUNDING * abs(self.value)
        return said + took + (f"; {_written(self.residual)} is rounding" if rounding else "")

    def _causes(self) -> list[str]:
        """The causes that took something, the largest first; the smallest together."""
        ordered = sorted((item for item in self.took.items() if item[1] != 0), key=lambda item: -abs(item[1]))
        named = [item for item in ordered if abs(item[1]) >= SMALL * abs(self.value)][:NAMED]
        if len(ordered) == len(named) + 1:
            named = ordered
        found = list(named)
        if rest := [amount for _, amount in ordered[len(named) :]]:
            found.append((f"{len(rest)} smaller causes", sum(rest)))
        return [f"{name} {'' if at else 'took '}{self._amount(amount)}" for at, (name, amount) in enumerate(found)]

    def _amount(self, amount: float) -> str:
        share = f" ({_percent(amount / self.value)})" if self.value else ""
        return f"{_written(amount)}{share}"

    def __repr__(self) -> str:
        reached, took = sum(self.reached.values()), sum(self.took.values())
        inputs = f"{reached:.4g} reached {len(self.reached)} inputs"
        return f"Account({self.value:.4g}: {inputs}, {len(self.took)} causes took {took:.4g})"


def combined(a: Account, b: Account, sign: int) -> Account:
    """The account of a sum (`sign` 1) or difference (-1)."""

    def added(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
        return {name: one.get(name, 0.0) + sign * other.get(name, 0.0) for name in dict.fromkeys([*one, *other])}

    residual = a.residual + sign * b.residual
    return Account(a.value + sign * b.value, added(a.reached, b.reached), added(a.took, b.took), residual)


def _listed(items: list[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else "".join(items)


def _written(amount: float) -> str:
    return f"{amount:.3g}".replace("-", "−")


def _percent(share: float) -> str:
    written = f"{100 * share:.0f}" if abs(share) >= 0.01 or share == 0 else f"{100 * share:.1g}"
    return f"{'0' if written == '-0' else written} %".replace("-", "−")
