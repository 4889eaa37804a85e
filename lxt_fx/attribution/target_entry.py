"""Where a target lies in a model's output: which entry of the logits, at which position of which text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lxt_fx.attribution.target import TargetFunction, Wanted
from lxt_fx.attribution.target_names import ClassNames, Names, TokenNames, class_labels
from lxt_fx.attribution.text_input import TextInput
from lxt_fx.base.errors import InputError
from lxt_fx.compiler.explained import Explained


@dataclass(frozen=True, slots=True)
class Reading:
    """What targets are read by: the function that the user called, which errors name, the class of the model, the names of
    its classes, and the positions that its logits are of (None: all)."""

    function: str
    model_class: str
    labels: Sequence[str] = ()
    positions: tuple[int, ...] | None = None

    @classmethod
    def of(cls, function: str, model: nn.Module, labels: Sequence[str] | None) -> Reading:
        """For the output of this model, or of what `transform` made of one."""
        names = class_labels(model, labels)
        if isinstance(model, Explained):
            return cls(function, model.record.model_class, names, model.record.positions)
        return cls(function, type(model).__name__, names)

    @property
    def tags(self) -> bool:
        """Whether each token has a class."""
        return self.model_class.endswith("ForTokenClassification")

    @property
    def predicts_next(self) -> bool:
        """Whether the logits of a token are about the one behind it."""
        return "Masked" not in self.model_class and not self.tags

    def names(self, text: TextInput | None) -> Names:
        """What the entries of logits [positions, entries] of a text are called, or of logits [entries] without one."""
        if text is None or self.tags:
            return ClassNames(self.labels, self.function)
        return TokenNames(text.tokenizer, self.function)


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """The number to explain, as a scalar tensor with its graph, and a sentence that says which it is."""

    value: Tensor
    said: str


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a target lies: an entry of the logits, less another if there are two, at a place of the logits' second dim, or
    in the only row of logits ([batch, classes])."""

    indices: tuple[int, ...]
    place: int | None
    said: str

    def of(self, logits: Tensor) -> Tensor:
        """The number in the logits of one input, [positions, entries] or [entries]."""
        row = logits if self.place is None else logits[self.place]
        return row[self.indices[0]] if len(self.indices) == 1 else row[self.indices[0]] - row[self.indices[1]]


def choose(
    reading: Reading, target: Wanted | TargetFunction, output: Any, text: TextInput | None, example: int = 0
) -> Choice:
    """The number of a model's output that a target means, for this example of the batch, which reads this text if any.

    Raises InputError if the output has no logits, or the target does not fit them.
    """
    if not isinstance(target, Wanted):
        return _by_function(reading, target, output)
    entry = entry_of(reading, target, output, text, example)
    return Choice(entry.of(logits_of(reading, output)[example]), entry.said)


def entry_of(reading: Reading, target: Wanted, output: Any, text: TextInput | None, example: int = 0) -> Entry:
    """Which entry of the logits a target means for this example of the batch, to find it again in another output.

    Raises InputError as `choose` does.
    """
    logits = logits_of(reading, output)
    count = check_shape(reading, [target], logits)
    if count is None:
        row, place, where, text = logits[example], None, "", None
    else:
        place = place_of(reading, target, count, text)
        row, where = logits[example, place], _where(reading, place, count, text)
    names = reading.names(text)
    indices = indices_of(target, row, names)
    return Entry(indices, place, " minus ".join(f"logit of {names.show(i, _rank(row, i))}" for i in indices) + where)


def check_shape(reading: Reading, targets: Sequence[Wanted], logits: Tensor) -> int | None:
    """How many positions logits [batch, positions, entries] have; None for [batch, classes].

    Raises InputError for other logits, and for a target at a position where there are none.
    """
    if logits.dim() == 3:
        return logits.shape[1]
    at_position = any(target.position is not None for target in targets)
    if logits.dim() == 2 and not at_position:
        return None
    said = "the target names a position, but" if at_position else "cannot choose a target:"
    raise InputError(
        f"{reading.function}: {said} the logits of {reading.model_class} have shape {list(logits.shape)}; give a class "
        "without a position, or a function of the output, such as lambda out: out.logits[0, 3]"
    )


def indices_of(target: Wanted, row: Tensor, names: Names) -> tuple[int, ...]:
    """The entry of a row of logits [entries] that a target means, and the one that it is compared with, if any."""
    token = int(row.argmax()) if target.token is None else target.token
    return names.find((token,) if target.minus is None else (token, target.minus), row.detach())


