"""A name of several tokens: the sum of their log-probabilities, each given those before it (teacher forcing)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lxt_fx.attribution.leaf_call import LeafCall
from lxt_fx.attribution.target import Wanted
from lxt_fx.attribution.target_entry import Choice, Reading, logits_of, place_of, position_of
from lxt_fx.attribution.target_names import TokenNames
from lxt_fx.attribution.text_input import TextInput
from lxt_fx.base.errors import InputError

AHEAD = 1e-6
"""A gradient at a later token below this share of the largest gradient is rounding (of models that mix tokens by Fourier
transforms, for example)."""


@dataclass(frozen=True, slots=True, eq=False)
class ForcedName:
    """`text` is the user's text followed by all tokens of the name but the last. `ids` are the tokens of the whole name.
    `position` is where the first of them is predicted."""

    text: TextInput
    ids: tuple[int, ...]
    position: int

    @property
    def appended(self) -> int:
        """How many tokens of the name were appended to the text."""
        return len(self.ids) - 1

    @property
    def positions(self) -> tuple[int, ...]:
        """The positions at which the tokens of the name are predicted, counted from the end."""
        return tuple(range(-len(self.ids), 0))

    def choose(self, reading: Reading, output: Any) -> Choice:
        """log p(name | text) = sum over t of log p(token t | text, tokens before t), in at least float32.

        Raises InputError if the logits do not predict the next token.
        """
        return Choice(self._by_token(reading, output).sum(), self._said())

    def _by_token(self, reading: Reading, output: Any) -> Tensor:
        """The log-probability of each token of the name, [tokens of the name]."""
        logits = logits_of(reading, output)
        if logits.dim() != 3:
            reading.names(None).find((self._name(),), logits[0])
            raise InputError(f"{reading.function}: {reading.model_class} has no token {self._name()!r}; give a class")
        places = [
            place_of(reading, Wanted(position=self.position + step), logits.shape[1], self.text)
            for step in range(len(self.ids))
        ]
        wide = logits[0, places].to(torch.promote_types(logits.dtype, torch.float32))
        return wide.log_softmax(-1)[torch.arange(len(self.ids)), list(self.ids)]

    def _name(self) -> str:
        return self.text.tokenizer.decode(list(self.ids), clean_up_tokenization_spaces=False)

    def _said(self) -> str:
        """The explained number as a phrase, with each token as it reads after those before it."""
        whole = replace(self.text, ids=torch.tensor([[*self.text.id_list(), self.ids[-1]]])).tokens
        pieces = " + ".join(f"'{token}'" for token in whole[self.position + 1 :])
        where = f"at position {self.position}, after '{whole[self.position]}'"
        return f"log-probability of {pieces}, each given those before, {where}"

    def check_causal(self, reading: Reading, call: LeafCall) -> None:
        """Raises InputError if the prediction of the first token of the name depends on the tokens after it."""
        first = self._by_token(reading, call.output())[0]
        gradients = torch.autograd.grad(first, list(call.leaves.values()), allow_unused=True)
        reached = [gradient.abs() for gradient in gradients if gradient is not None]
        largest = max((float(each.max()) for each in reached), default=0.0)
        if not reached or any(float(each[:, self.position + 1 :].max()) > AHEAD * largest for each in reached):
            raise InputError(
                f"{reading.function}: {reading.model_class} looks ahead, so it gives no probability of a token given those "
                "before it, and a name of several tokens has none; give a name of one token, or a function of the output"
            )


def forced_name(
    reading: Reading, target: Wanted, text: TextInput, run: Callable[[TextInput], Any]
) -> ForcedName | None:
    """The target as a name of several tokens after this text; None if it is none. The name is tried with and without a
    leading space, and the likelier spelling is taken. `run` computes the model's output for a text.

    Raises InputError if the target's position is not the end of the text.
    """
    name = target.token
    if not isinstance(name, str) or target.minus is not None or not reading.predicts_next:
        return None
    names = TokenNames(text.tokenizer, reading.function)
    if name in reading.labels or reading.model_class.endswith("Classification") or names.single(name) != (None, None):
        return None
    position = position_of(reading, target, text)
    if position != text.count - 1:
        raise InputError(
            f"{reading.function}: {name!r} is several tokens, explained only after the last token of the text, "
            f"and position {position} is not the last of {text.count}; give the text up to that position, without padding"
        )
    spelled = names.several(name, text.id_list()[-1])
    found = [ForcedName(text.followed_by(ids[:-1], reading.function), ids, position) for ids in spelled]
    if len(found) == 1:
        return found[0]
    return max(found, key=lambda forced: float(forced.choose(reading, run(forced.text)).value))
