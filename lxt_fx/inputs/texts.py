"""Texts as the inputs of one call: rows of tokens made a batch, what came from a tokenizer, ids, embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lxt_fx.attribution.readable_tokens import readable_tokens
from lxt_fx.attribution.text_input import NO_TOKENIZER, NOT_FOR_THE_MODEL, says_nothing
from lxt_fx.base.errors import InputError
from lxt_fx.inputs.facts import Facts
from lxt_fx.inputs.padding import padded, with_own_positions
from lxt_fx.inputs.places import TextPlace
from lxt_fx.inputs.text_rows import Row, running
from lxt_fx.results.readings import TextReading

Own = list[list[int]]
"""For each row of a batch the columns of its own tokens: all without padding."""


IGNORED = -100
"""A label of a token that does not count."""


def batch_of_rows(
    facts: Facts, tokenizer: Any, rows: Sequence[Row], side: str, prefix: str = ""
) -> tuple[dict[str, Any], Own]:
    """The rows as inputs by name [batch, tokens], padded on this side. Nothing of the tokenizer changes."""
    _, pad = padding_of(facts, tokenizer)
    longest = max(len(row.ids) for row in rows)
    names = dict.fromkeys(name for row in rows for name in row.fields)
    inputs: dict[str, Any] = {}
    for name in names:
        value = (
            pad if name == "input_ids" else getattr(tokenizer, "pad_token_type_id", 0) if name == "token_type_ids" else 0
        )
        inputs[prefix + name] = padded([row.fields[name] for row in rows], value, side)
    starts = [longest - len(row.ids) if side == "left" else 0 for row in rows]
    own = [list(range(start, start + len(row.ids))) for start, row in zip(starts, rows, strict=True)]
    mask = f"{prefix}attention_mask"
    if mask not in inputs and facts.takes(mask):
        inputs[mask] = padded([[1] * len(row.ids) for row in rows], 0, side)
    return inputs, own


def padding_of(facts: Facts, tokenizer: Any) -> tuple[str, int]:
    """The side on which texts are padded, and the id of the padding: that of the tokenizer, else of the model. A masked
    token may be any, so that a tokenizer without one needs none."""
    side = getattr(tokenizer, "padding_side", "right")
    found = (
        getattr(tokenizer, "pad_token_id", None), getattr(facts.text_config, "pad_token_id", None),
        getattr(tokenizer, "eos_token_id", None), 0,
    )  # fmt: skip
    return str(side), next(token for token in found if isinstance(token, int) and token >= 0)


def by_token(facts: Facts, name: str, value: Any) -> Tensor:
    """Numbers by token as a tensor [batch, tokens, ...]. Raises InputError for what is none."""
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{facts.function}: {name} is not a tensor nor numbers that make one ({error}); where rows have different "
            "lengths, pad them and give a mask, or give a list of texts"
        ) from error
    if name.endswith("input_ids") and (tensor.is_floating_point() and tensor.numel() or tensor.dtype == torch.bool):
        raise InputError(f"{facts.function}: {name} must be whole numbers, got {tensor.dtype}; give token ids")
    if name.endswith("input_ids"):
        tensor = tensor.long()
        tensor = tensor[None] if tensor.dim() == 1 else tensor
        if tensor.dim() < 2:
            raise InputError(f"{facts.function}: {name} must be [tokens] or [batch, tokens], got {list(tensor.shape)}")
        return tensor
    return tensor


def own_columns(facts: Facts, inputs: Mapping[str, Any], prefix: str = "") -> Own:
    """The columns that are no padding by the mask; all of them without a mask [batch, tokens].

    Raises InputError for a text that is masked as a whole.
    """
    leaf = inputs.get(f"{prefix}input_ids")
    leaf = inputs[f"{prefix}inputs_embeds"] if leaf is None else leaf
    mask = inputs.get(f"{prefix}attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.shape != leaf.shape[:2]:
        if isinstance(mask, Tensor) and mask.dim() == 2:
            raise InputError(
                f"{facts.function}: {prefix}attention_mask is {list(mask.shape)}, but there are {list(leaf.shape[:2])} "
                "tokens; give one number for each token"
            )
        return [list(range(leaf.shape[1])) for _ in range(leaf.shape[0])]
    own = [row.nonzero()[:, 0].tolist() for row in mask]
    for index, columns in enumerate(own):
        if not columns:
            raise InputError(
                f"{facts.function}: text {index} is all padding by its mask; leave it out, or correct the mask"
            )
    return own


def check_ids(facts: Facts, ids: Tensor, own: Own) -> None:
    """Raises InputError for no tokens, for more than the model has positions for, and for an id that it does not have."""
    if ids.shape[0] == 0 or ids.shape[1] == 0:
        raise InputError(
            f"{facts.function}: the text has no tokens, so there is nothing to explain; give one that has some"
        )
    longest, most = facts.longest(), max(map(len, own))
    if longest is not None and most > longest:
        raise InputError(
            f"{facts.function}: the text has {most} tokens, but {facts.model_class} has positions for {longest}; "
            "shorten the text, or explain it in parts (if the model can read more, raise config.max_position_embeddings)"
        )
    size = facts.vocabulary()
    for row, columns in enumerate(own):
        for column in columns if size is not None else ():
            token = int(ids[row, column])
            if size is not None and not 0 <= token < size:
                raise InputError(
                    f"{facts.function}: token id {token} at position {column} is outside the vocabulary of "
                    f"{facts.model_class}, which has {size} tokens (0 to {size - 1}); do model and tokenizer belong "
                    "together?"
                )


def accepted(facts: Facts, inputs: Mapping[str, Any], giver: str) -> dict[str, Any]:
    """The inputs that the model takes. Raises InputError for one that it does not take and that would change the result."""
    found = {}
    for name, value in inputs.items():
        if name == "labels" and isinstance(value, Tensor) and bool((value == IGNORED).all()):
            continue  # some processors return labels without any, of which no loss can be computed
        if facts.takes(name) or name == "input_ids" and facts.takes("inputs_embeds"):  # the ids are looked up then
            found[name] = value
        elif name not in NOT_FOR_THE_MODEL and not says_nothing(name, value):
            raise InputError(
                f"{facts.function}: {giver} gives {name}, which {facts.model_class} does not take; it takes "
                f"{', '.join(facts.names)}. Leave {name} out, or transform the model on an example with it"
            )
    return found


def text_call(
    facts: Facts, inputs: Mapping[str, Any], own: Own, more: Mapping[str, Any] | None = None, giver: str = "the tokenizer"
) -> dict[str, Any]:
    """The inputs of a batch of texts on the model's device, checked, with positions where texts are padded."""
    if isinstance(ids := inputs.get("input_ids"), Tensor):
        check_ids(facts, ids, own)
    taken = {name: facts.on_device(value) for name, value in accepted(facts, inputs, giver).items()}
    return with_own_positions(facts, taken, own, more or {})


