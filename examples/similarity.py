"""The similarity of a sentence to another one as a function of a sentence encoder's output: a target for a ledger, where
the other sentence is held constant. `lxt_fx.explain` with a pair of texts explains both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def encode(model: Any, tokenizer: Any, sentence: str) -> Tensor:
    """The sentence's embedding [hidden], of length 1: the mean of its tokens."""
    mean = model(**tokenizer(sentence, return_tensors="pt")).last_hidden_state[0].mean(dim=0)
    return mean / mean.norm()


def similarity_to(other: Tensor) -> Callable[[Any], Tensor]:
    """The target: the cosine similarity with the embedding `other`."""

    def similarity(output: Any) -> Tensor:
        mean = output.last_hidden_state[0].mean(dim=0)
        # The length is held constant, as LRP does in every norm. By its plain gradient, all relevance would cancel: a
        # longer vector is no more similar.
        return mean @ other / mean.norm().detach()

    return similarity
