"""The text tasks of the referee: prompts, their gold words, their answers, and what removed tokens become."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

import lxt_fx
from lxt_fx.base.errors import InputError
from lxt_fx.referee.case import Subject
from lxt_fx.referee.contest import NotForThisError, Task
from lxt_fx.referee.subjects import subject
from lxt_fx.referee.tasks import FROM_PATH, TASKS
from lxt_fx.referee.tasks.agreement import PEOPLE, THINGS
from lxt_fx.referee.tasks.candidate import Candidate, marked
from lxt_fx.referee.tasks.facts import pairs_by_relation
from lxt_fx.referee.tasks.needle import needle
from lxt_fx.referee.tasks.next_token import next_token
from lxt_fx.referee.tasks.patching_pairs import patching_pairs
from lxt_fx.referee.tasks.reading import continuation, read, read_prompt
from lxt_fx.referee.tasks.replacements import TokenDraws, mean_embedding
from lxt_fx.referee.tasks.sentiment import BAD, GOOD
from lxt_fx.referee.tasks.similarity import Similarity
from lxt_fx.referee.tasks.text_task import NextToken, TextTask, ask, right_cases
from lxt_fx.referee.tasks.two_hop import two_hop
from tests.referee_models import TEXT_TASKS, candidates, digests, encoder, language, text_task, tokenizer_of
from tests.tiny_text import llama

MANY = ("next_token", "facts", "indirect_object", "agreement", "greater_than")


def gold_words(candidate: Candidate) -> list[str]:
    return [candidate.text[start:end] for start, end in candidate.gold]


# Prompts


def test_every_task_is_a_task_under_its_name() -> None:
    assert len(TASKS) == 12
    assert all(isinstance(task, Task) and task.name == name for name, task in TASKS.items())
    assert set(FROM_PATH) <= set(TASKS)


GROUPED = {
    "facts": lambda each: gold_words(each)[0].lower(),
    "agreement": lambda each: next(one for one in (*THINGS, *PEOPLE) if gold_words(each)[0] in one.split()).split()[0],
    "greater_than": lambda each: re.findall(r"\d{4}", each.text)[0],
    "indirect_object": lambda each: " and ".join(sorted(one.strip() for one in (*each.right, *each.wrong))),
}
"""What a prompt asks about, read from the prompt."""


@pytest.mark.parametrize("name", sorted(GROUPED))
def test_prompts_that_ask_about_the_same_are_a_group(name: str) -> None:
    found = candidates(name, 500)
    assert [each.group.lower() for each in found] == [GROUPED[name](each).lower() for each in found]
    assert 20 < len({each.group for each in found}) < 500


def test_questions_about_one_person_or_place_are_a_group() -> None:
    for name in ("needle", "two_hop"):
        found = candidates(name, 200)
        assert all(each.group in each.text or "treasure" in each.group for each in found)
        assert 10 < len({each.group for each in found}) < 40
    assert {each.group for name in ("next_token", "sentiment") for each in candidates(name, 50)} == {""}


def test_two_questions_about_one_public_passage_are_a_group(tmp_path: Path) -> None:
    entry = json.loads(GOOD_FILES["answer_span"][1])[0]
    other = {**entry, "context": "Only Rollo came", "answer_span": [5, 10], "id": "x3"}
    (tmp_path / "a.json").write_text(json.dumps([entry, {**entry, "question": "Who came?", "id": "x2"}, other]))
    task = FROM_PATH["answer_span"](tmp_path / "a.json")
    assert isinstance(task, TextTask)
    groups = {each.key: each.group for each in task.candidates(tokenizer_of("byte"), 0)}
    assert groups["squad-x1"] == groups["squad-x2"] != groups["squad-x3"]


def test_texts_of_one_article_are_a_group(tmp_path: Path) -> None:
    one, two, three = (f"The old {thing} on the river was closed on Monday." for thing in ("bridge", "market", "museum"))
    lines = ({"text": one, "group": "article"}, {"text": two, "group": "article"}, {"text": three})
    (tmp_path / "texts.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    found = next_token(tmp_path / "texts.jsonl", tokens=4).candidates(tokenizer_of("byte"), 0)
    assert {each.text: each.group for each in found} == {one: "article", two: "article", three: ""}


def test_a_case_has_the_group_of_its_prompt() -> None:
    asked = language()
    for name in ("agreement", "next_token"):
        groups = {each.key: each.group for each in candidates(name, 64)}
        found = text_task(name).cases(asked, 3, 0)
        assert found and all(case.group == groups[case.key] for case in found)


@pytest.mark.parametrize("name", TEXT_TASKS)
def test_prompts_are_many_and_distinct(name: str) -> None:
    least = 500 if name in MANY else 200
    found = candidates(name, least)
    assert len(found) == len({each.text for each in found}) == len({each.key for each in found}) == least
    assert all("  " not in each.text and not each.text.endswith(" ") and "{" not in each.text for each in found)
    assert not any(re.search(r"\b[Aa] [aeiou]", each.text) for each in found if name != "facts")


@pytest.mark.parametrize("name", TEXT_TASKS)
def test_another_seed_gives_other_prompts_and_one_prompt_one_key(name: str) -> None:
    one, other = ({each.text: each.key for each in candidates(name, 100, seed)} for seed in (0, 1))
    assert list(one) != list(other)
    assert all(other[text] == key for text, key in one.items() if text in other)


@pytest.mark.parametrize("name", sorted({*TEXT_TASKS} - {"next_token"}))
def test_gold_words_are_whole_words(name: str) -> None:
    for each in candidates(name, 200):
        assert each.gold
        for start, end in each.gold:
            assert each.text[start:end] == each.text[start:end].strip()
            if name != "greater_than":
                assert not each.text[max(0, start - 1) : start].isalnum() and not each.text[end : end + 1].isalnum()


@pytest.mark.parametrize("name", ["needle", "two_hop", "answer_span", "indirect_object"])
def test_the_answer_is_a_gold_word(name: str) -> None:
    for each in candidates(name, 200):
        assert gold_words(each)[-1 if name == "two_hop" else 0] in [answer.strip() for answer in each.right] or (
            name == "two_hop" and each.right[0].strip() in gold_words(each)
        )


@pytest.mark.parametrize(("name", "gold"), [("needle", 1), ("facts", 0)])
def test_the_answer_stands_nowhere_else(name: str, gold: int) -> None:
    """Otherwise the model may copy it from there, and the gold word is not what it must rest on."""
    for each in candidates(name, 2790 if name == "facts" else 400):
        word = each.right[0].strip()
        assert len(re.findall(rf"\b{re.escape(word)}\b", each.text, re.IGNORECASE)) == gold, each.text


def test_the_gold_word_of_a_fact_is_what_it_is_about() -> None:
    pairs = {pair for found in pairs_by_relation().values() for pair in found}
    assert len(pairs) > 500
    for each in candidates("facts", 400):
        (subject_of_it,) = gold_words(each)
        assert (subject_of_it, each.right[0].strip()) in pairs or (subject_of_it.lower(), each.right[0].strip()) in pairs


def test_the_subject_stands_twice_and_the_indirect_object_once() -> None:
    for each in candidates("indirect_object", 300):
        asked, other = each.right[0].strip(), each.wrong[0].strip()
        assert len(re.findall(rf"\b{asked}\b", each.text)) == 1 and len(re.findall(rf"\b{other}\b", each.text)) == 2


def test_the_verb_agrees_with_the_gold_noun() -> None:
    nouns = {word: number for pair in THINGS + PEOPLE for number, word in enumerate(pair.split())}
    many_others = 0
    for each in candidates("agreement", 300):
        (noun,) = gold_words(each)
        assert each.right == ((" is", " was", " has"), (" are", " were", " have"))[nouns[noun]]
        assert each.wrong == ((" are", " were", " have"), (" is", " was", " has"))[nouns[noun]]
        start = each.gold[0][0]
        assert not any(re.search(rf"\b{word}\b", each.text[:start]) for word in nouns), "the subject is the first noun"
        last = each.text.split()[-1]
        many_others += last in nouns and nouns[last] != nouns[noun]
    assert many_others > 100


def test_two_hops_rest_on_the_person_and_on_the_place() -> None:
    for each in candidates("two_hop", 100):
        (twin,) = each.also
        person, end = (next(word for word in gold_words(each) if word != each.right[0].strip()), each.right[0].strip())
        assert {person, end} == {*gold_words(each)}
        assert [len(re.findall(rf"\b{word}\b", each.text)) for word in (person, end)] == [2, 1]
        assert (twin.right, twin.wrong) == (each.wrong, each.right) and twin.text != each.text
        changed = [at for at, (a, b) in enumerate(zip(each.text.split(), twin.text.split(), strict=True)) if a != b]
        assert len(changed) == 2, "only the people of the two first facts change"


def test_the_label_is_that_of_the_gold_words() -> None:
    for each in candidates("sentiment", 300):
        good = {word in GOOD for word in gold_words(each)}
        assert len(good) == 1 and all(word in GOOD + BAD for word in gold_words(each))
        (twin,) = each.also
        assert not good & {word in GOOD for word in gold_words(twin)} and (twin.right, twin.wrong) == (
            each.wrong,
            each.right,
        )
        bare, turned = (re.sub(r"\ban? ", "a ", re.sub("|".join(GOOD + BAD), "X", one.text)) for one in (each, twin))
        assert bare == turned, "nothing else changes"
        assert each.right[0] == (" positive" if good.pop() else " negative")
        assert not any(word in each.text for word in GOOD + BAD if f" {word}" in each.text and word not in gold_words(each))


def test_years_after_the_year_are_right() -> None:
    for each in candidates("greater_than", 300):
        century = each.text[-2:]
        year = re.findall(rf"{century}(\d\d)\b", each.text)[0]
        assert min(each.right) > f" {year}".strip() >= max(each.wrong)
        assert gold_words(each)[0] in (year, year[0])
        assert each.text[each.gold[0][0] - 2 :].startswith(century + year)


def test_gold_is_the_whole_year_where_one_token_is_two_digits() -> None:
    tokenizer = tokenizer_of("byte")
    made = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer)
    made.add_tokens([f"{number:02}" for number in range(100)])
    assert all(len(gold_words(each)[0]) == 2 for each in candidates("greater_than", 20, tokenizer=made))
    asked = [ask(made, each) for each in candidates("greater_than", 20, tokenizer=made)]
    assert all(each is not None and each.value is not None and len(each.value.right) > 5 for each in asked)


@pytest.mark.parametrize("length", [50, 150, 500])
def test_prompts_are_as_long_as_asked(length: int) -> None:
    tokenizer = tokenizer_of("byte")
    for task in (needle(length), two_hop(length)):
        lengths = [len(read(tokenizer, each.text).ids) for each in itertools.islice(task.candidates(tokenizer, 0), 20)]
        assert all(length - 45 <= each <= length + 25 for each in lengths), lengths


@pytest.mark.parametrize("length", [49, 501, True, 100.0])
def test_other_lengths_are_refused(length: Any) -> None:
    with pytest.raises(InputError, match="from 50 to 500"):
        needle(length)
    with pytest.raises(InputError, match="two_hop.*from 50 to 500"):
        two_hop(length)


@pytest.mark.parametrize("template", ["[a", "a]", "[[a]]", "]a["])
def test_brackets_must_match(template: str) -> None:
    with pytest.raises(InputError, match="brackets"):
        marked(template)


@pytest.mark.parametrize("span", [(0, 0), (3, 4), (-1, 2), (4, 99)])
def test_a_gold_span_without_a_word_is_refused(span: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="gold span"):
        Candidate("one two", gold=(span,))


# Tokens


@pytest.mark.parametrize("kind", ["byte", "word", "sentence"])
@pytest.mark.parametrize(
    "template", ["The capital of [France] is", "[The keys] near the [old tree]", "in 18[5]4", "caf\u00e9 [\U0001f999x] y"]
)
def test_gold_tokens_are_those_that_have_gold_characters(kind: str, template: str) -> None:
    """Found here by removing one character after the other from the text of the tokens, not by spans that overlap."""
    text, gold = marked(template)
    found = read(tokenizer_of(kind), text)
    units = found.gold_units(gold)
    for (start, end), is_gold, special in zip(found.spans, units, found.special, strict=True):
        inside = [text[at] for at in range(start, end) if any(a <= at < b for a, b in gold) and not text[at].isspace()]
        assert is_gold == bool(inside) and not (is_gold and special)
    covered = {at for (start, end), is_gold in zip(found.spans, units, strict=True) if is_gold for at in range(start, end)}
    assert {at for a, b in gold for at in range(a, b) if not text[at].isspace()} <= covered


def test_gold_is_the_word_as_the_tokenizer_writes_it() -> None:
    text, gold = marked("The capital of [France] is")
    for kind, own in (("byte", " France"), ("word", "france")):
        tokenizer = tokenizer_of(kind)
        found = read(tokenizer, text)
        ids = [token for token, is_gold in zip(found.ids, found.gold_units(gold), strict=True) if is_gold]
        assert tokenizer.decode(ids) == own


def test_a_space_makes_no_token_gold() -> None:
    tokenizer, text = tokenizer_of("byte"), "The capital of France is"
    found = read(tokenizer, text)
    start = text.index("France")
    named = [token for token, gold in zip(found.ids, found.gold_units([(start - 1, start + 7)]), strict=True) if gold]
    assert tokenizer.decode(named) == " France", "the spaces before and behind it are in the span"
    wide = read(tokenizer, "one   two")
    assert not any(wide.gold_units([(3, 6)]))


def test_added_tokens_are_spared_and_unknown_words_are_not() -> None:
    tokenizer = tokenizer_of("word")
    found = read(tokenizer, "the \u6c34 capital")
    assert found.special == (True, *[False] * (len(found.ids) - 2), True) and tokenizer.unk_token_id in found.ids
    assert read(tokenizer_of("sentence"), "The capital").special[:2] == (True, False)
    assert read(tokenizer_of("byte"), "The <|end|> capital").special.count(True) == 1, "one that is written out"


def test_a_prompt_ends_where_the_model_goes_on() -> None:
    tokenizer = tokenizer_of("word")
    prompt = read_prompt(tokenizer, "The capital of France is")
    assert prompt.ids[0] == tokenizer.cls_token_id and prompt.ids[-1] != tokenizer.sep_token_id
    assert len(read_prompt(tokenizer, "The capital of France is", 3).ids) == 3


def test_the_answer_is_what_follows_the_prompt() -> None:
    for kind in ("byte", "word"):
        tokenizer = tokenizer_of(kind)
        ids = continuation(tokenizer, read_prompt(tokenizer, "The capital of France is"), " Paris")
        assert ids is not None and tokenizer.decode(list(ids)).strip().lower() == "paris"


def test_an_answer_that_the_tokenizer_joins_with_the_prompt_is_none() -> None:
    tokenizer = tokenizer_of("byte")
    assert continuation(tokenizer, read_prompt(tokenizer, "The capital of Fra"), "nce") is None
    assert continuation(tokenizer, read_prompt(tokenizer, "The capital"), "") is None
    assert continuation(tokenizer, read_prompt(tokenizer, "The capital"), " ") is None, "a space is no answer"


def test_tokens_of_right_and_wrong_answers_are_left_out() -> None:
    tokenizer = tokenizer_of("byte")
    asked = ask(tokenizer, Candidate("It began in 1654 and ended in 16", ("60", "70"), ("50", "60"), judged="contrast"))
    assert asked is not None and asked.value is not None
    assert [tokenizer.decode(list(ids)) for ids in (asked.value.right, asked.value.wrong)] == ["7", "5"]
    assert ask(tokenizer, Candidate("It began in 16", ("60",), ("61",), judged="contrast")) is None


def test_a_tokenizer_without_places_is_refused() -> None:
    slow: Any = SimpleNamespace(is_fast=False)
    with pytest.raises(NotForThisError, match="fast tokenizer"):
        read(slow, "a text")


# Cases


def test_the_number_is_that_of_the_logits() -> None:
    logits = torch.randn(3, 5, 11, dtype=torch.float64)
    output = SimpleNamespace(logits=logits)
    assert torch.equal(NextToken((4,))(output), logits[:, -1, 4])
    mine = (logits[:, -1, 1] + logits[:, -1, 2]) / 2 - logits[:, -1, 7]
    torch.testing.assert_close(NextToken((1, 2), (7,))(output), mine, rtol=1e-12, atol=1e-12)
    assert NextToken((1,))(SimpleNamespace(logits=logits.half())).dtype == torch.float32


@pytest.mark.parametrize("name", ["indirect_object", "agreement", "greater_than"])
def test_cases_are_the_prompts_that_the_model_answers_right(name: str) -> None:
    """Against each candidate alone, by its ids and the whole row of logits."""
    asked, tokenizer = language(), language().processor
    expected = []
    for each in candidates(name, 128):
        ids = tokenizer(each.text, return_tensors="pt").input_ids
        firsts = [
            {tokenizer(each.text + answer).input_ids[ids.shape[1]] for answer in answers}
            for answers in (each.right, each.wrong)
        ]
        right, wrong = firsts[0] - firsts[1], firsts[1] - firsts[0]
        with torch.no_grad():
            row = asked.model(input_ids=ids).logits[0, -1]
        if right and wrong and row[[*right]].mean() > row[[*wrong]].mean():
            expected.append((each.key, float(row[[*right]].mean() - row[[*wrong]].mean())))
    found = TASKS[name].cases(asked, 30, 0)
    assert [case.key for case in found] == [key for key, _ in expected][:30]
    assert 10 < len(expected) < 118, "a random model answers about half of them right"
    for case, (_, number) in zip(found, expected, strict=False):
        own = asked.numbers(case, asked.leaf(case))
        assert own.item() == pytest.approx(number, abs=2e-6) and number > 0, "by embeddings as by ids"


def test_facts_are_those_that_the_model_knows() -> None:
    """A tiny model learns some of them by heart."""
    tokenizer = tokenizer_of("byte")
    model = llama(len(tokenizer))
    some = [each for each in candidates("facts", 40) if (one := ask(tokenizer, each)) and one.value]
    prompts = [(read_prompt(tokenizer, each.text).ids, ask(tokenizer, each).value.right[0]) for each in some]  # type: ignore[union-attr]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(12):
        for ids, answer in prompts[:20]:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(torch.tensor([ids])).logits[0, -1:], torch.tensor([answer])).backward()
            optimizer.step()
    with torch.no_grad():
        known = [
            each.key
            for each, (ids, answer) in zip(some, prompts, strict=True)
            if int(model(torch.tensor([ids])).logits[0, -1].argmax()) == answer
        ]
    asked = subject(model.requires_grad_(False), tokenizer)
    found = text_task("facts").cases(asked, len(known), 0)
    assert 4 < len(known) < len(some) and [case.key for case in found] == known
    assert all(case.gold is not None and bool(case.gold.any()) for case in found)


def test_a_twin_must_be_answered_right_too() -> None:
    asked = language()
    good, bad = [], []
    for each in candidates("agreement", 64):
        one = ask(asked.processor, each)
        assert one is not None
        (good if list(right_cases(asked, [one])) else bad).append(each)
    one, other, wrong = good[0], good[1], bad[0]
    for twin, count in ((other, 1), (wrong, 0)):
        both = Candidate(one.text, one.right, one.wrong, one.gold, one.judged, (twin,))
        found = ask(asked.processor, both)
        assert found is not None and len(list(right_cases(asked, [found]))) == count


def test_a_model_that_is_hardly_ever_right_is_asked_no_more() -> None:
    given = candidates("agreement", 700)
    asked = language()
    right = {case.key for case in text_task("agreement").cases(asked, 700, 0)}
    first = next(each for each in given if each.key in right)
    drawn = [0]

    def hopeless(tokenizer: Any, seed: int) -> Any:
        for each in [first, *(each for each in given if each.key not in right)] * 3:
            drawn[0] += 1
            yield each

    found = TextTask("hopeless", hopeless).cases(asked, 9, 0)
    assert [case.key for case in found] == [first.key] and drawn[0] == 256


@pytest.mark.parametrize("name", ["next_token", "agreement", "indirect_object"])
def test_more_cases_begin_with_the_same(name: str) -> None:
    few, many = (TASKS[name].cases(language(), count, 3) for count in (5, 90))
    assert len(many) == 90 and [case.key for case in few] == [case.key for case in many[:5]]
    assert all(torch.equal(a.inputs["input_ids"], b.inputs["input_ids"]) for a, b in zip(few, many, strict=False))


def test_next_tokens_follow_texts_of_one_length() -> None:
    asked = language()
    for tokens in (8, 32):
        for case in next_token(tokens=tokens).cases(asked, 10, 0):
            assert case.inputs["input_ids"].shape == (1, tokens) and case.gold is None
            with torch.no_grad():
                row = asked.model(**case.inputs).logits[0, -1]
            assert asked.numbers(case, asked.leaf(case)).item() == pytest.approx(float(row.max()), abs=2e-6)


def test_two_processes_agree() -> None:
    names = ("next_token", "agreement", "greater_than", "indirect_object", "similarity")
    code = "import sys, tests.referee_models as m; print(' '.join(m.digests(name, 4, 7) for name in sys.argv[1:]))"
    surroundings = {**os.environ, "PYTHONHASHSEED": "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"}
    command = [sys.executable, "-c", code, *names]
    done = subprocess.run(command, capture_output=True, text=True, env=surroundings, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [digests(name, 4, 7) for name in names]
    assert digests("agreement", 4, 7) != digests("agreement", 4, 8)


def test_a_model_of_another_kind_is_refused() -> None:
    for name in TEXT_TASKS:
        with pytest.raises(NotForThisError, match="language models"):
            TASKS[name].cases(encoder(), 1, 0)
    for name, said in (("similarity", "embeds no text"), ("patches", "no pictures"), ("quadrants", "no pictures")):
        with pytest.raises(NotForThisError, match=said):
            TASKS[name].cases(language(), 1, 0)
    with pytest.raises(NotForThisError, match="no tokenizer"):
        TASKS["facts"].cases(Subject("bare", language().model), 1, 0)


def test_a_tokenizer_that_never_splits_the_answer_off_is_refused() -> None:
    def joined(tokenizer: Any, seed: int) -> Any:
        return iter([Candidate("The capital of Fra", ("nce",))] * 3)

    with pytest.raises(NotForThisError, match="same first token, or joins"):
        TextTask("joined", joined).cases(language(), 1, 0)


@pytest.mark.parametrize("name", ["facts", "indirect_object", "next_token"])
def test_a_fifth_of_the_groups_is_for_development_whatever_the_seed(name: str) -> None:
    asked = language()
    parts: dict[str, set[str]] = {"development": set(), "test": set()}
    for seed in (0, 1):
        for part, found in parts.items():
            made = replace(text_task(name), part=part)._of_part(text_task(name).candidates(asked.processor, seed))
            found |= {each.group or each.key for each in itertools.islice(made, 400)}
    assert not parts["development"] & parts["test"]
    every = {each.group or each.key for each in candidates(name, 2000)}
    assert 0.1 < len(every & parts["development"]) / len(every & (parts["development"] | parts["test"])) < 0.5
    if name != "facts":  # this model knows none
        cases = replace(text_task(name), part="development").cases(asked, 5, 0)
        assert cases and {case.group or case.key for case in cases} <= parts["development"]


# Removed tokens


def test_removed_tokens_become_other_ordinary_tokens() -> None:
    asked, task = language(), replace(text_task("agreement"), draws=3)
    table = asked.model.get_input_embeddings().weight.detach()
    pool = {token for each in candidates("agreement", 300) for token in read(asked.processor, each.text).ids}
    case = task.cases(asked, 1, 0)[0]
    assert isinstance(case.value, NextToken)
    drawn = task.replacements(asked, case, 0)["token"]
    rows = [[int((table == row).all(1).nonzero()[0]) for row in each[0]] for each in drawn]
    assert len(rows) == 3 and len({tuple(row) for row in rows}) == 3
    for row in rows:
        assert all(new != own for new, own in zip(row, case.inputs["input_ids"][0].tolist(), strict=True))
        assert len({*row}) == len(row), "each position another"
        assert {*row} <= pool - {*case.value.right, *case.value.wrong} - {*asked.processor.all_special_ids}
    again = task.replacements(asked, case, 0)["token"]
    assert all(torch.equal(a, b) for a, b in zip(drawn, again, strict=True))
    assert not torch.equal(drawn[0], task.replacements(asked, case, 1)["token"][0])


def test_special_tokens_stay_and_the_shared_word_is_not_drawn() -> None:
    asked, task = encoder(), Similarity()
    table = asked.model.get_input_embeddings().weight.detach()
    for case in task.cases(asked, 20, 0):
        assert case.spared.tolist() == [True, *[False] * (len(case.labels) - 2), True]
        for each in task.replacements(asked, case, 0)["token"]:
            row = torch.tensor([int((table == one).all(1).nonzero()[0]) for one in each[0]])
            own = case.inputs["input_ids"][0]
            assert torch.equal(row == own, case.spared)
            assert case.gold is not None and not {*row.tolist()} & {*own[case.gold].tolist()}


def test_tokens_are_drawn_again_when_all_are_used() -> None:
    asked = language()
    texts = ["the old key is near the old tree near the red key"]
    task = next_token(texts, tokens=10)
    (case,) = task.cases(asked, 1, 0)
    assert len(read(asked.processor, texts[0]).ordinary) < 10
    own = asked.leaf(case)
    for each in task.replacements(asked, case, 0)["token"]:
        assert bool((each != own).any(-1).all())


def test_texts_without_other_tokens_are_refused() -> None:
    case = TASKS["agreement"].cases(language(), 1, 0)[0]
    with pytest.raises(InputError, match="have 1 tokens besides the answers.*give more texts"):
        TokenDraws(frozenset({5, 6}), frozenset({6}), 3, 0).of(case, 0)


def test_zero_and_mean_have_the_shape_of_the_leaf() -> None:
    asked, task = language(), text_task("agreement")
    case = task.cases(asked, 1, 0)[0]
    found = task.replacements(asked, case, 0)
    assert list(found) == ["token", "zero", "mean"]
    assert {tuple(each.shape) for draws in found.values() for each in draws} == {tuple(asked.leaf(case).shape)}
    assert not any(each.requires_grad for draws in found.values() for each in draws) and not found["zero"][0].any()
    mean = asked.model.get_input_embeddings().weight.detach().mean(0)
    torch.testing.assert_close(found["mean"][0][0, 3], mean, rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mean_of_gemma_is_scaled_as_its_embeddings_are(dtype: torch.dtype) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 16}
    torch.manual_seed(0)
    model = Gemma3ForCausalLM(Gemma3TextConfig(vocab_size=9000, num_key_value_heads=1, **sizes)).to(dtype).eval()
    weight = model.get_input_embeddings().weight.detach()
    scale = float(lxt_fx.embed(model, torch.tensor([[5]]))[0, 0, 3] / weight[5, 3])
    assert scale == pytest.approx(math.sqrt(32), rel=1e-2)
    found = mean_embedding(model)
    assert found.dtype == torch.float64 and found is mean_embedding(model)
    mine = torch.stack([lxt_fx.embed(model, torch.tensor([[token]]))[0, 0].detach() for token in range(0, 9000, 1)][:10])
    assert mine.shape == (10, 32)
    expected = (weight * torch.tensor(scale, dtype=dtype)).double().mean(0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-4)
    with torch.no_grad():
        weight.add_(1)
    assert mean_embedding(model) is not found, "the weights changed"


# Files


GOOD_FILES: dict[str, tuple[str, str]] = {
    "facts": (
        "facts.json",
        json.dumps([{"known_id": 3, "subject": "France", "attribute": "Paris", "prompt": "The capital of France is"}]),
    ),
    "indirect_object": (
        "ioi.json",
        json.dumps([{"case_id": 8, "prompt": "When Mary and John met, John gave a kiwi to", "answer": "Mary"}]),
    ),
    "answer_span": (
        "squad.json",
        json.dumps(
            [{"id": "x1", "question": "Who? ", "answer": "rollo", "answer_span": [7, 12], "context": "Before Rollo came"}]
        ),
    ),
    "greater_than": (
        "years.csv",
        "clean,corrupted,label\nThe plan lasted from 1402 to 14,The plan lasted from 1401 to 14,2\n",
    ),
}
READ: dict[str, tuple[str, tuple[str, ...], str, str]] = {
    "facts": ("The capital of France is", (" Paris",), "France", "known-3"),
    "indirect_object": ("When Mary and John met, John gave a kiwi to", (" Mary",), "Mary", "ioi-8"),
    "answer_span": ("Before Rollo came\nQuestion: Who?\nAnswer:", (" Rollo",), "Rollo", "squad-x1"),
    "greater_than": ("The plan lasted from 1402 to 14", tuple(f"{year:02}" for year in range(3, 100)), "0", "greater-2"),
}


@pytest.mark.parametrize("name", sorted(GOOD_FILES))
def test_public_data_is_read_by_its_path(name: str, tmp_path: Path) -> None:
    file, written = GOOD_FILES[name]
    path = tmp_path / file
    path.write_text(written, encoding="utf-8")
    task = FROM_PATH[name](path)
    assert isinstance(task, TextTask) and task.name == name
    (found,) = task.candidates(tokenizer_of("byte"), 0)
    assert (found.text, found.right, gold_words(found)[0], found.key) == READ[name]
    assert found.wrong == {"indirect_object": (" John",), "greater_than": ("00", "01", "02")}.get(name, ())


BAD_FILES: list[tuple[str, str, str, str]] = [
    ("facts", '"subject": "France"', '"subject": "Spain"', "entry 0: the field 'subject' is 'Spain'"),
    ("facts", '"subject"', '"subjekt"', "entry 0: the field 'subject' is missing"),
    ("facts", '"Paris"', "7", "entry 0: the field 'attribute' must be a text"),
    ("facts", ": 3", ": -3", "entry 0: the field 'known_id' must be a whole number"),
    ("facts", "[{", "{", "line 1: this is no JSON"),
    ("indirect_object", '"answer": "Mary"', '"answer": "Ann"', "entry 0: the field 'answer' is 'Ann'"),
    ("indirect_object", "John gave", "Bob gave", "entry 0: the field 'prompt' must name one person twice"),
    ("answer_span", "[7, 12]", "[7, 99]", r"entry 0: the field 'answer_span' must be \[begin, end\]"),
    ("answer_span", "[7, 12]", "[6, 12]", "the field 'answer_span' .* is ' Rollo'"),
    ("answer_span", "[7, 12]", "7", "entry 0: the field 'answer_span' must be"),
    ("greater_than", ",2\n", ",x\n", "line 2: the field 'label' must be a whole number"),
    ("greater_than", ",2\n", ",3\n", "line 2: the year 1403"),
    ("greater_than", "to 14,", "to 15,", "line 2: the year 1502"),
    ("greater_than", ",2\n", "\n", "line 2: there are 2 fields and 3 names"),
    ("greater_than", "clean", "clear", "line 2: the field 'clean' is missing"),
]


@pytest.mark.parametrize(("name", "before", "now", "said"), BAD_FILES)
def test_a_bad_file_says_where(name: str, before: str, now: str, said: str, tmp_path: Path) -> None:
    file, written = GOOD_FILES[name]
    assert before in written
    (tmp_path / file).write_text(written.replace(before, now, 1), encoding="utf-8")
    with pytest.raises(InputError, match=said):
        FROM_PATH[name](tmp_path / file)


@pytest.mark.parametrize("written", ["[]", '{"a": 1}', '["a"]'])
def test_a_file_must_be_a_list_of_objects(written: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(written)
    with pytest.raises(InputError, match="list of objects|must be an object"):
        FROM_PATH["facts"](tmp_path / "a.json")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none.json cannot be read"):
        FROM_PATH["facts"](tmp_path / "none.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="no UTF-8"):
        FROM_PATH["facts"](tmp_path / "bytes.json")


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_texts_are_read_by_line(suffix: str, tmp_path: Path) -> None:
    texts = ["The old key is near the red tree and the lake", "A doctor near the river opened the window of the car"]
    path = tmp_path / f"texts{suffix}"
    path.write_text(
        "\n".join(texts) + "\n\nshort\n"
        if suffix == ".txt"
        else f"{json.dumps(texts[0])}\n\n{json.dumps({'text': texts[1], 'title': 'x'})}\n",
        encoding="utf-8",
    )
    task = next_token(path, tokens=6)
    assert sorted(each.text for each in task.candidates(tokenizer_of("byte"), 0)) == sorted(texts)
    assert {case.inputs["input_ids"].shape[1] for case in task.cases(language(), 5, 0)} == {6}


@pytest.mark.parametrize("line", ["{", "[1]", '{"texts": "a"}', '""'])
def test_a_bad_line_of_texts_is_named(line: str, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text(f'"a text"\n{line}\n')
    with pytest.raises(InputError, match="line 2"):
        next_token(tmp_path / "texts.jsonl")


def test_texts_must_be_texts() -> None:
    for given in ([], [""], [3]):
        with pytest.raises(InputError, match="texts that are not empty"):
            next_token(given)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="from 4 to 100"):
        next_token(tokens=3)


@pytest.mark.parametrize(
    "task, kind", [("indirect_object", "byte"), ("greater_than", "byte"), ("greater_than", "sentence")]
)
def test_pairs_for_circuits_differ_in_one_word_and_have_one_length(task: Any, kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    found = patching_pairs(task, tokenizer, 6, seed=3)
    assert len({pair.texts for pair in found}) == 6
    for pair in found:
        clean, corrupted = (text.split() for text in pair.texts)
        changed = [(one, other) for one, other in zip(clean, corrupted, strict=True) if one != other]
        assert len(changed) == 1 and pair.clean.shape == pair.corrupted.shape
        assert torch.equal(pair.clean[0], torch.tensor(read_prompt(tokenizer, pair.texts[0]).ids))
        assert torch.equal(pair.corrupted[0], torch.tensor(read_prompt(tokenizer, pair.texts[1]).ids))
        ((one, other),) = changed
        if task == "greater_than":
            assert re.search(r"\d\d01", other) and re.sub(r"\d\d(?=\D*$)", "01", one) == other
        else:
            subject, asked = (re.sub(r"\W", "", name) for name in (one, other))
            assert pair.texts[0].count(subject) == 2 and pair.texts[1].count(asked) == 2
    assert [pair.texts for pair in patching_pairs(task, tokenizer, 3, seed=3)] == [pair.texts for pair in found[:3]]


def test_pairs_that_there_are_not_are_refused() -> None:
    with pytest.raises(InputError, match="task must be one of"):
        patching_pairs("facts", tokenizer_of("byte"), 1)  # type: ignore[arg-type]
