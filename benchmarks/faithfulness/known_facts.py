"""Facts that a model answers right, each with the other answers of its relation, and what is said of many of them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich import box
from rich.table import Table
from torch import Tensor, nn

import lxt_fx
from lxt_fx.referee.case import Case, Subject
from lxt_fx.referee.tasks.facts import facts, pairs_by_relation
from lxt_fx.referee.tasks.reading import first_tokens, read_prompt
from lxt_fx.referee.tasks.text_task import NextToken

PART = "development"
"""Nothing here touches the prompts of docs/benchmark.md."""


@dataclass(frozen=True, slots=True, eq=False)
class Fact:
    """A prompt about a subject as ids [1, tokens], the positions of the subject's tokens, and what is explained, by name:
    the logit of the answer, and that less the mean of the other answers of the relation."""

    ids: Tensor
    subject: frozenset[int]
    right: tuple[int, ...]
    values: Mapping[str, NextToken]


def known_facts(subject: Subject, count: int) -> list[Fact]:
    """The first `count` facts that the model answers right, of all relations in turn."""
    task = replace(facts(), part=PART)
    asked = {each.key: each for each in task.candidates(subject.processor, 0)}
    answers = {relation: tuple(dict.fromkeys(a for _, a in pairs)) for relation, pairs in pairs_by_relation().items()}
    relation = {pair: name for name, pairs in pairs_by_relation().items() for pair in pairs}
    found = []
    for case in task.cases(subject, count, 0):
        candidate = asked[case.key]
        answer = candidate.right[0]
        others = [f" {each}" for each in answers[relation[candidate.group, answer.strip()]]]
        found.append(_fact(subject, case, read_prompt(subject.processor, candidate.text), others))
    return found


def _fact(subject: Subject, case: Case, prompt: Any, answers: Sequence[str]) -> Fact:
    assert isinstance(case.value, NextToken) and case.gold is not None
    right = case.value.right
    firsts = [first_tokens(subject.processor, prompt, [answer]) or () for answer in answers]
    wrong = tuple({token for tokens in firsts for token in tokens} - set(right))
    values = {"logit": case.value, "logit less the others'": NextToken(right, wrong)}
    return Fact(case.inputs["input_ids"], frozenset(case.gold.nonzero().flatten().tolist()), right, values)


def with_front(token: int, known: Iterable[Fact]) -> list[Fact]:
    """The prompts with one more token before their first."""
    return [
        replace(each, ids=torch.cat([torch.tensor([[token]]), each.ids], 1), subject=frozenset(p + 1 for p in each.subject))
        for each in known
    ]


def without_front(known: Iterable[Fact]) -> list[Fact]:
    """The prompts without their first token."""
    return [replace(each, ids=each.ids[:, 1:], subject=frozenset(p - 1 for p in each.subject)) for each in known]


@torch.no_grad()
def answered(model: nn.Module, known: Iterable[Fact]) -> int:
    """How many of the prompts the model answers right."""
    tops = ((int(model(input_ids=each.ids, use_cache=False).logits[0, -1].argmax()), each.right) for each in known)
    return sum(top in right for top, right in tops)


def relevance(module: nn.Module, fact: Fact) -> dict[str, Tensor]:
    """By what is explained, relevance by token [tokens]."""
    embedded = lxt_fx.embed(module, fact.ids)
    output = module(inputs_embeds=embedded, use_cache=False)
    found = {}
    for name, value in fact.values.items():
        (gradient,) = torch.autograd.grad(value(output).sum(), embedded, retain_graph=True)
        found[name] = (embedded * gradient).sum(-1)[0].detach()
    return found


def mean_error(numbers: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error."""
    return statistics.fmean(numbers), statistics.stdev(numbers) / len(numbers) ** 0.5


def over_texts(each: Iterable[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """Mean and standard error of each number."""
    listed = list(each)
    return {name: mean_error([numbers[name] for numbers in listed]) for name in listed[0]}


def means_table(title: str, means: Mapping[str, Mapping[str, tuple[float, float]]], digits: int = 2) -> Table:
    """One line for each case, mean ± standard error."""
    table = Table(title=title, box=box.SIMPLE_HEAD)
    table.add_column("")
    for heading in next(iter(means.values())):
        table.add_column(heading, justify="right")
    for case, numbers in means.items():
        table.add_row(case, *(f"{mean:.{digits}f} ± {error:.{digits}f}" for mean, error in numbers.values()))
    return table
