"""What is explained: one number of the model's output, chosen by index, by name, as a difference, or by a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from lxt_fx.attribution.readable_tokens import Tokenizer, readable_tokens
from lxt_fx.attribution.text_input import TextInput
from lxt_fx.base.errors import InputError

Name = int | str
"""A class or token by index or by name."""


@dataclass(frozen=True, slots=True)
class Target:
    """The logit of `token` at `position`, less the logit of `minus` if there is one.

    `token` is an index or a name: a token of the vocabulary, or a class. None means the one with the largest logit,
    and for the position the default that `explain` states.
    """

    token: Name | None = None
    minus: Name | None = None
    position: int | None = None

    @classmethod
    def at(cls, position: int, token: Name | None = None, minus: Name | None = None) -> Target:
        """The target at this position of the text; a negative one counts from the end."""
        return cls(token, minus, position)


TargetLike = Target | Name | tuple[Name, Name] | Callable[[Any], Tensor] | None


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """The number to explain, as a scalar tensor with its graph, and a sentence that says which it is."""

    value: Tensor
    said: str


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a target lies: an entry of the logits, less another if there are two, at a position of the text, or in the
    only row of logits ([batch, classes])."""

    indices: tuple[int, ...]
    position: int | None
    said: str

    def of(self, logits: Tensor) -> Tensor:
        """The number in the logits of one input, [positions, entries] or [entries]."""
        row = logits if self.position is None else logits[self.position]
        return row[self.indices[0]] if len(self.indices) == 1 else row[self.indices[0]] - row[self.indices[1]]


class Names(Protocol):
    """What the entries of a row of logits are called."""

    def find(self, wanted: Sequence[Name], row: Tensor) -> tuple[int, ...]:
        """The indices that are meant; raises InputError for one that does not exist."""
        ...

    def show(self, index: int, rank: int) -> str:
        """The entry and its rank as they are written in a sentence."""
        ...


def choose(
    target: TargetLike,
    output: Any,
    labels: Sequence[str],
    text: TextInput | None,
    model_class: str,
    row: int = 0,
    positions: tuple[int, ...] | None = None,
) -> Choice:
    """The number of a model's output that a target means, in this row of the batch. `positions` are those of the text that
    the output has logits for, None where it has them for all.

    Raises InputError if the output has no logits, or the target does not fit them.
    """
    if callable(target):
        return _by_function(target, output)
    entry = entry_of(target, output, labels, text, model_class, row, positions)
    return Choice(entry.of(logits_of(output, model_class)[row]), entry.said)


def entry_of(
    target: Target | Name | tuple[Name, Name] | None,
    output: Any,
    labels: Sequence[str],
    text: TextInput | None,
    model_class: str,
    row: int = 0,
    positions: tuple[int, ...] | None = None,
) -> Entry:
    """Which entry of the logits a target means in this row of the batch, to find it again in another output.

    Raises InputError as `choose` does.
    """
    wanted = _as_target(target)
    logits = logits_of(output, model_class)
    if logits.dim() == 3 and text is not None:
        position, where = _position(wanted, logits, text, model_class, positions)
        classes = model_class.endswith("ForTokenClassification")
        names: Names = ClassNames(labels) if classes else TokenNames(text.tokenizer)
        return _entry(wanted, logits[row, position], names, position, where)
    if logits.dim() == 2 and wanted.position is None:
        return _entry(wanted, logits[row], ClassNames(labels), None, "")
    said = "the target names a position, but" if wanted.position is not None else "cannot choose a target:"
    raise InputError(
        f"explain: {said} the logits of {model_class} have shape {list(logits.shape)}; give target=a function of the "
        "output, such as lambda out: out.logits[0, 3]"
    )


def class_labels(model: nn.Module, labels: Sequence[str] | None) -> tuple[str, ...]:
    """The names of the classes: those given, else those of the model's config, else none."""
    if labels is not None:
        return tuple(labels)
    known: Mapping[int, str] = getattr(getattr(model, "config", None), "id2label", None) or {}
    return tuple(known[index] for index in sorted(known))


