"""An explanation as the page has it, and its static sheet for readers without scripts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from lxt_fx.explorer.part_data import part_data
from lxt_fx.explorer.plain import Payload, result
from lxt_fx.results.account import Account
from lxt_fx.results.explanation import Explanation
from lxt_fx.results.gap import account_sentences, gap_sentences, names_of
from lxt_fx.results.part import Part
from lxt_fx.results.readings import TextReading
from lxt_fx.results.show import in_patches
from lxt_fx.results.words import shown_alone

TITLE = 60
"""The most characters of a title."""


def explanation_data(explanation: Explanation, title: str | None = None, patch: int | None = None) -> Payload:
    """Parts, numbers and account. Pictures are summed to squares of `patch` pixels (None: the model's patches)."""
    parts, origin = in_patches(explanation.parts, patch), explanation.origin
    sums = [sum(column) for column in zip(*(_sums(part) for part in parts), strict=True)]
    several = parts[0].several
    numbers = [
        {
            "said": number.said,
            "label": number.label,
            "value": number.value,
            "sum": total,
            "sentences": list(gap_sentences(parts, number, total, explanation.account, several=several)),
        }
        for number, total in zip(explanation.numbers, sums, strict=True)
    ]
    account = explanation.account
    return result(
        "explanation", title_of(explanation) if title is None else title, model_class=origin.model_class,
        checkpoint=PurePath(origin.checkpoint).name or origin.checkpoint,  # of a local folder its name alone
        rules=origin.table_name, versions=dict(origin.versions), seconds=origin.seconds,
        numbers=numbers, parts=[part_data(part) for part in parts],
        account=None if account is None else account_data(account, names_of(parts)),
    )  # fmt: skip


def account_data(account: Account, names: dict[str, str]) -> Payload:
    """What reached the inputs and what took the rest, as numbers and in words."""
    return {
        "value": account.value,
        "reached": dict(account.reached),
        "took": dict(account.took),
        "residual": account.residual,
        "sentences": list(account_sentences(account, names)),
    }


def title_of(explanation: Explanation) -> str:
    """The beginning of the first text without its special tokens; else what was explained."""
    for part in explanation.parts:
        if isinstance(part.reading, TextReading):
            shown = zip(shown_alone(part.reading.tokens), part.reading.special, strict=True)
            text = " ".join("".join(token for token, special in shown if not special).split())
            if text:
                return shortened(text)
    return shortened(explanation.numbers[0].said)


def shortened(text: str) -> str:
    """The text in at most `TITLE` characters."""
    return text if len(text) <= TITLE else f"{text[: TITLE - 1].rstrip()}…"


def places_of(explanations: Sequence[Explanation]) -> int:
    """How many coloured places a sheet of these has: pictures are drawn, so they count as nothing."""
    return sum(p.values.numel() for one in explanations for p in one.parts if p.kind != "image")


def _sums(part: Part) -> list[float]:
    found: list[float] = part.by_number().double().flatten(1).sum(1).tolist()
    return found
