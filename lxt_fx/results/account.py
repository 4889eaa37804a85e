"""The accounts of one explained number: how much of it reached the inputs, and what took the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lxt_fx.views.listed import Listed

if TYPE_CHECKING:
    from rich.console import RenderableType

NAMED, SMALL, ROUNDING, MOST = 4, 0.01, 0.001, 2.0
"""How many causes are named at most, the share of the value below which a cause is counted with the rest, and the share
from which rounding is named; what all small causes took together is left out below it. Shares are written where none is
above `MOST`."""

MEANINGS = {
    "bias": "the biases of layers",
    "added constant": "what the model adds whatever the input is, such as embeddings of positions or of [CLS]",
    "positions": "the places of words by which the model turns queries and keys, where a table gives them a share",
    "activation at 0": "what an activation gives for 0",
    "softmax offset": "the part of the attention weights that would be there whatever the scores are",
    "epsilon": "the epsilon that a rule divides by",
    "contributions of one sign": "a rule splits by sign, and nothing had that sign",
    "inputs of 0": "numbers that are 0 and so carry no relevance, such as black pixels",
    "selection": "constants that were put in the place of a value",
    "held operand": "what a rule holds constant",
    "native gradient": "ops that got their plain gradient, which shares out another amount than arrived",
    "reconstruction error": "what a dictionary does not explain",
    "features": "features of a dictionary, where relevance ends",
    "own backward": "functions with a backward of their own",
    "packed kernel": "what the kernels of quantised layers round off their inputs",
    "no rule": "ops that no rule fits (strict=False)",
    "target": "the explained number is no linear function of the model's output (a log-probability is none), so that the "
    "relevance of the output sums to another number",
    "not accounted for": "rounding, or a rule that loses relevance",
}
"""What the ledger's causes mean, for a person who reads an explanation."""


@dataclass(frozen=True, slots=True)
class Account(Listed):
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
        inputs = [(name, amount) for name, amount in self.reached.items() if amount] or list(self.reached.items())
        named = [(f"the {name}" if name.isalpha() else name, amount) for name, amount in inputs]
        reached = [f"{self._amount(amount)} {'' if at else 'reached '}{name}" for at, (name, amount) in enumerate(named)]
        said = f"of {_written(self.value)}, {_listed(reached) or 'nothing reached the inputs'}"
        took = f"; {_listed(self._causes()) or 'nothing was taken on the way'}"
        rounding = self.residual != 0 and abs(self.residual) >= ROUNDING * abs(self.value)
        said += took + (f"; {_written(self.residual)} is rounding" if rounding else "")
        negative = self.value < 0 and self._has_shares()
        return said + ("; the number is negative, so what has a share above 0 % made it smaller" if negative else "")

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        rows = [(f"reached the {name}", amount, "") for name, amount in self.reached.items()]
        rows += [(name, amount, MEANINGS.get(name, "")) for name, amount in self.took.items() if amount]
        table = Table("", "amount", "meaning")
        table.columns[1].justify = "right"
        for name, amount, meaning in [*rows, ("residual", self.residual, "rounding"), ("value", self.value, "the sum")]:
            table.add_row(Text(name), _written(amount), Text(meaning))
        return Group(Text(str(self), style="bold"), table)

    def meanings(self) -> str:
        """What the named causes mean; nothing if none is named."""
        named = [name for name, _ in self.named_causes() if name in MEANINGS]
        return "; ".join(f"{name}: {MEANINGS[name]}" for name in named)

    def _causes(self) -> list[str]:
        """The causes that took something, in words."""
        named = enumerate(self.named_causes())
        return [f"{name} {'' if at else 'took '}{self._amount(amount)}" for at, (name, amount) in named]

    def named_causes(self) -> list[tuple[str, float]]:
        """The causes that took something, the largest first; the smallest together, if they come to anything."""
        ordered = sorted((item for item in self.took.items() if item[1] != 0), key=lambda item: -abs(item[1]))
        named = [item for item in ordered if abs(item[1]) >= SMALL * abs(self.value)][:NAMED]
        rest = [amount for _, amount in ordered[len(named) :]]
        if not rest or abs(sum(rest)) < ROUNDING * abs(self.value):
            return named
        return ordered if len(rest) == 1 else [*named, (f"{len(rest)} smaller causes", sum(rest))]

    def _amount(self, amount: float) -> str:
        return f"{_written(amount)} ({_percent(amount / self.value)})" if self._has_shares() else _written(amount)

    def _has_shares(self) -> bool:
        """Whether shares say something: large amounts of both signs that all but cancel are no shares of the value."""
        amounts = (*self.reached.values(), *self.took.values())
        return self.value != 0 and max(map(abs, amounts), default=0.0) <= MOST * abs(self.value)

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
