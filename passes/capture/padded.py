"""The example with padded texts beside a full one, on which graph and model must agree too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lxt_fx.passes.capture.example import Example, text_config

Padding = Literal["none", "right", "left"]
PADDINGS: tuple[Padding, ...] = ("none", "right", "left")
MOST_PADDED = 2
"""How many tokens of a padded text are padding."""


def padded(model: nn.Module, example: Example, paddings: Sequence[Padding] = PADDINGS) -> Example | None:
    """An example with one text for each of these paddings, made of the texts of the example; the mask is 0 at padding. None
    if the example has inputs that are not texts, or texts of one token."""
    texts = _texts(example)
    if not texts:
        return None
    examples = len(example.kwargs[f"{texts[0]}input_ids"])
    if any(not _has_examples(value, examples) for value in example.kwargs.values()):
        return None
    chosen = torch.arange(len(paddings)) % examples
    values = {name: value[chosen.to(value.device)].clone() for name, value in example.kwargs.items()}
    pad = _pad_token(model)
    for prefix in texts:
        ids, mask = values[f"{prefix}input_ids"], values.get(f"{prefix}attention_mask")
        for place, (padding, count) in enumerate(_padded_places(paddings, ids.shape[1])):
            given = ids[place].clone()
            ids[place] = pad
            if mask is not None and mask.shape == ids.shape:
                mask[place] = 0
            own, left = slice(count, None), slice(count, None) if padding == "left" else slice(None, len(given) - count)
            ids[place, left] = given[own]
            if mask is not None and mask.shape == ids.shape:
                mask[place, left] = 1
    return replace(example, kwargs=values)


def has_texts(example: Example) -> bool:
    """Whether the example has token ids [texts, tokens] of more than one token."""
    return bool(_texts(example))


def _texts(example: Example) -> list[str]:
    return [prefix for prefix in ("", "decoder_") if _is_text(example.kwargs.get(f"{prefix}input_ids"))]


def with_masks_of_ones(example: Example) -> Example:
    """The example with no token masked."""
    ones = {name: torch.ones_like(value) for name, value in example.kwargs.items() if name.endswith("attention_mask")}
    return replace(example, kwargs=example.kwargs | ones)


def _padded_places(paddings: Sequence[Padding], tokens: int) -> Iterator[tuple[Padding, int]]:
    for padding in paddings:
        yield padding, 0 if padding == "none" else min(MOST_PADDED, tokens - 1)


def _is_text(ids: Any) -> bool:
    return isinstance(ids, Tensor) and ids.dim() == 2 and ids.shape[1] > 1


def _has_examples(value: Any, examples: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 1 and len(value) == examples


def _pad_token(model: nn.Module) -> int:
    """The model's padding token; else its end of text, which is what most tokenizers then pad with; 0 if there is none in
    the vocabulary."""
    vocabulary = getattr(text_config(model), "vocab_size", None)
    for name in ("pad_token_id", "eos_token_id"):
        token = getattr(text_config(model), name, None)
        if isinstance(token, int) and 0 <= token < (vocabulary if isinstance(vocabulary, int) else token + 1):
            return token
    return 0
