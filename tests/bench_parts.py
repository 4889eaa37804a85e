"""Small parts of a contest: a net that reads tokens, a task with a known answer, methods and a metric."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lxt_fx.referee.case import Case, Subject
from lxt_fx.referee.contest import Explain, Judged, NotForThisError


class TokenNet(nn.Module):
    """The logits behind the last token of embeddings [n, tokens, 4]: a weighted sum that passes tanh."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embeddings = nn.Embedding(8, 4)
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def forward(self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, scale: float = 1.0) -> Any:
        embeds = self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        weights = torch.arange(1, embeds.shape[1] + 1, device=embeds.device, dtype=embeds.dtype)
        mixed = torch.tanh(self.first((embeds * weights[:, None]).sum(1)))
        return SimpleNamespace(logits=scale * self.second(mixed))


def subject(name: str = "net", seed: int = 0, **more: Any) -> Subject:
    return Subject(name, TokenNet(seed).eval(), **more)


def first_logit(output: Any) -> Tensor:
    """The first logit [n], behind the last token where there are logits of each."""
    logits: Tensor = output.logits
    return logits[:, 0] if logits.dim() == 2 else logits[:, -1, 0]


@dataclass(frozen=True)
class Counting:
    """Cases of random tokens; `most` of them. The last token is gold, the first one spared."""

    name: str = "counting"
    tokens: int = 5
    most: int = 1000

    def cases(self, subject: Subject, count: int, seed: int) -> Sequence[Case]:
        if subject.kind != "language":
            raise NotForThisError(f"{self.name} is for language models")
        return [self.case(number, seed) for number in range(min(count, self.most))]

    def case(self, number: int, seed: int) -> Case:
        random = torch.Generator().manual_seed(1000 * seed + number)
        ids = torch.randint(0, 8, (1, self.tokens), generator=random)
        spared = torch.arange(self.tokens) == 0
        gold = torch.arange(self.tokens) == self.tokens - 1
        labels = tuple(f"t{at}" for at in ids[0].tolist())
        return Case(f"c{number}", {"input_ids": ids}, first_logit, "logit 0", labels, spared, gold)

    def replacements(self, subject: Subject, case: Case, seed: int) -> dict[str, Sequence[Tensor]]:
        return {"zero": [torch.zeros_like(subject.leaf(case))]}


def gradient(model: nn.Module, inputs: Mapping[str, Tensor], value: Callable[[Any], Tensor]) -> Tensor:
    """Input * gradient."""
    leaf = inputs["inputs_embeds"]
    (found,) = torch.autograd.grad(value(model(**inputs)).sum(), leaf)
    return leaf * found


def chance(model: nn.Module, inputs: Mapping[str, Tensor], value: Callable[[Any], Tensor]) -> Tensor:
    """Random relevance, of torch's own generator."""
    return torch.randn(inputs["inputs_embeds"].shape[:2])


@dataclass(frozen=True)
class LastOnly:
    """The last token alone."""

    name: str = "last"

    def prepare(self, subject: Subject) -> Explain:
        return lambda case: (torch.arange(len(case.labels)) == len(case.labels) - 1).double()


@dataclass(frozen=True)
class NeverHere:
    """For no model."""

    name: str = "never"

    def prepare(self, subject: Subject) -> Explain:
        raise NotForThisError("never: a package is missing")


@dataclass(frozen=True)
class NotEven:
    """Refuses cases of even numbers."""

    name: str = "not_even"

    def prepare(self, subject: Subject) -> Explain:
        def explain(case: Case) -> Tensor:
            if int(case.key[1:]) % 2 == 0:
                raise NotForThisError("not_even: the number is even")
            return torch.ones(len(case.labels))

        return explain


@dataclass(frozen=True)
class Drop:
    """By how much the number falls if the most relevant unit is removed."""

    name: str = "drop"
    better: Literal["higher", "lower"] = "higher"

    def of(self, judged: Judged) -> float:
        ranked = judged.relevance.where(judged.answers.removable, torch.full_like(judged.relevance, -torch.inf))
        present = torch.ones(1, len(ranked), dtype=torch.bool)
        present[0, ranked.argmax()] = False
        return judged.answers.whole() - float(judged.answers.numbers(present, "zero"))


@dataclass(frozen=True)
class Gold:
    """Whether the most relevant unit is gold."""

    name: str = "gold"
    better: Literal["higher", "lower"] = "lower"

    def of(self, judged: Judged) -> float:
        if judged.case.gold is None:
            raise NotForThisError("gold: no gold units")
        return float(judged.case.gold[judged.relevance.argmax()])


@dataclass(frozen=True)
class Killing:
    """As `Drop`; kills the process, as `kill -9` does, when `left` in a file has counted down to 0."""

    counter: str
    name: str = "drop"
    better: Literal["higher", "lower"] = "higher"

    def of(self, judged: Judged) -> float:
        path = Path(self.counter)
        left = int(path.read_text()) - 1
        path.write_text(str(left))
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return Drop().of(judged)


METHODS = {"gradient": gradient, "chance": chance, "last": LastOnly()}
counting, drop, gold, last, never = Counting(), Drop(), Gold(), LastOnly(), NeverHere()
