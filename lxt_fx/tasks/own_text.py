"""The text of one example as its own: without padding, with positions that count from its first token to its last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lxt_fx.attribution.readable_tokens import Tokenizer
from lxt_fx.attribution.text_input import TextInput

DECODER = "decoder_"


@dataclass(frozen=True, slots=True, eq=False)
class OwnText:
    """The tokens of a text without padding. `columns` says where each of them stands in the batch [batch, columns], and
    `width` is the number of these columns."""

    text: TextInput
    columns: tuple[int, ...]
    width: int


def prefix_of(inputs: Mapping[str, Any]) -> str:
    """The prefix of the names of the text that the logits belong to: the decoder's, if there is one."""
    return DECODER if f"{DECODER}input_ids" in inputs or f"{DECODER}inputs_embeds" in inputs else ""


def own_text(inputs: Mapping[str, Any], tokenizer: Tokenizer, row: int, prefix: str = "") -> OwnText | None:
    """The text in this entry of the batch; None if no input is a text. Without ids, tokens are shown as numbers."""
    ids, embeds = inputs.get(f"{prefix}input_ids"), inputs.get(f"{prefix}inputs_embeds")
    found = ids if isinstance(ids, Tensor) else embeds
    if not isinstance(found, Tensor) or found.dim() < 2:
        return None
    width, known = found.shape[1], isinstance(ids, Tensor) and ids.dim() == 2
    columns = _real(inputs.get(f"{prefix}attention_mask"), row, width)
    own = found[row : row + 1, columns] if known else torch.arange(len(columns))[None]
    extras = {"token_type_ids": _column(inputs.get(f"{prefix}token_type_ids"), row, columns)}
    return OwnText(
        TextInput(tokenizer, own, {name: value for name, value in extras.items() if value is not None}, known),
        tuple(columns), width,
    )  # fmt: skip


def _real(mask: Any, row: int, width: int) -> list[int]:
    if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.shape[1] != width or not bool(mask[row].any()):
        return list(range(width))
    found: list[int] = mask[row].nonzero().flatten().tolist()
    return found


def _column(value: Any, row: int, columns: list[int]) -> Tensor | None:
    return value[row : row + 1, columns] if isinstance(value, Tensor) and value.dim() == 2 else None
