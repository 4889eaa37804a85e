"""The names of the entries of logits: the labels of a classifier, the vocabulary of a tokenizer."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from lxt_fx.attribution.readable_tokens import BROKEN, Tokenizer, readable_tokens
from lxt_fx.attribution.text_input import NO_NAMES, NO_TOKENIZER
from lxt_fx.base.errors import InputError

PlainName = int | str
"""A class or token by index or by name."""


class Names(Protocol):
    """The names of the entries of logits [entries]."""

    def find(self, wanted: Sequence[PlainName], logits: Tensor) -> tuple[int, ...]:
        """The indices of these entries. Raises InputError for an entry that does not exist."""
        ...

    def show(self, index: int, rank: int) -> str:
        """The entry and its rank as a phrase."""
        ...


def class_labels(model: nn.Module, labels: Sequence[str] | None) -> tuple[str, ...]:
    """The names of the classes: those given, else those of the model's config, else none."""
    if labels is not None:
        return tuple(labels)
    known: Mapping[int, str] = getattr(getattr(model, "config", None), "id2label", None) or {}
    return tuple(known[index] for index in sorted(known))


def _in_range(index: int, logits: Tensor, kind: str, function: str) -> int:
    if 0 <= index < len(logits):
        return index
    raise InputError(f"{function}: there is no {kind} {index}; the model has {len(logits)} (0 to {len(logits) - 1})")


@dataclass(frozen=True, slots=True)
class ClassNames:
    """The labels of a classifier; () if none are known. Error messages name the `function`."""

    labels: Sequence[str]
    function: str

    def find(self, wanted: Sequence[PlainName], logits: Tensor) -> tuple[int, ...]:
        """The classes with these indices and labels."""
        return tuple(
            _in_range(name, logits, "class", self.function) if isinstance(name, int) else self._index(name)
            for name in wanted
        )

    def _index(self, label: str) -> int:
        if label in self.labels:
            return list(self.labels).index(label)
        alike = [index for index, known in enumerate(self.labels) if known.casefold() == label.strip().casefold()]
        if len(alike) == 1:
            return alike[0]
        raise InputError(f"{self.function}: the model has no class {label!r}; {self._known(label)}")

    def _known(self, label: str) -> str:
        """The classes in a sentence: all of them if they are few, else the nearest to the label."""
        if not self.labels:
            return "its classes are none; give an index"
        if len(self.labels) <= 20:
            return f"its classes are {', '.join(map(repr, self.labels))}"
        by_small = {known.casefold(): known for known in self.labels}
        near = difflib.get_close_matches(label.casefold(), by_small, n=5, cutoff=0.3) or list(by_small)[:5]
        return f"the nearest of its {len(self.labels)} classes are {', '.join(repr(by_small[each]) for each in near)}"

    def show(self, index: int, rank: int) -> str:
        """`'cat' (class 3, rank 1)`, or the number alone if the class has no label of its own."""
        named = index < len(self.labels) and self.labels[index] != f"LABEL_{index}"
        return f"'{self.labels[index]}' (class {index}, rank {rank})" if named else f"class {index} (rank {rank})"


