"""Extractive question answering: `start_logits` and `end_logits` [batch, positions]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.inputs.given import Example
from lxt_fx.tasks.asked import Asked
from lxt_fx.tasks.own_text import OwnText, own_text
from lxt_fx.tasks.rows import row_of
from lxt_fx.tasks.task import Context, Number
from lxt_fx.tasks.words import stretch_of

LONGEST = 30
"""An answer that is chosen by default has at most so many tokens, as in the pipelines of transformers."""


@dataclass(frozen=True, slots=True)
class Answering:
    """The score of an answer: the start logit of its first token plus the end logit of its last. By default the answer with
    the highest score in the text that is asked about; or one that is named by its words, or two of them for a contrast.
    `Target.at(position, "start")` and `"end"` are one of the two logits alone."""

    name: str = "question answering"

    def number(self, asked: Asked, output: Any, index: int, example: Example, context: Context) -> Number:
        """The score of an answer."""
        row = row_of(example, index, "input_ids")
        text = own_text(context.inputs, context.tokenizer, row)
        if text is None or not text.text.ids_known:
            raise InputError(f"{context.function}: the token ids are not known, so no answer can be found; give input_ids")
        scores = _Scores(output["start_logits"][row], output["end_logits"][row], text, context)
        if asked.spot is not None:
            return scores.one(asked)
        if asked.entry is None:
            return scores.of(*scores.best())
        found = [scores.of(*scores.named(each)) for each in (asked.entry, asked.minus) if each is not None]
        value = found[0].value if len(found) == 1 else found[0].value - found[1].value
        return Number(value, " minus ".join(each.said for each in found), " minus ".join(each.label for each in found))


@dataclass(frozen=True, slots=True, eq=False)
class _Scores:
    start: Tensor
    end: Tensor
    text: OwnText
    context: Context

    def of(self, first: int, last: int) -> Number:
        """The score of the answer that starts and ends with these tokens of the text."""
        columns = self.text.columns
        shown = "".join(self.text.text.tokens[first : last + 1]).strip()
        where = f"position {first}" if first == last else f"positions {first} to {last}"
        value = self.start[columns[first]] + self.end[columns[last]]
        return Number(value, f"start + end logit of the answer '{shown}' at {where}", shown)

    def best(self) -> tuple[int, int]:
        """The first and the last token of the answer with the highest score."""
        allowed, columns = self._context(), list(self.text.columns)
        start, end = self.start.detach()[columns], self.end.detach()[columns]
        scores = start[:, None] + end[None, :]
        apart = torch.arange(len(columns))[None, :] - torch.arange(len(columns))[:, None]
        inside = torch.zeros(len(columns), dtype=torch.bool)
        inside[allowed] = True
        fits = (apart >= 0) & (apart < LONGEST) & inside[:, None] & inside[None, :]
        best = int(scores.masked_fill(~fits.to(scores.device), -torch.inf).argmax())
        return divmod(best, len(columns))

    def named(self, name: int | str) -> tuple[int, int]:
        """The first and the last token of the answer with these words."""
        if isinstance(name, int):
            raise InputError(
                f"{self.context.function}: an answer is named by its words, got {name}; or give "
                f"Target.at({name}, \"start\") or Target.at({name}, \"end\") for one of the two logits at a position"
            )
        allowed = self._context()
        found = stretch_of(name, self.text.text.tokens, first=allowed[0], stop=allowed[-1] + 1)
        if found is None:
            raise InputError(
                f"{self.context.function}: the text has no answer {name!r} that starts and ends with a whole token; "
                f"the text is {''.join(self.text.text.tokens[i] for i in allowed).strip()!r}"
            )
        return found.start, found.stop - 1

    def one(self, asked: Asked) -> Number:
        """The start or the end logit at one position."""
        wanted, count, function = asked.at_position(self.context.function), len(self.text.columns), self.context.function
        position = wanted.position or 0
        if wanted.token not in ("start", "end") or wanted.minus is not None:
            raise InputError(
                f'{function}: at a position of a question answering model there are "start" and "end", got '
                f'{wanted.token!r}; give Target.at({position}, "start")'
            )
        if not -count <= position < count:
            raise InputError(
                f"{function}: position {position} is not in the text, which has {count} tokens (0 to {count - 1})"
            )
        position %= count
        logits = self.start if wanted.token == "start" else self.end
        token = self.text.text.tokens[position]
        return Number(
            logits[self.text.columns[position]], f"{wanted.token} logit at position {position}, of '{token}'",
            f"{wanted.token} {token.strip()}",
        )  # fmt: skip

    def _context(self) -> list[int]:
        """The tokens that an answer may have: those of the second text, without special tokens."""
        read, ids = self.text.text, self.text.text.id_list()
        special = set(read.tokenizer.all_special_ids)
        kinds = read.extras.get("token_type_ids")
        separator = getattr(read.tokenizer, "sep_token_id", None)
        if kinds is not None and bool((kinds == 1).any()):
            later = [int(kind) == 1 for kind in kinds[0]]
        elif separator in ids and ids.index(separator) < len(ids) - 1:
            later = [position > ids.index(separator) for position in range(len(ids))]
        else:
            later = [True] * len(ids)
        found = [position for position, each in enumerate(ids) if later[position] and each not in special]
        if not found:
            raise InputError(f"{self.context.function}: there is no text behind the question, so there is no answer in it")
        return found
