"""Answers as people have them: texts, token ids, or what `generate` returned, with or without the prompt in front."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lxt_fx.attribution.target import Target
from lxt_fx.base.errors import InputError

Answer = str | list[int]
"""One answer: a text, or token ids."""


@dataclass(frozen=True, slots=True)
class Answers:
    """One answer for each prompt. `generated` says that they are a whole output of `generate`, so that a model without a
    decoder of its own has written each behind its prompt. Errors call an answer by its `name`."""

    each: tuple[Answer, ...]
    generated: bool
    name: str
    function: str

    def behind(self, prompts: Sequence[Sequence[int]], own: Sequence[Sequence[int]], pads: frozenset[int],
               with_prompt: bool | None) -> Answers:  # fmt: skip
        """The answers without the prompts that stand before them. `prompts` are the ids of the prompts with their padding,
        `own` without. Ids are prompt and answer if all of them start with their prompts and go on; a text is the answer
        alone.

        Raises InputError where only some do, or none although they must.
        """
        told = self.generated if with_prompt is None else with_prompt
        if with_prompt is False:
            return self
        ids = [index for index, answer in enumerate(self.each) if not isinstance(answer, str)]
        if with_prompt and len(ids) < len(self.each):
            raise InputError(
                f"{self.function}: with_prompt=True is for token ids, and the {self.name} is a text, which is always the "
                f"{self.name} alone; give the ids that generate() returned"
            )
        rests = {index: _rest(list(self.each[index]), prompts[index], own[index], pads) for index in ids}  # type: ignore[arg-type]
        for index in (index for index in ids if rests[index] is None):
            rests[index] = self._behind_padding(index, prompts[index], own[index], pads, told)
        missing = [index for index in ids if rests[index] is None]
        if missing and told:
            raise InputError(
                f"{self.function}: {self.name} {missing[0]} does not start with its prompt, although "
                f"{'with_prompt=True says so' if with_prompt else 'generate() returns prompt and answer'}; give the prompt "
                "that was generated from, or with_prompt=False if these are the new tokens alone"
            )
        if missing and len(missing) < len(ids):
            starting = next(index for index in ids if index not in missing)
            raise InputError(
                f"{self.function}: {self.name} {starting} starts with its prompt and {self.name} {missing[0]} does not, so "
                "it is not clear whether the prompts are part of them; say with_prompt=True or with_prompt=False"
            )
        if missing:
            return self
        cut = tuple(
            answer if isinstance(answer, str) else rests[index] or [] for index, answer in enumerate(self.each)
        )
        return Answers(cut, self.generated, self.name, self.function)

    def _behind_padding(self, index: int, prompt: Sequence[int], own: Sequence[int], pads: frozenset[int],
                        told: bool) -> list[int] | None:  # fmt: skip
        """What stands behind the prompt, if before it stands one token over and over, which may be padding that neither the
        tokenizer nor the config names. Raises InputError where nobody said that the prompt is in it."""
        ids = list(self.each[index])
        found = _rest(ids, prompt, own, pads | set(ids[:1]))  # type: ignore[arg-type]
        if found is None or told:
            return found
        raise InputError(
            f"{self.function}: {self.name} {index} has its prompt in it, behind "
            f"{len(ids) - len(found) - len(own)} tokens {ids[0]}, which no one names as padding; say with_prompt=True if "
            f"they are padding, or with_prompt=False if all of it is the {self.name}"
        )

    def encoded(self, encode: Callable[[str], Sequence[int]] | None) -> Answers:
        """The answers with the tokens of those that are texts. Raises InputError if these need a tokenizer."""
        if encode is None and any(isinstance(answer, str) for answer in self.each):
            raise InputError(
                f"{self.function}: the {self.name} is a text, which needs the tokenizer to be read as tokens; give it as "
                "the second argument, or token ids"
            )
        found = tuple(
            [int(token) for token in encode(answer)] if encode is not None and isinstance(answer, str) else answer
            for answer in self.each
        )
        return Answers(found, self.generated, self.name, self.function)

    def check_texts(self, prompts: Sequence[str | None]) -> None:
        """Raises InputError for a text that starts with the text of its prompt: it may be prompt and answer, decoded."""
        for prompt, answer in zip(prompts, self.each, strict=True):
            if isinstance(answer, str) and prompt and prompt.strip() and answer.lstrip().startswith(prompt.strip()):
                raise InputError(
                    f"{self.function}: the {self.name} {answer[:60]!r} starts with its prompt, which would count twice "
                    "if it is the whole text that the model wrote; give the ids that generate() returned, or "
                    f"with_prompt=False if the {self.name} repeats the prompt"
                )

    @property
    def ids(self) -> list[list[int]]:
        """The tokens of the answers, none of which is a text any more."""
        return [list(answer) for answer in self.each if not isinstance(answer, str)]

    def ended(self, pads: frozenset[int], ends: frozenset[int]) -> Answers:
        """Ids without what fills a batch up behind the end of an answer. The first end-of-text token is the answer's own,
        because the model has said it; so is a single token."""
        return Answers(tuple(a if isinstance(a, str) else _ended(a, pads, ends) for a in self.each),
                       self.generated, self.name, self.function)  # fmt: skip

    def checked(self, vocabulary: int | None, model_class: str, pictures: frozenset[int]) -> Answers:
        """The same. Raises InputError for no tokens, one that the model does not have, or one that stands for a picture."""
        for index, answer in enumerate(self.each):
            which = f"{self.name} {index}" if len(self.each) > 1 else f"the {self.name}"
            if len(answer) == 0:
                raise InputError(f"{self.function}: {which} needs at least one token, and has none; give one that has some")
            for at, token in enumerate(answer if not isinstance(answer, str) else ()):
                if vocabulary is not None and not 0 <= token < vocabulary:
                    raise InputError(
                        f"{self.function}: token {at} of {which} is {token}, outside the vocabulary of {model_class}, "
                        f"which has {vocabulary} tokens (0 to {vocabulary - 1}); do model and tokenizer belong together?"
                    )
                if token in pictures:
                    raise InputError(
                        f"{self.function}: token {at} of {which} is {token}, which stands for a picture; if this is prompt "
                        "and answer, give the prompt that it was generated from"
                    )
        return self


def answers_of(given: Any, prompts: int, batched: bool, function: str, name: str = "answer") -> Answers:
    """One answer for each of so many prompts, from what a person has.

    Raises InputError for another number of answers, and for what is none.
    """
    plain, generated = _plain(given)
    items = _listed(plain, prompts, batched, function, name)
    return Answers(tuple(_one(item, function, name) for item in items), generated, name, function)


def _plain(given: Any) -> tuple[Any, bool]:
    """Without the object that `generate` or a tokenizer put around it; and whether that was `generate`."""
    sequences = given.get("sequences") if isinstance(given, Mapping) else getattr(given, "sequences", None)
    if sequences is not None:
        return sequences, True
    if not isinstance(given, Mapping) or "input_ids" not in given:
        return given, False
    ids, mask = given["input_ids"], given.get("attention_mask")
    if mask is None:
        return ids, False
    rows, real = torch.as_tensor(ids), torch.as_tensor(mask).bool()
    return (rows[real], False) if rows.dim() == 1 else ([row[own] for row, own in zip(rows, real, strict=True)], False)


def _listed(given: Any, prompts: int, batched: bool, function: str, name: str) -> list[Any]:
    if isinstance(given, (Target, tuple)) or callable(given) or given is None or isinstance(given, Mapping):
        raise InputError(
            f"{function}: the {name} is a text or token ids, or what generate() returned, got {given!r}; each of its "
            "tokens is explained (contrast=... subtracts another token; lxt_fx.relevance_of takes targets of other kinds)"
        )
    rows = isinstance(given, list) and any(_is_row(item) for item in given)
    if not batched:
        if rows and len(given) != 1:
            raise InputError(
                f"{function}: there is one prompt and there are {len(given)} {name}s; one {name} of at least one token is "
                f"explained at a time: give the prompt as often, [prompt] * {len(given)}"
            )
        return list(given) if rows else [given]
    items = list(given) if rows or not isinstance(given, str) and getattr(given, "ndim", 1) != 0 else [given]
    if len(items) != prompts:
        raise InputError(
            f"{function}: there {'is 1 prompt' if prompts == 1 else f'are {prompts} prompts'} and {_count(items, name)}; "
            f"give one {name} for each prompt, in a list (for several to one prompt give the prompt as often)"
        )
    return items


def _is_row(item: Any) -> bool:
    return isinstance(item, (str, list, tuple)) or getattr(item, "ndim", 0) > 0


def _count(items: Sequence[Any], name: str) -> str:
    return f"1 {name}" if len(items) == 1 else f"{len(items)} {name}s"


def _one(item: Any, function: str, name: str) -> Answer:
    if isinstance(item, str):
        return item
    try:
        ids = torch.as_tensor(item)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{function}: the {name} must be a string or token ids, got {item!r} ({error})") from error
    if ids.dtype == torch.bool or ids.is_floating_point() and ids.numel():
        raise InputError(f"{function}: the {name} must be a string or token ids, got values of {ids.dtype}")
    if ids.dim() > 2 or ids.dim() == 2 and len(ids) != 1:
        raise InputError(
            f"{function}: one {name} of at least one token is explained, got {list(ids.shape)} token ids; for several give "
            "as many prompts"
        )
    return [int(token) for token in ids.flatten().tolist()]


def _rest(ids: list[int], prompt: Sequence[int], own: Sequence[int], pads: frozenset[int]) -> list[int] | None:
    """What stands behind the prompt, which may have more padding before it than was given; None if it does not stand
    first, or nothing is behind it."""
    if ids[: len(prompt)] == list(prompt) and len(ids) > len(prompt):
        return ids[len(prompt) :]
    padding = next((at for at, token in enumerate(ids) if token not in pads), len(ids))
    for start in range(padding + 1):
        stop = start + len(own)
        if ids[start:stop] == list(own) and len(ids) > stop:
            return ids[stop:]
    return None


def _ended(ids: list[int], pads: frozenset[int], ends: frozenset[int]) -> list[int]:
    start = len(ids)
    while start > 0 and ids[start - 1] in pads | ends:
        start -= 1
    filler = ids[start:]
    end = next((at for at, token in enumerate(filler) if token in ends), None)
    return ids if len(ids) == 1 else ids[: start + (0 if end is None else end + 1)]


def fillers_of(model: Any, tokenizer: Any) -> tuple[frozenset[int], frozenset[int]]:
    """The ids that `generate` fills a batch up with, and those that end a text: what tokenizer, generation config and
    config name."""
    config, generation = getattr(model, "config", None), getattr(model, "generation_config", None)
    get = getattr(config, "get_text_config", None)
    named = (tokenizer, generation, config, get() if callable(get) else None)
    pads, ends = (_ids(named, name) for name in ("pad_token_id", "eos_token_id"))
    return pads or ends, ends


def _ids(named: Sequence[Any], name: str) -> frozenset[int]:
    found: set[int] = set()
    for each in named:
        value = getattr(each, name, None)
        found.update(token for token in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(token, int))
    return frozenset(found)


def contrasts_of(given: Any, answers: Sequence[Sequence[int]], batched: bool, function: str) -> Answers:
    """The contrast of each answer, from what a person has: one for all, or one for each of a batch."""
    alone = isinstance(given, str) or not isinstance(given, (list, Tensor)) and not getattr(given, "ndim", 0)
    if batched and alone and not isinstance(given, Mapping) and getattr(given, "sequences", None) is None:
        one = answers_of(given, 1, False, function, "contrast")
        return Answers(one.each * len(answers), False, "contrast", function)
    return answers_of(given, len(answers), batched, function, "contrast")


def by_token(contrasts: Answers, answers: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """The token that is subtracted from each token of each answer. Raises InputError for another number of tokens."""
    found = []
    for ids, answer in zip(contrasts.each, answers, strict=True):
        if isinstance(ids, str) or len(ids) not in (1, len(answer)):
            raise InputError(
                f"{contrasts.function}: the contrast has {len(ids)} tokens ({ids}) and the answer {len(answer)}; give one "
                "token, which is subtracted at every token of the answer, or as many as the answer has"
            )
        found.append(tuple(ids) * (len(answer) if len(ids) == 1 else 1))
    return found
