"""Where a target lies in a model's output: which entry of the logits, at which position."""

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
    """What one must know to find a target in an output: the function that the user called (for error messages), the class
    of the model, the names of its classes, and the positions of its logits (None: all)."""

    function: str
    model_class: str
    labels: Sequence[str] = ()
    positions: tuple[int, ...] | None = None

    @classmethod
    def of(cls, function: str, model: nn.Module, labels: Sequence[str] | None) -> Reading:
        """The reading of outputs of this model or explained module."""
        names = class_labels(model, labels)
        if isinstance(model, Explained):
            return cls(function, model.record.model_class, names, model.record.positions)
        return cls(function, type(model).__name__, names)

    @property
    def tags(self) -> bool:
        """Whether the model is a token classifier."""
        return self.model_class.endswith("ForTokenClassification")

    @property
    def predicts_next(self) -> bool:
        """Whether the logits at a token predict the next one."""
        return "Masked" not in self.model_class and not self.tags

    def names(self, text: TextInput | None) -> ClassNames | TokenNames:
        """The names of the entries: tokens for logits [positions, entries] of a text, else classes."""
        if text is None or self.tags:
            return ClassNames(self.labels, self.function)
        return TokenNames(text.tokenizer, self.function)


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """The number to explain, as a scalar tensor with its autograd graph, and a phrase that says which number it is."""

    value: Tensor
    said: str


@dataclass(frozen=True, slots=True)
class LogitEntry:
    """Where a target lies: an entry of the logits, minus a second one for a contrast. `place` is the index of the position
    in logits [batch, positions, entries], None for logits [batch, classes]."""

    indices: tuple[int, ...]
    place: int | None
    said: str

    def of(self, logits: Tensor) -> Tensor:
        """The number in the logits of one example, [positions, entries] or [entries]."""
        own = logits if self.place is None else logits[self.place]
        return own[self.indices[0]] if len(self.indices) == 1 else own[self.indices[0]] - own[self.indices[1]]


def choose(
    reading: Reading, target: Wanted | TargetFunction, output: Any, text: TextInput | None, example: int = 0
) -> Choice:
    """The number that a target means in a model's output, for this example of the batch. `text` is what the example reads,
    None if it reads no text.

    Raises InputError if the output has no logits, or the target does not fit them.
    """
    if not isinstance(target, Wanted):
        return _by_function(reading, target, output)
    entry = entry_of(reading, target, output, text, example)
    return Choice(entry.of(logits_of(reading, output)[example]), entry.said)


def entry_of(reading: Reading, target: Wanted, output: Any, text: TextInput | None, example: int = 0) -> LogitEntry:
    """The entry of the logits that a target means for this example of the batch. The same entry can then be read in other
    outputs.

    Raises InputError as `choose` does.
    """
    logits = logits_of(reading, output)
    count = check_shape(reading, [target], logits)
    if count is None:
        own, place, where, text = logits[example], None, "", None
    else:
        place = place_of(reading, target, count, text)
        own, where = logits[example, place], _where(reading, place, count, text)
    names = reading.names(text)
    indices = indices_of(target, own, names)
    return LogitEntry(indices, place, " minus ".join(f"logit of {names.show(i, _rank(own, i))}" for i in indices) + where)


def check_shape(reading: Reading, targets: Sequence[Wanted], logits: Tensor) -> int | None:
    """The number of positions of logits [batch, positions, entries]; None for logits [batch, classes].

    Raises InputError for logits of another shape, and for a target with a position if the logits have none.
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


def indices_of(target: Wanted, logits: Tensor, names: Names) -> tuple[int, ...]:
    """The index that a target means in logits [entries]; for a contrast, also that of the logit that is subtracted."""
    token = int(logits.argmax()) if target.token is None else target.token
    return names.find((token,) if target.minus is None else (token, target.minus), logits.detach())


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
    """The index of the target's position among the `count` positions of the logits.

    Raises InputError if the logits do not have that position, or it is not clear which one is meant.
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
        f"{', '.join(map(str, answered))} only; transform the model with this position, or without positions=..."
    )


def position_of(reading: Reading, target: Wanted, text: TextInput) -> int:
    """The position of the text at which a target is read, counted from 0.

    Raises InputError for a position that the text does not have.
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
            f"{reading.function}: the token ids are not known, so there is no default position at which "
            f"{reading.model_class} can be explained; give Target.at(position, ...), or input_ids"
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


def _rank(logits: Tensor, index: int) -> int:
    return 1 + int((logits > logits[index]).sum())


def _by_function(reading: Reading, function: TargetFunction, output: Any) -> Choice:
    value = function(output)
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(
            f"{reading.function}: the target function {name_of(function)} must return one number as a tensor, got {got}"
        )
    return Choice(value.reshape(()), said_of(function))


def name_of(function: TargetFunction) -> str:
    """The name of a function, or of the class of another callable."""
    return str(getattr(function, "__name__", type(function).__name__))


def said_of(function: TargetFunction) -> str:
    """A target function in a sentence."""
    name = name_of(function)
    return "a function of the output" + ("" if name == "<lambda>" else f", {name}")
