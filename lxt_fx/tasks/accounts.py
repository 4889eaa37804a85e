"""The account of an explained number: what reached each input, and what took the rest, from the ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from lxt_fx.compiler.explained import Explained
from lxt_fx.inputs.given import Example
from lxt_fx.ledger.ledger import Ledger
from lxt_fx.ledger.run_audit import audit
from lxt_fx.results.account import Account
from lxt_fx.tasks.explained_call import ExplainedCall
from lxt_fx.tasks.rows import of_input


def account_of(call: ExplainedCall, made_of: Mapping[str, str], index: int, target: int) -> Account:
    """The account of one number: target `target` of example `index`. `made_of` names the input that each leaf is made of.
    It runs the module once more, node by node."""

    def number(output: Any) -> Tensor:
        call.numbers.totals(output)
        return call.numbers.numbers[index][target].value

    found, call.numbers.numbers = call.numbers.numbers, []
    try:
        return account_by(call.explained, call.inputs, number, call.given.examples[index], made_of)
    finally:
        call.numbers.numbers = found


def account_by(
    explained: Explained,
    inputs: Mapping[str, Any],
    number: Callable[[Any], Tensor],
    example: Example,
    made_of: Mapping[str, str],
) -> Account:
    """The account of a number of one example, as a function of the output."""
    return _account(audit(explained, inputs, number), example, made_of)


def _account(ledger: Ledger, example: Example, made_of: Mapping[str, str]) -> Account:
    """What an input of another name than those of the example received stands under its own name."""
    reached: dict[str, float] = {}
    for source in ledger.sources:
        name = made_of.get(source.name, source.name)
        places = [place for place in example.places if of_input(made_of.values(), place.leaf) == name]
        whole = source.relevance if source.relevance.dim() > 1 else source.relevance[None]
        if places and len({str(place.within) for place in places}) == 1:  # one place, or crops of one picture
            reached[places[0].name] = reached.get(places[0].name, 0.0) + float(source.amount.sum())
            continue
        rest = whole[0].clone()
        for place in places:
            reached[place.name] = reached.get(place.name, 0.0) + float(rest[place.within].sum())
            rest[place.within] = 0
        left = float(rest.sum()) + float(source.elsewhere.sum())
        if left:
            reached[name] = reached.get(name, 0.0) + left
    took = {cause.value: float(amount.sum()) for cause, amount in ledger.by_cause().items() if bool(amount.any())}
    value = float(ledger.value.sum())
    return Account(value, reached, took, value - sum(reached.values()) - sum(took.values()))