def _by_function(function: Callable[[Any], Tensor], output: Any) -> Choice:
    value = function(output)
    name = getattr(function, "__name__", type(function).__name__)
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"explain: the target function {name} must return one number as a tensor, got {got}")
    return Choice(value.reshape(()), "a function of the output" + ("" if name == "<lambda>" else f", {name}"))


def _as_target(target: Target | Name | tuple[Name, Name] | None) -> Target:
    if isinstance(target, Target):
        return target
    if target is None or isinstance(target, (int, str)):
        return Target(target)
    if isinstance(target, tuple) and len(target) == 2:
        return Target(*target)
    raise InputError(
        f"explain: target must be an index, a name, two of them for a contrast, a lxt_fx.Target or a function, "
        f"got {target!r}"
    )


def logits_of(output: Any, model_class: str) -> Tensor:
    """The logits [batch, ..., entries] of a model's output.

    Raises InputError if it has none.
    """
    found = output if isinstance(output, Tensor) else None
    if isinstance(output, Mapping):
        found = output.get("logits")
    elif found is None:
        found = getattr(output, "logits", None)
    if isinstance(found, Tensor) and found.dim() >= 2:
        return found
    fields = list(output) if isinstance(output, Mapping) else []
    example = next((f for f in fields if f != "loss"), None)
    has = f"it has {', '.join(fields)}" if fields else f"it is a {type(output).__name__}"
    raise InputError(
        f"explain: the output of {model_class} has no logits ({has}), so there is no default target; say what to "
        f"explain by a function that returns one number, such as target=lambda out: "
        + (f"out.{example}[0, 0].norm()" if example else "out[0].sum()")
    )


def position_of(target: TargetLike, text: TextInput, model_class: str) -> int | None:
    """The position of the text that a target is about, counted from 0; None for a function, which may read all of them.

    Raises InputError for one that the text does not have.
    """
    if callable(target):
        return None
    wanted, count = _as_target(target), len(text.tokens)
    position = _default_position(text, model_class) if wanted.position is None else wanted.position
    if not -count <= position < count:
        raise InputError(f"explain: position {position} is not in the text, which has {count} tokens (0 to {count - 1})")
    return position % count


def _position(
    target: Target, logits: Tensor, text: TextInput, model_class: str, positions: tuple[int, ...] | None
) -> tuple[int, str]:
    """The place in the logits to explain, and how to say it."""
    count = len(text.tokens)
    if logits.shape[1] != (count if positions is None else len(positions)):
        raise InputError(
            f"explain: {model_class} gives logits for {logits.shape[1]} positions of a text of {count} tokens; give "
            "target=a function of the output"
        )
    position = position_of(target, text, model_class)
    assert position is not None
    answered = list(range(count)) if positions is None else [answer % count for answer in positions]
    if position not in answered:
        raise InputError(
            f"explain: the target is at position {position}, and this module was made to answer at "
            f"{', '.join(map(str, answered))} only; transform the model with that position, or without positions"
        )
    predicts_next = "Masked" not in model_class and not model_class.endswith("ForTokenClassification")
    where = f" at position {position}, {'after' if predicts_next else 'for'} '{text.tokens[position]}'"
    return answered.index(position), where


def _default_position(text: TextInput, model_class: str) -> int:
    """The first mask of a masked LM, the last token that is not special of a token classifier, else the last token."""
    ids = text.id_list()
    if "Masked" in model_class:
        mask = getattr(text.tokenizer, "mask_token_id", None)
        if mask not in ids:
            raise InputError(
                f"explain: {model_class} fills masks, but the text has no mask token "
                f"({getattr(text.tokenizer, 'mask_token', None)}); write one, or give target=Target.at(position)"
            )
        return ids.index(mask)
    last = text.last_position()
    if model_class.endswith("ForTokenClassification"):
        special = set(text.tokenizer.all_special_ids)
        return max((i for i in range(last + 1) if ids[i] not in special), default=last)
    return last


