"""Why the relevance of the inputs does not sum to the explained number, in plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lxt_fx.results.account import MEANINGS, ROUNDING, Account
from lxt_fx.results.origin import ABSOLUTE, SOME, ExplainedNumber
from lxt_fx.results.part import Part

CAUSES = {
    "bias": "is biases",
    "added constant": "is added constants",
    "positions": "belongs to positions",
    "activation at 0": "is what activations give for 0",
    "softmax offset": "is the softmax offset",
    "epsilon": "is epsilon",
    "contributions of one sign": "met no contribution of its sign",
    "inputs of 0": "belongs to inputs of 0",
    "selection": "is selected constants",
    "held operand": "is held constant",
    "native gradient": "went at ops with their plain gradient",
    "reconstruction error": "is what a dictionary does not explain",
    "features": "ends at features of a dictionary",
    "own backward": "went at functions with a backward of their own",
    "packed kernel": "is the rounding of quantised layers",
    "no rule": "went at ops without a rule",
    "target": "is what the number has beside the output's relevance",
    "not accounted for": "is not accounted for",
}
"""What follows an amount that a cause of the ledger took."""

SHOWN = {"text": "the tokens", "image": "the pixels", "sound": "the sound"}
"""What the relevance of a part belongs to, if it is the only part."""

HOW = "`account=True` or lxt_fx.audit says where"


def gap_sentences(
    parts: Sequence[Part], number: ExplainedNumber, total: float, account: Account | None, *, several: bool = False
) -> tuple[str, ...]:
    """What a person reads beside an explained number and the sum `total` of the relevance of its inputs. With an account:
    where all of it went, and what the causes mean. `several` says that the account is of the sum of several numbers, of
    which this is one. Of absolute relevance, and of some of the places, nothing is said."""
    if account is not None and not several:
        return account_sentences(account, names_of(parts))
    if ABSOLUTE in number.said or SOME in number.said:
        return ()
    value = number.value
    sums = " and ".join(names_of(parts).values()) if parts else "the inputs"
    said, written = f"the relevance of {sums} sums to", Written(value)
    if abs(value - total) <= ROUNDING * abs(value):
        return (f"{said} the value, {written(value)}",)
    inside = abs(total) < abs(value) and total * value > 0
    gap = "the rest was absorbed on the way" if inside else "the difference was absorbed on the way"
    how = HOW if account is None else "the account of all numbers together says where"
    return (f"{said} {written(total)} of the value {written(value)}; {gap}: biases, softmax; {how}",)


def account_sentences(account: Account, names: Mapping[str, str]) -> tuple[str, ...]:
    """The account in one sentence, the largest causes first, and what these mean. `names` are those of the inputs."""
    written = Written(account.value)
    inputs = [(name, amount) for name, amount in account.reached.items() if amount] or list(account.reached.items())
    found = [f"{written(amount)} reaches {names.get(name, f'the {name}')}" for name, amount in inputs]
    causes = account.named_causes()
    found += [f"{written(amount)} {CAUSES.get(name, f'went to {name}')}" for name, amount in causes]
    if account.residual and abs(account.residual) >= ROUNDING * abs(account.value):
        found.append(f"{written(account.residual)} is rounding")
    meanings = [f"{name}: {MEANINGS[name]}" for name, _ in causes if name in MEANINGS]
    return (f"of {written(account.value)}: {', '.join(found)}", *meanings)


def names_of(parts: Sequence[Part]) -> dict[str, str]:
    """What a person calls each part: `the tokens` of the only text."""
    if len(parts) == 1 and parts[0].kind in SHOWN:
        return {parts[0].name: SHOWN[parts[0].kind]}
    return {part.name: f"the {part.name}" for part in parts}


class Written:
    """Writes amounts with as many decimals as a value has with three digits, so that they add up before one's eyes."""

    def __init__(self, value: float) -> None:
        size = math.floor(math.log10(abs(value))) if value and math.isfinite(value) else 0
        self.decimals = 2 - size if -4 <= size <= 2 else None if size < -4 else 0

    def __call__(self, amount: float) -> str:
        text = f"{amount:.3g}" if self.decimals is None else f"{amount:.{self.decimals}f}"
        if amount and not float(text):
            text = f"{amount:.1g}"
        return ("0" if not amount else text).replace("-", "−")
