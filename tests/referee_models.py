"""Tiny subjects for the tests of the referee, whose tokenizers have read its templates, and the cases of a task as text."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from lxt_fx.referee.case import Case, Subject
from lxt_fx.referee.subjects import subject
from lxt_fx.referee.tasks import TASKS
from lxt_fx.referee.tasks.candidate import Candidate
from lxt_fx.referee.tasks.similarity import pairs
from lxt_fx.referee.tasks.text_task import TextTask
from tests.tiny_text import SENTENCES, bert, byte_tokenizer, llama, sentence_tokenizer, word_tokenizer

SPECIAL_WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

TEXT_TASKS = [name for name, task in TASKS.items() if isinstance(task, TextTask)]


def text_task(name: str) -> TextTask:
    """The task of this name, which is one of text."""
    task = TASKS[name]
    assert isinstance(task, TextTask)
    return task


def candidates(name: str, count: int, seed: int = 0, tokenizer: Any = None) -> list[Candidate]:
    """The first candidates of a task."""
    return list(itertools.islice(text_task(name).candidates(tokenizer or tokenizer_of("byte"), seed), count))


@cache
def texts() -> tuple[str, ...]:
    """Texts of the tasks, without digits: a tokenizer that has learned them writes one digit as one token."""
    read = [each for name in TEXT_TASKS for each in itertools.islice(text_task(name).candidates(byte_tokenizer(), 0), 60)]
    found = [each.text + "".join(each.right + each.wrong) for each in read]
    found += [text for pair in itertools.islice(pairs(0), 60) for text in (pair.candidate.text, pair.other)]
    return tuple(re.sub(r"\d", "", text) for text in [*SENTENCES, *found])


@cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer that knows words of the tasks: byte-level BPE ("byte"), WordPiece with [CLS] and [SEP] ("word"), BPE with
    `▁` and `<s>` ("sentence")."""
    if kind == "byte":
        return byte_tokenizer(texts(), 2500)
    if kind == "sentence":
        made = sentence_tokenizer(texts()[::4], 900)
        special = [("<s>", made.bos_token_id)]
        made.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=special)
        return made
    made = word_tokenizer()
    state = json.loads(made.backend_tokenizer.to_str())
    known = sorted({word for text in texts() for word in re.findall(r"\w+|[^\w\s]", text.lower())} | {*"0123456789"})
    # The trainer of WordPiece numbers its tokens in another order in each process.
    state["model"]["vocab"] = {token: number for number, token in enumerate([*SPECIAL_WORDS, *known])}
    names = {f"{name.strip('[]').lower()}_token": name for name in SPECIAL_WORDS}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), **names)


@cache
def language() -> Subject:
    """A random Llama of one layer."""
    tokenizer = tokenizer_of("byte")
    return subject(llama(len(tokenizer)), tokenizer, name="tiny llama")


@cache
def encoder() -> Subject:
    """A random BERT of one layer without a head."""
    tokenizer = tokenizer_of("word")
    return subject(bert("bare", len(tokenizer)), tokenizer, name="tiny bert")


def digest(found: list[Case], replaced: list[dict[str, Any]]) -> str:
    """What a process may say of cases and replacements: names, inputs, gold and all random tokens."""
    said = hashlib.sha256()
    for case, names in zip(found, replaced, strict=True):
        tensors = [*case.inputs.values(), case.spared, *([] if case.gold is None else [case.gold]), *names["token"]]
        said.update(f"{case.key} {case.said} {case.labels}".encode())
        for tensor in tensors:
            said.update(str(torch.as_tensor(tensor).double().flatten().tolist()).encode())
    return said.hexdigest()


def digests(name: str, count: int, seed: int) -> str:
    """The digest of a task's first cases for the tiny subject of its kind."""
    asked = encoder() if name == "similarity" else language()
    found = list(TASKS[name].cases(asked, count, seed))
    return digest(found, [dict(TASKS[name].replacements(asked, case, seed)) for case in found])
