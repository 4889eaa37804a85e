"""The task of next tokens: texts, cut after some tokens, and whatever the model predicts there."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lxt_fx.base.errors import InputError
from lxt_fx.referee.tasks.candidate import Candidate, distinct
from lxt_fx.referee.tasks.filler import sentences
from lxt_fx.referee.tasks.public_files import Entry, text_of
from lxt_fx.referee.tasks.reading import read
from lxt_fx.referee.tasks.text_task import TextTask

SENTENCES = 12
"""Sentences of a text of the project; as long as any cut that is allowed."""

CUTS = (4, 100)

Named = tuple[str, str]
"""A text, and the group that it belongs to, empty for a text alone."""


def next_token(texts: str | Path | Sequence[str] | None = None, tokens: int = 32) -> TextTask:
    """The first `tokens` tokens (4 to 100) of texts, special tokens among them; the number is the logit of the token that
    the model predicts. `texts` are given, or the path of a file: plain with one text a line, or `.jsonl` with a text or an
    object with `text` on each line, and where several are cut from one article, its name in `group`. Without them,
    sentences of the project. Shorter texts are left out. There is no gold.

    Raises InputError for a file of another form; the message names the line.
    """
    least, most = CUTS
    if not isinstance(tokens, int) or isinstance(tokens, bool) or not least <= tokens <= most:
        raise InputError(f"next_token: tokens must be a whole number from {least} to {most}, got {tokens!r}")
    if texts is None:
        return TextTask("next_token", partial(_own, tokens))
    given = _lines(texts) if isinstance(texts, str | Path) else [(each, "") for each in texts]
    if not given or not all(isinstance(each, str) and each.strip() for each, _ in given):
        raise InputError("next_token: give texts that are not empty, or the path of a file with some")
    return TextTask("next_token", partial(_given, given, tokens))


def _own(tokens: int, tokenizer: Any, seed: int) -> Iterator[Candidate]:
    return distinct(_drawn(tokens, random.Random(f"{seed} next_token")))


def _drawn(tokens: int, chance: random.Random) -> Iterator[Candidate]:
    while True:
        yield Candidate(" ".join(itertools.islice(sentences(chance), SENTENCES)), most=tokens)


def _given(texts: list[Named], tokens: int, tokenizer: Any, seed: int) -> Iterator[Candidate]:
    shuffled = list(texts)
    random.Random(f"{seed} next_token").shuffle(shuffled)
    long_enough = (each for each in shuffled if len(read(tokenizer, each[0]).ids) >= tokens)
    return distinct(Candidate(text, most=tokens, group=group) for text, group in long_enough)


def _lines(path: str | Path) -> list[Named]:
    lines = text_of(path).split("\n")
    if Path(path).suffix != ".jsonl":
        return [(line, "") for line in lines if line.strip()]
    return [_text(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def _text(line: str, where: str) -> Named:
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: this is no JSON ({error.msg})") from error
    if isinstance(found, str) and found.strip():
        return found, ""
    if not isinstance(found, dict):
        raise InputError(f"{where}: give a text that is not empty or an object with the field 'text', got {found!r}")
    entry = Entry(found, where)
    return entry.text("text"), entry.text("group") if "group" in found else ""
