"""What the page and Python both say of one fact."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lxt_fx.results.account import MEANINGS, Account
from lxt_fx.results.gap import CAUSES, account_sentences, gap_sentences, names_of
from lxt_fx.results.origin import ABSOLUTE, SOME, ExplainedNumber
from lxt_fx.results.part import Part
from lxt_fx.results.readings import ImageReading, NumbersReading, Reading, SoundReading, TextReading
from lxt_fx.results.words import sentences, words
from lxt_fx.views.scaling import MARKED

WEB = Path(__file__).parents[1] / "web" / "src"
CASES = Path(__file__).parent / "browser"
GAPS = json.loads((CASES / "gap_cases.json").read_text(encoding="utf-8"))
TEXTS = json.loads((CASES / "word_cases.json").read_text(encoding="utf-8"))
READINGS: dict[str, tuple[tuple[str, ...], Reading]] = {
    "text": (("position",), TextReading(("a",), None, (False,), (0,))),
    "image": (("row", "column"), ImageReading(torch.zeros(1, 1, 3, dtype=torch.uint8))),
    "sound": (("time",), SoundReading(0.1)),
    "numbers": (("feature",), NumbersReading()),
}
in_checkout = pytest.mark.skipif(not WEB.is_dir(), reason="web/ is not in a wheel")


def parts_of(case: dict[str, Any]) -> list[Part]:
    found = []
    for part in case["parts"]:
        axes, reading = READINGS[part["kind"]]
        found.append(Part(part["name"], axes, torch.zeros((1,) * len(axes)), reading))
    return found


def test_accounts_are_said_as_the_shared_cases_have_it() -> None:
    """web/tests/shared.test.ts holds the page to the same sentences."""
    for case in GAPS["accounts"]:
        found = account_sentences(Account(**case["account"]), names_of(parts_of(case)))
        assert list(found) == case["sentences"]
    assert set(CAUSES) == set(MEANINGS) <= {name for case in GAPS["accounts"] for name in case["account"]["took"]}


@pytest.mark.parametrize("case", GAPS["gaps"], ids=lambda case: case["sentence"][:40])
def test_gaps_are_said_as_the_shared_cases_have_it(case: dict[str, Any]) -> None:
    number, account = ExplainedNumber("logit", case["value"], "logit"), Account(1.0, {}, {}, 0.0)
    more: dict[str, Any] = {"account": account, "several": True} if case["together"] else {"account": None}
    assert gap_sentences(parts_of(case), number, case["total"], **more) == (case["sentence"],)


def test_words_and_sentences_are_those_of_the_shared_cases() -> None:
    for case in TEXTS:
        tokens = tuple(case["tokens"])
        special = tuple(at in case["special"] for at in range(len(tokens)))
        reading = TextReading(tokens, None, special, tuple(case["segments"]), case["answer"])
        found = [[[one.start, one.stop] for one in spans(reading)] for spans in (words, sentences)]
        assert found == [case["words"], case["sentences"]], tokens


@in_checkout
def test_the_page_draws_a_sign_from_the_same_share() -> None:
    assert re.findall(r"^export const MARKED = (\S+);", (WEB / "scale.ts").read_text(), re.M) == [str(MARKED)]
    shares = re.compile(r"shares?(?:\[\w+\]!?)?\)? [<>]=? -?0?\.\d")
    assert not {file.name for file in WEB.glob("*.ts*") if shares.search(file.read_text())}, "a share of its own"


@in_checkout
def test_the_page_knows_which_relevance_does_not_sum_to_a_number() -> None:
    text = (WEB / "saved.ts").read_text()
    assert all(json.dumps(words) in text for words in (ABSOLUTE, SOME))