def logits_of(reading: Reading, output: Any) -> Tensor:
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
        f"{reading.function}: the output of {reading.model_class} has no logits ({has}), so there is no default target; "
        "say what to explain by a function that returns one number, such as target=lambda out: "
        + (f"out.{example}[0, 0].norm()" if example else "out[0].sum()")
    )


def place_of(reading: Reading, target: Wanted, count: int, text: TextInput | None) -> int:
    """The place among `count` rows of logits that a target is about.

    Raises InputError where the logits are not there, or it is not clear which position is meant.
    """
    asked = None if reading.positions is None else len(reading.positions)
    if text is None:
        return _place_without_text(reading, target, count)
    if count != (text.count if asked is None else asked):
        raise InputError(
            f"{reading.function}: {reading.model_class} gives logits for {count} positions of a text of {text.count} "
            "tokens; give a function of the output"
        )
    position = position_of(reading, target, text)
    answered = range(count) if reading.positions is None else [answer % text.count for answer in reading.positions]
    if position not in answered:
        raise InputError(_not_answered(reading, position, answered))
    return answered.index(position)


def _place_without_text(reading: Reading, target: Wanted, count: int) -> int:
    position = target.position
    if position is None:
        raise InputError(
            f"{reading.function}: {reading.model_class} has logits at {count} positions, and no text says which is meant: "
            "give Target.at(position, entry), such as Target.at(-1, 3), or a function of the output"
        )
    if reading.positions is not None:
        if position not in reading.positions:
            raise InputError(_not_answered(reading, position, reading.positions))
        return reading.positions.index(position)
    if not -count <= position < count:
        raise InputError(
            f"{reading.function}: position {position} is not among the {count} positions of the logits (0 to {count - 1})"
        )
    return position % count


def _not_answered(reading: Reading, position: int, answered: Sequence[int]) -> str:
    return (
        f"{reading.function}: the target is at position {position}, and this module was made to answer at "
        f"{', '.join(map(str, answered))} only; transform the model with that position, or without positions"
    )


def position_of(reading: Reading, target: Wanted, text: TextInput) -> int:
    """The position of the text that a target is about, counted from 0.

    Raises InputError for one that the text does not have.
    """
    position = _default_position(reading, text) if target.position is None else target.position
    if -text.count <= position < text.count:
        return position % text.count
    raise InputError(
        f"{reading.function}: position {position} is not in the text, which has {text.count} tokens (0 to {text.count - 1})"
    )


def _default_position(reading: Reading, text: TextInput) -> int:
    """The first mask of a masked LM, the last token that is not special of a token classifier, else the last token."""
    if reading.predicts_next:
        return text.last_position()
    if not text.ids_known:
        raise InputError(
            f"{reading.function}: the ids of the tokens are not known, so it is not clear at which one "
            f"{reading.model_class} is to be explained; give Target.at(position, ...), or input_ids"
        )
    ids = text.id_list()
    if reading.tags:
        special, last = set(text.tokenizer.all_special_ids), text.last_position()
        return max((i for i in range(last + 1) if ids[i] not in special), default=last)
    mask = getattr(text.tokenizer, "mask_token_id", None)
    if mask not in ids:
        raise InputError(
            f"{reading.function}: {reading.model_class} fills masks, but the text has no mask token "
            f"({getattr(text.tokenizer, 'mask_token', None)}); write one, or give target=Target.at(position)"
        )
    return ids.index(mask)


def _where(reading: Reading, place: int, count: int, text: TextInput | None) -> str:
    """`at position 3, after ' is'`."""
    if text is None:
        return f" at position {place if reading.positions is None else reading.positions[place]}"
    position = place if reading.positions is None else reading.positions[place] % text.count
    return f" at position {position}, {'after' if reading.predicts_next else 'for'} '{text.tokens[position]}'"


def _rank(row: Tensor, index: int) -> int:
    return 1 + int((row > row[index]).sum())


def _by_function(reading: Reading, function: TargetFunction, output: Any) -> Choice:
    value = function(output)
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(
            f"{reading.function}: the target function {name_of(function)} must return one number as a tensor, got {got}"
        )
    return Choice(value.reshape(()), said_of(function))


def name_of(function: TargetFunction) -> str:
    """The name of a function; of another callable that of its class."""
    return str(getattr(function, "__name__", type(function).__name__))


def said_of(function: TargetFunction) -> str:
    """A target function in a sentence."""
    name = name_of(function)
    return "a function of the output" + ("" if name == "<lambda>" else f", {name}")