def text_places(
    facts: Facts,
    tokenizer: Any,
    inputs: Mapping[str, Any],
    own: Own,
    rows: Sequence[Row | None],
    name: str,
    prefix: str = "",
    answers: Sequence[int] | None = None,
    hidden: frozenset[int] = frozenset(),
) -> list[TextPlace]:
    """One place for each row of a batch. `rows` are the texts before padding, None where only ids are known; `answers` is
    how many of the last tokens of each belong to an answer; `hidden` are tokens that stand for a picture."""
    ids, embeds = inputs.get(f"{prefix}input_ids"), inputs.get(f"{prefix}inputs_embeds")
    leaf = f"{prefix}input_ids" if ids is not None else f"{prefix}inputs_embeds"
    by_row = {key: value for key, value in inputs.items() if isinstance(value, Tensor) and len(value) == len(own)}
    places = []
    for index, columns in enumerate(own):
        own_ids = None if ids is None else [int(ids[index, column]) for column in columns]
        shown = [at for at in range(len(columns)) if own_ids is None or own_ids[at] not in hidden]
        if not shown:
            raise InputError(f"{facts.function}: text {index} has no words; give a text beside the picture")
        reading = _reading(tokenizer, own_ids, len(columns), shown, rows[index], 0 if answers is None else answers[index])
        places.append(
            TextPlace(
                leaf, name, index, reading, tuple(columns[at] for at in shown), tuple(columns),
                None if ids is None else ids[index].cpu(), tokenizer or NO_TOKENIZER,
                {key: value[index : index + 1] for key, value in by_row.items()},
            )
        )  # fmt: skip
    if ids is None and embeds is None:
        raise InputError(f"{facts.function}: the inputs have neither input_ids nor inputs_embeds; give one of them")
    return places


def _reading(
    tokenizer: Any, ids: list[int] | None, count: int, shown: list[int], row: Row | None, answer: int
) -> TextReading:
    """A text of `count` tokens as a person reads it, those at `shown`."""
    if ids is None:
        return TextReading(tuple(str(at) for at in shown), None, (False,) * len(shown), (0,) * len(shown), answer)
    tokens = readable_tokens(tokenizer or NO_TOKENIZER, ids)
    special = special_ids(tokenizer)
    marks = (row.marks if row is not None else None) or (False,) * count
    segments = (row.segments if row is not None else None) or (0,) * count
    spans = row.spans if row is not None else None
    return TextReading(
        tokens=tuple(tokens[at] for at in shown),
        ids=tuple(ids[at] for at in shown),
        special=tuple(ids[at] in special or marks[at] for at in shown),
        segments=tuple(segments[at] for at in shown),
        answer=answer,
        text=None if row is None or spans is None else row.text,
        spans=None if spans is None else tuple(spans[at] for at in shown),
    )


def special_ids(tokenizer: Any) -> frozenset[int]:
    """The ids of special tokens: those with a role (BOS, padding, mask), and further ones (`<|im_start|>`)."""
    named = getattr(tokenizer, "all_special_ids", None) or ()
    added = getattr(tokenizer, "added_tokens_decoder", None) or {}
    more = (token for token, kind in added.items() if getattr(kind, "special", False))
    return frozenset((*named, *more))


def are_special(tokenizer: Any, ids: Sequence[int]) -> tuple[bool, ...]:
    """Which of these tokens are special."""
    special = special_ids(tokenizer)
    return tuple(each in special for each in ids)


def rows_of_mapping(given: Any, inputs: Mapping[str, Any], own: Own) -> list[Row | None]:
    """What a tokenizer's own output says of the texts: the segments of pairs, and where the tokens are, if it was asked."""
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor):
        return [None] * len(own)
    types = inputs.get("token_type_ids")
    found: list[Row | None] = []
    for index, columns in enumerate(own):
        segments: tuple[int, ...] | None = None
        if getattr(given, "is_fast", False):
            parts = given.sequence_ids(index)
            segments = running([parts[column] for column in columns]) if len(parts) == ids.shape[1] else None
        elif isinstance(types, Tensor) and types.shape == ids.shape and int(types.max()) <= 1:
            segments = tuple(int(types[index, column]) for column in columns)
        found.append(Row({"input_ids": [int(ids[index, column]) for column in columns]}, segments))
    return found
