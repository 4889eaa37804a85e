"""Pairs of prompts for circuits: a prompt of a task, and the same with a word replaced so that it has another answer."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.referee.tasks.candidate import Candidate
from lxt_fx.referee.tasks.greater_than import greater_than
from lxt_fx.referee.tasks.indirect_object import indirect_object
from lxt_fx.referee.tasks.reading import read_prompt
from lxt_fx.referee.tasks.text_task import NextToken, TextTask, ask

TRIED = 64
"""So many prompts are read for each pair that is asked for."""


@dataclass(frozen=True, slots=True, eq=False)
class PatchingPair:
    """Two prompts with the same number of tokens. `clean` and `corrupted` are their ids, [1, tokens]; `target` is the
    number of the output that is large in the clean run. Pairs with one `group` ask about the same."""

    clean: Tensor
    corrupted: Tensor
    target: NextToken
    texts: tuple[str, str]
    group: str


def patching_pairs(
    task: Literal["indirect_object", "greater_than"],
    tokenizer: Any,
    count: int,
    seed: int = 0,
    path: str | Path | None = None,
) -> list[PatchingPair]:
    """The first `count` pairs of a task that this tokenizer writes with one number of tokens, no two of them equal.

    `indirect_object`: "Mary and John ... John gave a drink to" becomes "... Mary gave a drink to", so that the answer is
    the other of both people, and every name stands in both (Wang et al. 2022). `greater_than`: the year 1732 becomes 1701,
    after which nearly every year is right (Hanna et al. 2023). `path` is a file of prompts as the tasks take it.

    Raises InputError for another task, and where too few prompts are written so.
    """
    if task not in _TASKS:
        raise InputError(f"patching_pairs: task must be one of {', '.join(_TASKS)}, got {task!r}")
    make, corrupted = _TASKS[task]
    candidates = itertools.islice(make(path).candidates(tokenizer, seed), TRIED * count)
    found = list(itertools.islice(_pairs(tokenizer, candidates, corrupted), count))
    if len(found) < count:
        raise InputError(
            f"patching_pairs: {type(tokenizer).__name__} writes {len(found)} of {count} pairs of {task} with one number of "
            "tokens; ask for fewer, or give another tokenizer"
        )
    return found


def _pairs(
    tokenizer: Any, candidates: Iterator[Candidate], corrupted: Callable[[Candidate], str]
) -> Iterator[PatchingPair]:
    for candidate in candidates:
        asked, text = ask(tokenizer, candidate), corrupted(candidate)
        if asked is None or asked.value is None or text == candidate.text:
            continue
        other = read_prompt(tokenizer, text)
        if len(other.ids) == len(asked.prompt.ids) and other.ids != asked.prompt.ids:
            clean, twin = (torch.tensor([one.ids]) for one in (asked.prompt, other))
            yield PatchingPair(clean, twin, asked.value, (candidate.text, text), candidate.group)


def _other_giver(candidate: Candidate) -> str:
    """The second mention of the subject becomes the indirect object."""
    asked, subject = candidate.right[0].strip(), candidate.wrong[0].strip()
    before, _, after = candidate.text.rpartition(subject)
    return f"{before}{asked}{after}"


def _first_year(candidate: Candidate) -> str:
    """The year becomes the first one of its century."""
    start = candidate.gold[0][0]
    return f"{candidate.text[:start]}01{candidate.text[start + 2 :]}"


_TASKS: Mapping[str, tuple[Callable[[str | Path | None], TextTask], Callable[[Candidate], str]]] = {
    "indirect_object": (indirect_object, _other_giver),
    "greater_than": (greater_than, _first_year),
}
