"""A text as a model reads it: from a string, from token ids, or from what a tokenizer returned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lxt_fx.attribution.readable_tokens import Tokenizer, readable_tokens
from lxt_fx.base.errors import InputError

Text = str | Tensor | Sequence[int] | Mapping[str, Any]

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

    def followed_by(self, more: Sequence[int], function: str) -> TextInput:
        """The text followed by these tokens. Masks and token types go on as at the last token, positions count on.

        Raises InputError, in the name of `function`, if it is not known how another input goes on.
        """
        added = torch.tensor([list(more)], device=self.ids.device, dtype=self.ids.dtype)
        extras = {}
        for name, value in self.extras.items():
            if name == "position_ids":
                rest = value[:, -1:] + torch.arange(1, len(more) + 1, device=value.device)
            elif name in ("attention_mask", "token_type_ids") and value.dim() == 2:
                rest = value[:, -1:].expand(-1, len(more))
            else:
                raise InputError(
                    f"{function}: tokens are appended to the text, and it is not known how {name} goes on; leave {name} "
                    "out of the text, or append the tokens yourself and give a function of the output"
                )
            extras[name] = torch.cat([value, rest], dim=1)
        return replace(self, ids=torch.cat([self.ids, added], dim=1), extras=extras)


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


def read_text(tokenizer: Tokenizer, text: Text, device: torch.device, function: str) -> TextInput:
    """The text as ids on the model's device. Error messages name the `function` that was called.

    Raises InputError if it is empty, holds more than one text, or is of another type.
    """
    fields = _fields(tokenizer, text, function)
    if "input_ids" not in fields:
        raise InputError(f"{function}: the text is a mapping without input_ids; it has {', '.join(map(str, fields))}")
    tensors = {name: _one_example(name, value, function).to(device) for name, value in fields.items()}
    ids = tensors["input_ids"]
    if ids.shape[1] == 0:
        raise InputError(f"{function}: the text has no tokens, so there is nothing to explain; give one that has some")
    extras = {name: value for name, value in tensors.items() if name not in ("input_ids", *NOT_FOR_THE_MODEL)}
    return TextInput(tokenizer, ids, extras)


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


def _fields(tokenizer: Tokenizer, text: Text, function: str) -> Mapping[str, Any]:
    if isinstance(text, str):
        if not callable(tokenizer):
            raise InputError(f"{function}: a text needs a tokenizer, got {type(tokenizer).__name__}; or give token ids")
        return tokenizer(text, return_tensors="pt")
    if isinstance(text, Mapping):
        return text
    if isinstance(text, Tensor) or (isinstance(text, Sequence) and all(isinstance(i, int) for i in text)):
        return {"input_ids": text}
    raise InputError(
        f"{function}: text must be one string, its token ids, or what the tokenizer returns for it, got "
        f"{_described(text)}; explain several texts in a loop over one transformed model"
    )


def _described(text: object) -> str:
    if isinstance(text, Sequence) and text:
        return f"a {type(text).__name__} of {type(text[0]).__name__}"
    return type(text).__name__


def _one_example(name: str, value: Any, function: str) -> Tensor:
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{function}: {name} of the text is not a tensor nor numbers that make one: {error}") from error
    if tensor.is_floating_point() and name == "input_ids":
        raise InputError(f"{function}: input_ids must be whole numbers, got floating-point values; give token ids")
    tensor = tensor[None] if tensor.dim() == 1 else tensor
    if tensor.dim() < 2 or tensor.shape[0] != 1:
        raise InputError(
            f"{function}: {name} has shape {list(tensor.shape)}, but one text at a time is explained, as [1, tokens]; "
            "loop over the examples of a batch"
        )
    return tensor.detach().clone()
