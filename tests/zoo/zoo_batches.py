"""Batches of full and of padded texts, made of the inputs of one example; and one text of such a batch alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lxt_fx.passes.capture.example import special_tokens

EXTRA = 2
"""How many tokens of a padded text are padding."""

Kind = Literal["full", "right", "left"]
KINDS: tuple[Kind, ...] = ("full", "right", "left")
Inputs = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs, and for each text by the name of its ids which places [batch, tokens] hold no padding."""

    name: str
    inputs: Inputs
    real: Mapping[str, Tensor]

    @property
    def is_padded(self) -> bool:
        """Whether a text has padding that a mask tells."""
        return "no mask" not in self.name and not all(bool(real.all()) for real in self.real.values())


@dataclass(frozen=True, slots=True)
class _Text:
    """The names of the ids of one text, of its mask, and of the other inputs that have a value for each token."""

    ids: str
    mask: str | None
    others: tuple[str, ...]


def batches(model: Any, inputs: Inputs, longer: bool, answers: Callable[[Inputs], bool]) -> Iterator[Batch | str]:
    """Full and padded batches of the texts of the inputs, without masks too, and with positions where the model takes them;
    a sentence in the place of one that there is not. `longer` says that the texts may get longer; `answers` whether the
    model answers at all."""
    yield Batch("as given", inputs, {})
    given = {name: value for name, value in inputs.items() if name != "position_ids"}
    texts = _texts(model, given)
    silent = {text.mask for text in texts} | {name for text in texts for name in text.others if "token_type" in name}
    special = _stand_for_others(model)
    long = _padded(model, given, texts, "full", True, special)
    longer = longer and long is not None and answers(long.inputs)
    for kind in KINDS:
        batch = _padded(model, given, texts, kind, longer, special)
        if batch is None:
            yield f"{kind}: the length is fixed, and the last tokens stand for no words"
            continue
        yield batch
        bare = {name: value for name, value in batch.inputs.items() if name not in silent}
        if kind != "left" and len(bare) < len(batch.inputs):
            yield Batch(f"{kind}, no mask", bare, batch.real)
        takes = inspect.signature(model.forward).parameters
        if kind != "full" and "position_ids" in takes and "input_ids" in batch.real:
            counted = (batch.real["input_ids"].long().cumsum(-1) - 1).clamp(min=0)
            yield Batch(f"{kind}, positions", batch.inputs | {"position_ids": counted}, batch.real)


def pad_token(model: Any) -> int:
    """The model's padding token, else its end of text."""
    for part in (model.config, getattr(model.config, "text_config", None)):
        for name in ("pad_token_id", "eos_token_id"):
            if isinstance(token := getattr(part, name, None), int) and token >= 0:
                return token
    return 0


def other_words_at_padding(model: Any, batch: Batch) -> Inputs:
    """The inputs with a word in the place of each padding token."""
    inputs = dict(batch.inputs)
    for ids, real in batch.real.items():
        words = inputs[ids][real]
        word = int(words[0]) if int(words[0]) != pad_token(model) else int(words[-1])
        inputs[ids] = torch.where(real, inputs[ids], word)
    return inputs


def words_of(output: Tensor, batch: Batch) -> Tensor | None:
    """Which places [batch, tokens] of the output are no padding; None where it has no tokens. A decoder comes first."""
    return next((real for real in reversed(batch.real.values()) if output.shape[:2] == real.shape), None)


def last_alone(batch: Batch) -> Batch:
    """The last text of the batch, without its padding."""
    spans = {ids: real[-1] for ids, real in batch.real.items()}
    inputs = {name: value[-1:] if isinstance(value, Tensor) else value for name, value in batch.inputs.items()}
    for ids, real in batch.real.items():
        prefix = ids.removesuffix("input_ids")
        for name, value in inputs.items():
            of_tokens = isinstance(value, Tensor) and not value.is_floating_point() and value.shape[1:2] == real.shape[1:]
            if of_tokens and name.startswith(prefix) and _prefix_of(name, batch.real) == prefix:
                inputs[name] = value[:, spans[ids]]
    ones = {ids: torch.ones(1, int(span.sum()), dtype=torch.bool) for ids, span in spans.items()}
    return Batch(f"{batch.name}, alone", inputs, ones)


