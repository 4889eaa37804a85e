"""What the page and Python both say of one fact."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lxt_fx.results.account import MEANINGS
from lxt_fx.results.origin import ABSOLUTE, SOME

WEB = Path(__file__).parents[1] / "web" / "src"
pytestmark = pytest.mark.skipif(not WEB.is_dir(), reason="web/ is not in a wheel")


def test_the_page_knows_the_causes_of_the_ledger() -> None:
    body = re.search(r"MEANINGS: Record<string, string> = \{\n(.*?)\n\};", (WEB / "words.ts").read_text(), re.S)
    assert body is not None
    lines = re.findall(r'^  "?([^":]+)"?: (".*"),$', body[1], re.M)
    assert {name: json.loads(said) for name, said in lines} == MEANINGS


def test_the_page_knows_which_relevance_does_not_sum_to_a_number() -> None:
    text = (WEB / "saved.ts").read_text()
    assert all(json.dumps(words) in text for words in (ABSOLUTE, SOME))