def _entry(target: Target, row: Tensor, names: Names, position: int | None, where: str) -> Entry:
    token = int(row.argmax()) if target.token is None else target.token
    wanted = (token,) if target.minus is None else (token, target.minus)
    indices = names.find(wanted, row.detach())
    return Entry(indices, position, " minus ".join(f"logit of {names.show(i, _rank(row, i))}" for i in indices) + where)


def _rank(row: Tensor, index: int) -> int:
    return 1 + int((row > row[index]).sum())


def _in_range(index: int, row: Tensor, kind: str) -> int:
    if 0 <= index < len(row):
        return index
    raise InputError(f"explain: there is no {kind} {index}; the model has {len(row)} (0 to {len(row) - 1})")


@dataclass(frozen=True, slots=True)
class ClassNames:
    """The labels of a classifier; () where none are known."""

    labels: Sequence[str]

    def find(self, wanted: Sequence[Name], row: Tensor) -> tuple[int, ...]:
        """The classes of these indices and labels."""
        return tuple(_in_range(w, row, "class") if isinstance(w, int) else self._index(w) for w in wanted)

    def _index(self, label: str) -> int:
        if label in self.labels:
            return list(self.labels).index(label)
        known = ", ".join(repr(known) for known in self.labels[:20]) or "none; give an index"
        raise InputError(f"explain: the model has no class {label!r}; its classes are {known}")

    def show(self, index: int, rank: int) -> str:
        """`'cat' (class 3, rank 1)`, or only the number where the label says no more."""
        named = index < len(self.labels) and self.labels[index] != f"LABEL_{index}"
        return f"'{self.labels[index]}' (class {index}, rank {rank})" if named else f"class {index} (rank {rank})"


@dataclass(frozen=True, slots=True)
class TokenNames:
    """The vocabulary of a tokenizer."""

    tokenizer: Tokenizer

    def find(self, wanted: Sequence[Name], row: Tensor) -> tuple[int, ...]:
        """The tokens of these ids and strings.

        A string without a space in front is read with and without one (` Paris`, `Paris`: most tokenizers have both),
        the same way on both sides of a contrast, and the likelier reading is meant; one with a space is taken as it
        is.
        """
        readings = [self._readings(name, row) for name in wanted]
        joint = [pair for pair in zip(*readings, strict=True) if None not in pair]
        if joint:
            return max(joint, key=lambda pair: float(row[list(pair)].sum()))
        return tuple(next(i for i in reading if i is not None) for reading in readings)

    def _readings(self, name: Name, row: Tensor) -> tuple[int | None, int | None]:
        """The token without and with a space in front; None where that is not one token."""
        if isinstance(name, int):
            index = _in_range(name, row, "token id")
            return index, index
        bare = self._single(name)
        spaced = bare if name[:1].isspace() else self._single(f" {name}")
        if bare is None and spaced is None:
            raise InputError(self._not_one(name))
        return bare, spaced

    def _single(self, name: str) -> int | None:
        ids = self.tokenizer.encode(name, add_special_tokens=False)
        unknown = getattr(self.tokenizer, "unk_token_id", None)
        if len(ids) == 1 and (ids[0] != unknown or name == getattr(self.tokenizer, "unk_token", None)):
            return ids[0]
        return self.tokenizer.get_vocab().get(name)

    def _not_one(self, name: str) -> str:
        ids = self.tokenizer.encode(name, add_special_tokens=False)
        pieces = " ".join(f"'{token}'" for token in readable_tokens(self.tokenizer, ids))
        said = f"{len(ids)} tokens: {pieces}" if len(ids) > 1 else f"no token of its vocabulary but {pieces or 'nothing'}"
        return (
            f"explain: {name!r} is not one token of the tokenizer; it is {said}. A logit belongs to one token: explain "
            "one of the pieces, or give target=a function of the output"
        )

    def show(self, index: int, rank: int) -> str:
        """`' Paris' (rank 1)`."""
        return f"'{readable_tokens(self.tokenizer, [index])[0]}' (rank {rank})"