@dataclass(frozen=True, slots=True)
class TokenNames:
    """The vocabulary of a tokenizer. Error messages name the `function`."""

    tokenizer: Tokenizer
    function: str

    def find(self, wanted: Sequence[PlainName], logits: Tensor) -> tuple[int, ...]:
        """The tokens with these ids and strings.

        A string without a leading space is tried with and without one (most tokenizers have both ` Paris` and `Paris`), and
        the likelier token is taken. Both sides of a contrast are read in the same way. A string with a leading space is
        taken as it is.
        """
        if all(isinstance(name, int) for name in wanted):
            return tuple(self._readings(name, logits, False)[0] or 0 for name in wanted)
        readings = [self._readings(name, logits, len(wanted) > 1) for name in wanted]
        joint = [pair for pair in zip(*readings, strict=True) if None not in pair]
        if joint:
            return max(joint, key=lambda pair: float(logits[list(pair)].sum()))
        return tuple(next(i for i in reading if i is not None) for reading in readings)

    def single(self, name: str) -> tuple[int | None, int | None]:
        """The token without and with a leading space; None for a spelling that is not one token."""
        if self.tokenizer is NO_TOKENIZER:
            raise InputError(f"{self.function}: {name!r} {NO_NAMES}")
        bare = self._single(name)
        return bare, bare if name[:1].isspace() else self._single(f" {name}")

    def several(self, name: str, before: int) -> list[tuple[int, ...]]:
        """The tokens that spell a name after the token `before`, without and with a leading space.

        Raises InputError for a name that the vocabulary cannot spell.
        """
        spellings = [name] if name[:1].isspace() else [name, f" {name}"]
        found = [ids for spelling in spellings if (ids := self._spelled(spelling, before))]
        if not found:
            raise InputError(self._not_one(name, contrast=False))
        return list(dict.fromkeys(found))

    def _spelled(self, spelling: str, before: int) -> tuple[int, ...]:
        """The tokens that add exactly this text after `before`; () if there are none. The text is also tried without its
        leading space, because tokenizers that write a space as `▁` may add one themselves."""
        start = self._decoded([before])
        for written in (spelling, spelling.lstrip(" ")):
            ids = self.tokenizer.encode(written, add_special_tokens=False)
            if ids and self._known(ids, written) and self._decoded([before, *ids]) == start + spelling:
                return tuple(ids)
        return ()

    def _decoded(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, clean_up_tokenization_spaces=False).replace(BROKEN, "")

    def _readings(self, name: PlainName, logits: Tensor, contrast: bool) -> tuple[int | None, int | None]:
        if isinstance(name, int):
            index = _in_range(name, logits, "token id", self.function)
            return index, index
        readings = self.single(name)
        if readings == (None, None):
            raise InputError(self._not_one(name, contrast))
        known = tuple(index if index is not None and index < len(logits) else None for index in readings)
        if known == (None, None):
            outside = next(index for index in readings if index is not None)
            raise InputError(
                f"{self.function}: {name!r} is token {outside} of the tokenizer, and the model has {len(logits)} (0 to "
                f"{len(logits) - 1}); is it the tokenizer of this model?"
            )
        return known[0], known[1]

    def _single(self, name: str) -> int | None:
        ids = self.tokenizer.encode(name, add_special_tokens=False)
        if len(ids) == 1 and self._known(ids, name):
            return ids[0]
        vocabulary = self.tokenizer.get_vocab()
        return vocabulary.get(name, vocabulary.get(name.replace(" ", "▁")))

    def _known(self, ids: list[int], name: str) -> bool:
        unknown = getattr(self.tokenizer, "unk_token_id", None)
        return unknown not in ids or name == getattr(self.tokenizer, "unk_token", None)

    def _not_one(self, name: str, contrast: bool) -> str:
        ids = self.tokenizer.encode(name, add_special_tokens=False)
        pieces = " ".join(f"'{token}'" for token in readable_tokens(self.tokenizer, ids))
        several = len(ids) > 1 and self._known(ids, name)
        said = f"{len(ids)} tokens: {pieces}" if len(ids) > 1 else f"read as {pieces or 'nothing'}"
        one = f"{self.function}: {name!r} is not one token of the tokenizer; it is {said}. A logit belongs to one token: "
        if several and contrast:
            return one + "in a contrast give one of the pieces, or explain both names, each alone, and compare"
        if several and self.function != "explain":
            return one + (
                "give one of the pieces; lxt_fx.explain takes such a name for a causal language model (the sum of its "
                "tokens' log-probabilities), and lxt_fx.answer_relevance explains each of its tokens"
            )
        return one + "explain one of the pieces, or give target=a function of the output"

    def show(self, index: int, rank: int) -> str:
        """`' Paris' (rank 1)`."""
        return f"'{readable_tokens(self.tokenizer, [index])[0]}' (rank {rank})"
