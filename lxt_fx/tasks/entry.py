"""An entry of logits: which one a target means, and the phrase and the label of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lxt_fx.attribution.readable_tokens import readable_tokens
from lxt_fx.attribution.target import Wanted
from lxt_fx.attribution.target_entry import indices_of
from lxt_fx.attribution.target_names import ClassNames, TokenNames
from lxt_fx.tasks.asked import Asked
from lxt_fx.tasks.task import Context, Number


@dataclass(frozen=True, slots=True)
class NamedEntry:
    """One entry of the logits, or two for a contrast, with the phrase and the label of the number."""

    indices: tuple[int, ...]
    said: str
    label: str

    def of(self, logits: Tensor) -> Number:
        """The number in logits [entries]."""
        value = logits[self.indices[0]]
        return Number(value if len(self.indices) == 1 else value - logits[self.indices[1]], self.said, self.label)


Names = ClassNames | TokenNames


def entry_in(asked: Asked, logits: Tensor, names: Names, where: str = "", kind: str = "logit of ") -> NamedEntry:
    """The entry of logits [entries] that a target means: the largest if it names none. The phrase says its `kind`, its name
    and rank, and ends with `where`."""
    indices = indices_of(Wanted(asked.entry, asked.minus), logits, names)
    said = " minus ".join(f"{kind}{names.show(index, rank(logits, index))}" for index in indices)
    return NamedEntry(indices, said + where, " minus ".join(label_of(names, index) for index in indices))


def rank(logits: Tensor, index: int) -> int:
    """1 for the largest."""
    return 1 + int((logits > logits[index]).sum())


def label_of(names: Names, index: int) -> str:
    """A token or class in as few characters as possible."""
    if isinstance(names, TokenNames):
        return readable_tokens(names.tokenizer, [index])[0]
    named = index < len(names.labels) and names.labels[index] != f"LABEL_{index}"
    return names.labels[index] if named else f"class {index}"


def classes(context: Context) -> ClassNames:
    """The names of the model's classes."""
    return ClassNames(context.labels, context.function)
