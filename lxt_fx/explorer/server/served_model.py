"""The model that is asked: explanations, answers, latent values and candidates, by the public functions of lxt_fx."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lxt_fx.attribution.readable_tokens import readable_tokens
from lxt_fx.attribution.target import Target
from lxt_fx.attribution.target_entry import Reading
from lxt_fx.base.errors import InputError
from lxt_fx.base.progress import stage, steps
from lxt_fx.compiler.explained import Explained
from lxt_fx.explorer.explanation_data import shortened, title_of
from lxt_fx.explorer.latent_data import UnitLabels
from lxt_fx.explorer.page_data import shown_results
from lxt_fx.explorer.plain import Payload
from lxt_fx.explorer.server.asked import MOST_ANSWER, MOST_CHARACTERS, Asked
from lxt_fx.inputs.facts import facts_of
from lxt_fx.inputs.tools import tools_of
from lxt_fx.inside.latent import latent
from lxt_fx.inside.latent_result import Latent
from lxt_fx.results.explanation import Explanation
from lxt_fx.results.readings import TextReading
from lxt_fx.rule_table.table import label_text, ops_text
from lxt_fx.rule_table.tables import TABLES
from lxt_fx.tasks.answers import answer_relevance
from lxt_fx.tasks.explain import explain
from lxt_fx.tasks.reading import opened_with, read

FUNCTION = "serve"

CANDIDATES = 10
"""How many next tokens, or classes, are listed with each result."""


@dataclass(frozen=True, slots=True)
class Answered:
    """The result of a job, and what else the model could have said: the most likely tokens or classes."""

    result: Payload
    candidates: list[Payload]


class ServedModel:
    """A model with its tokenizer. Raises InputError for one that reads no text: what a person types would be taken for the
    path of a file."""

    def __init__(self, model: nn.Module | Any, processor: Any, labels: UnitLabels | None = None) -> None:
        self.module, self.processor = opened_with(model, processor, FUNCTION)
        self.labels, self.facts = labels, facts_of(self.module, FUNCTION)
        self.tokenizer = tools_of(self.processor, "", FUNCTION).tokenizer
        if not self.facts.reads_text:
            raise InputError(
                f"{FUNCTION}: {self.facts.model_class} takes no text, it takes {', '.join(self.facts.names)}; explain its "
                "inputs with lxt_fx.explain, and open the result with lxt_fx.explore"
            )
        if self.tokenizer is None:
            raise InputError(f"{FUNCTION}: give the tokenizer of {self.facts.model_class}, which turns texts into tokens")
        if self.facts.in_training:
            raise InputError(f"{FUNCTION}: {self.facts.model_class} is in training mode; call model.eval() first")
        self.reading = Reading.of(FUNCTION, self.module, None)

    def live(self) -> Payload:
        """What the page knows of the model before it asks."""
        asks = ["text"]
        if getattr(self.tokenizer, "chat_template", None) or getattr(self.processor, "chat_template", None):
            asks.append("chat")
        if self._writes():
            asks.append("answer")
        return {
            "model": self._name(),
            "tables": [{"name": table.name, "summary": table.summary} for table in TABLES.values()],
            "asks": asks,
            "address": "",
            "limits": {"characters": MOST_CHARACTERS, "answer_tokens": MOST_ANSWER},
        }

    def answer(self, asked: Asked) -> Answered:
        """Explains what was asked. Raises what `explain` raises."""
        explanation, inside = self._of_answer(asked) if asked.answer_tokens else self._of_number(asked)
        (shown,) = shown_results([explanation], inside, self.labels)
        title = title_of(explanation)
        if isinstance(asked.given, list):
            title = shortened(asked.given[-1]["content"])
        return Answered({**shown.data, "title": title}, self._candidates(_prompt_ids(explanation), asked.target))

    def _of_number(self, asked: Asked) -> tuple[Explanation, Latent | None]:
        inside = None
        if asked.latent:
            inside = latent(self.module, asked.given, asked.target, processor=self.processor, rules=asked.rules)
            if not asked.account:
                return inside.explanations[0], inside
        found = explain(
            self.module, self.processor, asked.given, asked.target, rules=asked.rules, account=asked.account
        )
        assert isinstance(found, Explanation), "one input has one explanation"
        return found, inside

    def _of_answer(self, asked: Asked) -> tuple[Explanation, Latent | None]:
        """The explanation of each token that the model writes."""
        if not self._writes():
            raise InputError(f"{FUNCTION}: {self.facts.model_class} goes on with no text, so there is no answer to explain")
        prompt = self._ids(asked)
        answer = self._written(prompt, asked.answer_tokens)
        found = answer_relevance(
            self.module, self.processor, asked.given, answer, with_prompt=False, rules=asked.rules, account=asked.account
        )
        assert isinstance(found, Explanation), "one prompt has one explanation"
        if not asked.latent:
            return found, None
        targets = [Target.at(len(prompt) - 1 + at, token) for at, token in enumerate(answer)]
        inside = latent(self.module, [*prompt, *answer], targets, processor=self.processor, rules=asked.rules)
        return found, inside

    def _ids(self, asked: Asked) -> list[int]:
        """The ids of the text as `explain` reads it."""
        given, _ = read(self.module, self.processor, asked.given, FUNCTION, answer=None, sampling_rate=None)
        ids = given.inputs["input_ids"]
        assert isinstance(ids, Tensor) and len(ids) == 1, "one text"
        return [int(token) for token in ids[0]]

    def _writes(self) -> bool:
        """Whether it goes on with its text: a decoder without an encoder."""
        generates = getattr(self.module, "can_generate", None)
        able = self.reading.model_class.endswith(("ForCausalLM", "LMHeadModel")) if generates is None else generates()
        return bool(able) and self.reading.predicts_next and not self.facts.decodes and self.reading.positions is None

    def _written(self, prompt: list[int], count: int) -> list[int]:
        """What the model writes, the likeliest token each time, up to the first token that ends a text."""
        ends, written = self._ends(), list[int]()
        for token in steps("answer tokens", self._tokens(prompt, count), count):
            written.append(token)
            if token in ends:
                break
        return written[:-1] if len(written) > 1 and written[-1] in ends else written

    def _tokens(self, prompt: list[int], count: int) -> Iterator[int]:
        """The tokens one by one. What the model remembers of the tokens before (its cache) is used where it has one."""
        ids, past = torch.tensor([prompt], device=self.facts.device), None
        cached = not isinstance(self.module, Explained) and all(map(self.facts.takes, ("use_cache", "past_key_values")))
        for _ in range(count):
            more = {"use_cache": True, "past_key_values": past} if cached else {}
            with torch.no_grad():
                output = self.module(input_ids=ids, **more)
            token = int(output["logits"][0, -1].argmax())
            yield token
            following = torch.tensor([[token]], device=self.facts.device)
            past = output.get("past_key_values") if cached else None
            ids = following if past is not None else torch.cat([ids, following], 1)

    def _ends(self) -> set[int]:
        settings = getattr(self.module, "generation_config", None)
        found: set[int] = set()
        for own in (getattr(settings, "eos_token_id", None), getattr(self.tokenizer, "eos_token_id", None)):
            found.update([own] if isinstance(own, int) else own or ())
        return found

    def _candidates(self, prompt: list[int] | None, target: Target) -> list[Payload]:
        """The entries with the largest logits where the number was read: next tokens, tokens for a mask, or classes. None
        of a model with a decoder of its own, or one that tags or has no logits."""
        if prompt is None or self.facts.decodes or self.reading.tags or self.reading.positions is not None:
            return []
        with torch.no_grad(), stage("candidates"):
            output = self.module(input_ids=torch.tensor([prompt], device=self.facts.device))
        logits = output.get("logits") if hasattr(output, "get") else None
        if not isinstance(logits, Tensor):
            return []
        of_tokens = logits.dim() == 3 and logits.shape[1] == len(prompt)
        at = self._position(prompt, target) if of_tokens else None
        if (of_tokens and at is None) or not (of_tokens or logits.dim() == 2):
            return []
        return self._listed(logits[0] if at is None else logits[0, at], of_tokens)

    def _position(self, prompt: list[int], target: Target) -> int | None:
        if target.position is not None:
            return int(target.position)
        if self.reading.predicts_next:
            return -1
        mask = getattr(self.tokenizer, "mask_token_id", None)
        return prompt.index(mask) if mask in prompt else None

    def _listed(self, logits: Tensor, of_tokens: bool) -> list[Payload]:
        logits = logits.double().cpu()
        values, ids = logits.topk(min(CANDIDATES, len(logits)))
        shares = logits.softmax(0)[ids]
        if of_tokens:
            names = [readable_tokens(self.tokenizer, [token])[0] for token in ids.tolist()]
        else:
            labels = self.reading.labels
            names = [labels[i] if i < len(labels) else str(i) for i in ids.tolist()]
        return [
            {"token": name, "id": i, "logit": logit, "probability": share}
            for name, i, logit, share in zip(names, ids.tolist(), values.tolist(), shares.tolist(), strict=True)
            if math.isfinite(logit) and math.isfinite(share)  # a token that the model rules out has -inf
        ]

    def _name(self) -> str:
        checkpoint = str(getattr(self.facts.config, "name_or_path", "") or "")
        name = checkpoint.rstrip("/").rpartition("/")[2]
        return f"{name} ({self.facts.model_class})" if name else self.facts.model_class


def tables() -> Payload:
    """The rule tables with their rules."""
    return {
        "tables": [
            {
                "name": table.name, "summary": table.summary, "paper": table.paper,
                "rules": [[label_text(r), ops_text(r), r.formula, r.source, r.conserves.value] for r in table.rules],
            }
            for table in TABLES.values()
        ]
    }  # fmt: skip


def _prompt_ids(explanation: Explanation) -> list[int] | None:
    """The ids of the only text, without an answer that was appended to it."""
    main = explanation.parts[0].reading
    if len(explanation.parts) > 1 or not isinstance(main, TextReading) or main.ids is None:
        return None
    return list(main.ids[: len(main.ids) - main.answer])
