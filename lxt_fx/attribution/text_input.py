"""A text as a model reads it: its ids and what came with them, by example of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lxt_fx.attribution.readable_tokens import Tokenizer, readable_tokens
from lxt_fx.base.errors import InputError

NOT_FOR_THE_MODEL = ("offset_mapping", "special_tokens_mask", "length")


@dataclass(frozen=True, slots=True, eq=False)
class TextInput:
    """One text: ids [1, tokens] and the other tensors that came with them. If only embeddings were given, `ids_known` is
    False and the ids are 0, 1, 2, ..."""

    tokenizer: Tokenizer
    ids: Tensor
    extras: dict[str, Tensor]
    ids_known: bool = True

    @property
    def count(self) -> int:
        """How many tokens there are."""
        return self.ids.shape[1]

    @property
    def tokens(self) -> tuple[str, ...]:
        """The tokens as a person reads them."""
        return readable_tokens(self.tokenizer, self.id_list()) if self.ids_known else tuple(map(str, self.id_list()))

    def id_list(self) -> list[int]:
        """The token ids as plain numbers."""
        ids: list[int] = self.ids[0].tolist()
        return ids

    def last_position(self) -> int:
        """The position of the last token that is not padding."""
        mask = self.extras.get("attention_mask")
        if mask is None or mask.dim() != 2:
            return self.count - 1
        return int(mask[0].nonzero().max())


class _NoTokenizer:
    """Used if no tokenizer is given: a token is shown as its id."""

    all_special_ids: list[int] = []

    def __call__(self, text: str, *, return_tensors: str) -> Mapping[str, Any]:
        raise InputError(f"a text {NO_NAMES}")

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        raise InputError(f"a text {NO_NAMES}")

    def decode(self, token_ids: list[int], *, clean_up_tokenization_spaces: bool) -> str:
        return "".join(f" {token}" for token in token_ids)

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [f"▁{token}" for token in ids]

    def get_vocab(self) -> dict[str, int]:
        return {}


NO_NAMES = "needs its tokenizer to be read as tokens: give tokenizer=..., or token ids"
NO_TOKENIZER = _NoTokenizer()


def says_nothing(name: str, value: Any) -> bool:
    """Whether a model that does not take this input computes the same without it."""
    if not isinstance(value, Tensor):
        return False
    if name == "attention_mask":
        return bool((value == 1).all())
    return name == "token_type_ids" and not value.any()


def texts_of_logits(given: Mapping[str, Any], bound: Mapping[str, Any], tokenizer: Tokenizer | None) -> list[TextInput]:
    """The texts whose positions the logits of a batch have: those of the decoder if there is one. Arguments are as for
    `texts_by_example`."""
    decodes = "decoder_inputs_embeds" in bound or "decoder_input_ids" in bound
    return texts_by_example(given, bound, tokenizer, "decoder_" if decodes else "")


def texts_by_example(
    given: Mapping[str, Any], bound: Mapping[str, Any], tokenizer: Tokenizer | None, start: str = ""
) -> list[TextInput]:
    """One text for each example of a batch; an empty list if no input is a text.

    `given` are the inputs as the user gave them, with `input_ids` if these are known; `bound` are the inputs of the model.
    `start` is the prefix of the names of the inputs. Without ids, tokens are shown as numbers.
    """
    ids, embeds = given.get(f"{start}input_ids"), bound.get(f"{start}inputs_embeds")
    ids = bound.get(f"{start}input_ids") if ids is None else ids
    leaf = embeds if isinstance(embeds, Tensor) else ids
    if not isinstance(leaf, Tensor):
        return []
    examples, count = leaf.shape[:2]
    known = isinstance(ids, Tensor) and ids.shape == (examples, count)
    shown = ids if isinstance(ids, Tensor) and known else torch.arange(count).expand(examples, count)
    mask = bound.get(f"{start}attention_mask")
    own = mask if isinstance(mask, Tensor) and len(mask) == examples else None
    return [
        TextInput(
            tokenizer or NO_TOKENIZER,
            shown[example : example + 1],
            {} if own is None else {"attention_mask": own[example : example + 1]},
            known,
        )
        for example in range(examples)
    ]
