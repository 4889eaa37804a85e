"""What else a model could have said: the entries with the largest logits where the explained number was read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lxt_fx.attribution.readable_tokens import readable_tokens
from lxt_fx.attribution.target import Target
from lxt_fx.attribution.target_entry import Reading
from lxt_fx.base.errors import CallError
from lxt_fx.base.progress import stage
from lxt_fx.explorer.plain import Payload
from lxt_fx.inputs.facts import Facts
from lxt_fx.inputs.given import Given
from lxt_fx.inputs.places import TextPlace
from lxt_fx.tasks.asked import Asked
from lxt_fx.tasks.explained_call import flat_inputs
from lxt_fx.tasks.task import Context
from lxt_fx.tasks.token_logits import TokenLogits

CANDIDATES = 10
"""How many next tokens, or classes, are listed with each result."""


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """The logits of all tokens or classes, float64 on the CPU."""

    logits: Tensor
    of_tokens: bool

    def best(self) -> list[int]:
        """The entries with the largest ones, the largest first."""
        found: list[int] = self.logits.topk(min(CANDIDATES, len(self.logits))).indices.tolist()
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Reads logits of next tokens, tokens for a mask, or classes."""

    facts: Facts
    reading: Reading
    tokenizer: Any

    def scores(self, model: nn.Module, given: Given, target: Target) -> Scores | None:
        """Those of a model for one example. None of a model with a decoder of its own, or one that tags, has no logits, or
        boxes or pixels behind them. Raises InputError for a position that the text does not have."""
        if self.facts.decodes or self.reading.tags or self.reading.positions is not None:
            return None
        with torch.no_grad(), stage("candidates"):
            output = model(**given.inputs)
        logits = output.get("logits") if hasattr(output, "get") else None
        if not isinstance(logits, Tensor) or len(logits) != 1:
            return None
        if logits.dim() == 2:
            return Scores(logits[0].double().cpu(), False)
        ids = given.inputs.get("input_ids")
        if logits.dim() != 3 or not isinstance(ids, Tensor) or logits.shape[1] != ids.shape[-1]:
            return None
        context = Context(self.reading, self.facts.config, flat_inputs(given.inputs), self.tokenizer)
        asked = Asked(spot=None if target.position is None else int(target.position))
        spot = TokenLogits("candidates").spot(asked, 0, given.examples[0], context)
        return Scores(logits[spot.row, spot.place(logits.shape[1], context)].double().cpu(), True)

    def predict_next(self, model: nn.Module, given: Given) -> bool:
        """Whether the logits at each token of a text can predict the next one: they are the same to the bit with another
        last token. False where that cannot be seen: of a single token, and of a graph that is made for other values."""
        text = text_of(given)
        if not self.reading.predicts_next or text is None or len(text.columns) < 2:
            return False
        *before, last = text.columns
        ids: Tensor = given.inputs["input_ids"].clone()
        no_others = {int(ids[0, last]), *self.facts.placeholders()}
        tokens = [*reversed(ids[0, before].tolist()), *range(len(no_others) + 1)]
        ids[0, last] = next(token for token in tokens if token not in no_others)
        try:
            with torch.no_grad(), stage("candidates"):
                own, other = model(**given.inputs)["logits"], model(**{**given.inputs, "input_ids": ids})["logits"]
        except CallError:
            return False
        return torch.equal(own[0, before], other[0, before])

    def listed(self, scores: Scores | None, entries: Sequence[int]) -> list[Payload]:
        """These entries with logit and probability, the largest first. A token that the model rules out has -inf, and is
        left out."""
        if scores is None:
            return []
        shares = scores.logits.softmax(0)
        ordered = sorted(entries, key=lambda entry: -float(scores.logits[entry]))
        return [
            {
                "token": self._name(entry, scores.of_tokens), "id": entry, "logit": float(scores.logits[entry]),
                "probability": float(shares[entry]),
            }
            for entry in ordered if math.isfinite(scores.logits[entry]) and math.isfinite(shares[entry])
        ]  # fmt: skip

    def _name(self, entry: int, of_tokens: bool) -> str:
        if of_tokens:
            return readable_tokens(self.tokenizer, [entry])[0]
        labels = self.reading.labels
        return labels[entry] if entry < len(labels) else str(entry)


def text_of(given: Given) -> TextPlace | None:
    """The text that a model reads; None where it reads none."""
    return next((place for place in given.examples[0].places if isinstance(place, TextPlace)), None)
