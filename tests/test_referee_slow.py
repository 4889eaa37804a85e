"""The tasks of the referee on trained models: gold words are those by which a model answers."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

import models
from lxt_fx.referee.answers import Answers
from lxt_fx.referee.case import Case, Subject
from lxt_fx.referee.contest import NotForThisError, Task
from lxt_fx.referee.subjects import subject
from lxt_fx.referee.tasks import TASKS
from lxt_fx.referee.tasks.image_case import ClassLogit
from lxt_fx.referee.tasks.patches import patches
from lxt_fx.referee.tasks.quadrants import quadrants
from lxt_fx.referee.tasks.text_task import TextTask

pytestmark = pytest.mark.slow

GOLD_TASKS = [name for name, task in TASKS.items() if isinstance(task, TextTask) and name not in ("next_token", "two_hop")]
"""SmolLM2 makes no two hops: it answers by one of the two places whichever person is linked to it."""


@cache
def asked(name: str) -> Subject:
    """A fetched model."""
    if not (models.cache_folder() / name).is_dir():
        pytest.skip(f"not in {models.cache_folder()}; to fetch: python3 dev.py models {name}")
    if name in models.PICTURES:
        return subject(*models.load(name), name=name)
    return subject(models.fetch(name))


def falls(by: Subject, task: Task, case: Case) -> tuple[float, float]:
    """How far the number falls where the gold units are replaced, and where as many others are (mean of three choices)."""
    assert case.gold is not None
    answers = Answers(by, case, task.replacements(by, case, 0))
    others = (~case.gold & ~case.spared).nonzero().flatten()
    chance = torch.Generator().manual_seed(0)
    present = torch.ones(4, len(case.labels), dtype=torch.bool)
    present[0, case.gold] = False
    for other in present[1:]:
        other[others[torch.randperm(len(others), generator=chance)[: int(case.gold.sum())]]] = False
    fallen = answers.whole() - answers.numbers(present, "token")
    return float(fallen[0]), float(fallen[1:].mean())


def check_gold(by: Subject, task: Task, count: int) -> None:
    task = replace(task, draws=3) if isinstance(task, TextTask) else task  # one draw is noise in ten cases
    found = task.cases(by, count, 0)
    assert len(found) == count
    by_case = [falls(by, task, case) for case in found]
    gold, other = (sum(each) / count for each in zip(*by_case, strict=True))
    assert gold > 1.5 * other and gold > 0 and sum(a > b for a, b in by_case) > 0.7 * count, by_case


@pytest.mark.parametrize("name", GOLD_TASKS)
def test_smollm2_answers_by_the_gold_words(name: str) -> None:
    check_gold(asked("smollm2"), TASKS[name], 10)


def test_smollm2_answers_by_ids_as_by_embeddings() -> None:
    by = asked("smollm2")
    for name in ("facts", "next_token"):
        for case in TASKS[name].cases(by, 3, 1):
            with torch.no_grad():
                top = by.model(**case.inputs).logits[0, -1].max()
                assert by.numbers(case, by.leaf(case)).item() == pytest.approx(float(top), abs=2e-3)
            assert not case.spared.any(), "this tokenizer adds no token"


def test_gemma3_answers_by_the_gold_words() -> None:
    by = asked("gemma3")
    check_gold(by, TASKS["indirect_object"], 6)
    case = TASKS["indirect_object"].cases(by, 1, 0)[0]
    assert case.spared.tolist() == [True] + [False] * (len(case.labels) - 1)
    found = TASKS["indirect_object"].replacements(by, case, 0)
    leaf = by.leaf(case)
    assert all(torch.equal(each[0, 0], leaf[0, 0]) for each in found["token"])
    weight: Any = by.model.get_input_embeddings().weight  # type: ignore[operator]
    expected = weight.detach().double().mean(0) * 640**0.5  # which Gemma scales by the root of its width
    torch.testing.assert_close(found["mean"][0][0, 3].double(), expected, rtol=1e-4, atol=1e-5)


def test_minilm_finds_sentences_alike_by_the_word_that_they_share() -> None:
    by = asked("minilm")
    check_gold(by, TASKS["similarity"], 12)
    assert TASKS["similarity"].cases(by, 1, 0)[0].said.startswith("cosine")
    with pytest.raises(NotForThisError, match="language models"):
        TASKS["facts"].cases(by, 1, 0)


def test_vit_digits_answers_about_its_patches() -> None:
    by = asked("vit_digits")
    found = TASKS["patches"].cases(by, 450, 0)
    assert 420 < len(found) < 450 and len(found[0].labels) == 16
    for case in found[:5]:
        answers = Answers(by, case, TASKS["patches"].replacements(by, case, 0))
        gone = answers.numbers(torch.zeros(1, 16, dtype=torch.bool), "token")
        assert answers.whole() > float(gone) + 3, "other digits are not of this class"


def test_vit_mosaics_sees_a_digit_in_its_quadrant() -> None:
    by = asked("vit_mosaics")
    check_gold(by, TASKS["quadrants"], 20)
    assert len(TASKS["quadrants"].cases(by, 250, 0)) == 250


def test_dino_says_what_stands_out_in_a_photo() -> None:
    by = asked("dino_saliency")
    task = patches(models.fetch("photos"))
    found = task.cases(by, 3, 0)
    assert [len(case.labels) for case in found] == [256] * 3
    for case in found:
        answers = Answers(by, case, task.replacements(by, case, 0), batch=4)
        gone = answers.numbers(torch.zeros(1, 256, dtype=torch.bool), "zero")
        assert not isinstance(case.value, ClassLogit) and answers.whole() > float(gone)
    with pytest.raises(NotForThisError, match="0 known classes"):
        quadrants(models.fetch("photos")).cases(by, 1, 0)