def last_of(output: Tensor, batch: Batch) -> Tensor:
    """The part of an output that is about the last text, without its padding."""
    real = words_of(output, batch)
    return output[-1:] if real is None else output[-1:, real[-1]]


def _prefix_of(name: str, texts: Mapping[str, Any]) -> str:
    prefixes = [ids.removesuffix("input_ids") for ids in texts]
    return max((prefix for prefix in prefixes if name.startswith(prefix)), key=len, default="")


def _texts(model: Any, inputs: Inputs) -> list[_Text]:
    takes = inspect.signature(model.forward).parameters
    named = {name: x for name, x in inputs.items() if name.endswith("input_ids") and isinstance(x, Tensor) and x.dim() == 2}
    found = []
    for ids in sorted(named, key=len):  # the encoder's first
        prefix = ids.removesuffix("input_ids")
        mask = f"{prefix}attention_mask"
        whole = {name: x for name, x in inputs.items() if isinstance(x, Tensor) and not x.is_floating_point()}
        of_tokens = [name for name, x in whole.items() if x.shape[:2] == named[ids].shape and name not in (*named, mask)]
        others = tuple(name for name in of_tokens if _prefix_of(name, named) == prefix and name.startswith(prefix))
        if mask in inputs and inputs[mask].shape != named[ids].shape:
            continue  # the tokens of several codebooks: this text stays as it is
        found.append(_Text(ids, mask if mask in takes else None, others))
    return found


def _stand_for_others(model: Any) -> set[int]:
    """The tokens in whose place something else comes: an image, a sound."""
    parts = [model.config, *(value for value in vars(model.config).values() if hasattr(value, "to_dict"))]
    words = [getattr(part, name, None) for part in parts for name in ("pad_token_id", "eos_token_id", "bos_token_id")]
    return special_tokens(model) - {token for token in words if isinstance(token, int)}


def _padded(model: Any, inputs: Inputs, texts: list[_Text], kind: Kind, longer: bool, special: set[int]) -> Batch | None:
    """The batch with `EXTRA` padding tokens in all texts but the first, which gets as many words. If the texts may not get
    longer, they lose as many tokens before; None where these are special."""
    made, real = dict(inputs), {}
    for text in texts:
        ids = inputs[text.ids]
        last = ids[:, -EXTRA:]
        if not longer and (ids.shape[1] <= EXTRA or not special.isdisjoint(last.flatten().tolist())):
            return None
        length = ids.shape[1] if longer else ids.shape[1] - EXTRA
        words = _some_words(ids, special).expand(len(ids), -1).clone() if longer else last.clone()
        full = torch.ones_like(words)
        if kind != "full":
            padded = slice(1 if len(ids) > 1 else 0, None)
            words[padded], full[padded] = pad_token(model), 0
        mask = inputs.get(text.mask or "", torch.ones_like(ids))
        made[text.ids] = _joined(ids[:, :length], words, kind)
        if text.mask:
            made[text.mask] = _joined(mask[:, :length], full.to(mask), kind)
        real[text.ids] = _joined(torch.ones_like(ids[:, :length]), full, kind).bool()
        for name in text.others:
            own = inputs[name]
            made[name] = _joined(own[:, :length], torch.zeros_like(own[:, :1]).expand_as(own[:, :EXTRA]), kind)
    return Batch(kind, made, real)


def _joined(x: Tensor, more: Tensor, kind: Kind) -> Tensor:
    """What comes behind the texts, or before all but the first of them."""
    behind = torch.cat([x, more], 1)
    if kind != "left":
        return behind
    before = torch.cat([more, x], 1)
    return torch.cat([behind[:1], before[1:]]) if len(x) > 1 else before


def _some_words(ids: Tensor, special: set[int]) -> Tensor:
    usual = [token for token in ids.flatten().tolist() if token not in special] or [int(ids.max())]
    return torch.tensor((usual * EXTRA)[:EXTRA], dtype=ids.dtype)
