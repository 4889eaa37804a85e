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
from lxt_fx.base.progress import stage
from lxt_fx.explorer.plain import Payload
from lxt_fx.inputs.facts import Facts
from lxt_fx.inputs.given import Given
from lxt_fx.inputs.places import TextPlace

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
        boxes or pixels behind them."""
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
        at = self._position(ids[0].tolist(), given, target)
        return None if at is None else Scores(logits[0, at].double().cpu(), True)

    def _position(self, ids: list[int], given: Given, target: Target) -> int | None:
        """Where in the logits the target is read. A position counts the tokens of the text that are shown: none of those
        that stand for a picture."""
        if target.position is not None:
            at, text = int(target.position), text_of(given)
            columns = range(len(ids)) if text is None else text.columns
            return columns[at] if -len(columns) <= at < len(columns) else None
        if self.reading.predicts_next:
            return -1
        mask = getattr(self.tokenizer, "mask_token_id", None)
        return ids.index(mask) if mask in ids else None

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
