"""The short names of an explanation: its explained number, where it comes from, and its first part."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.results.origin import ExplainedNumber, Origin
from lxt_fx.results.part import Part, named_part
from lxt_fx.results.readings import ImageReading, TextReading


class NotInThisExplanation(InputError, AttributeError):
    """This explanation has no such value: it has several explained numbers, or an input of another kind. An AttributeError
    too, so that `hasattr` is False."""


class OfFirstPart:
    """What `Explanation` says of its first part, and of its one explained number. A name that it does not have raises
    NotInThisExplanation."""

    parts: tuple[Part, ...]
    numbers: tuple[ExplainedNumber, ...]
    origin: Origin

    # the explained numbers

    @property
    def axes(self) -> tuple[str, ...]:
        """The names of the axes of the first part."""
        return self.parts[0].axes

    @property
    def explained(self) -> str:
        """Which number was explained."""
        return self._number("explained").said

    @property
    def value(self) -> float:
        """The explained number."""
        return self._number("value").value

    @property
    def values(self) -> Tensor:
        """[numbers]: the explained numbers, in float64."""
        return torch.tensor([number.value for number in self.numbers], dtype=torch.float64)

    @property
    def logits(self) -> Tensor:
        """[numbers]: the explained numbers in the dtype of the relevance."""
        return self.values.to(self.relevance.dtype)

    @property
    def labels(self) -> tuple[str, ...]:
        """A short name for each explained number."""
        return tuple(number.label for number in self.numbers)

    def _number(self, name: str) -> ExplainedNumber:
        if self.parts[0].several:
            raise NotInThisExplanation(
                f"Explanation.{name}: {len(self.numbers)} numbers were explained; take explanation[i].{name}, or "
                "explanation.numbers"
            )
        return self.numbers[0]

    # where it comes from

    @property
    def table_name(self) -> str:
        """The name of the rule table."""
        return self.origin.table_name

    @property
    def model_class(self) -> str:
        """The class of the model."""
        return self.origin.model_class

    @property
    def seconds(self) -> float:
        """The time of the forward and backward pass, without capture."""
        return self.origin.seconds

    # the inputs

    def part(self, name: str) -> Part:
        """The part with this name. Raises InputError that lists the names."""
        return named_part(self.parts, name)

    def has(self, kind: str) -> bool:
        """Whether a part is of this kind: `text`, `image`, `sound`, `numbers`."""
        return any(part.kind == kind for part in self.parts)

    @property
    def relevance(self) -> Tensor:
        """The relevance of the first part, with `axes`."""
        return self.parts[0].values

    @property
    def attribution(self) -> Tensor:
        """The relevance of the first part before it was summed over what stands at a place: [tokens, hidden]; of a picture
        [channels, height, width]."""
        main = self.parts[0]
        if main.units is None:
            raise NotInThisExplanation(f"Explanation.attribution: the units of {main.name!r} were not saved")
        return main.units.movedim(-1, -3) if isinstance(main.reading, ImageReading) else main.units

    @property
    def tokens(self) -> tuple[str, ...]:
        """The tokens of the first part, with a leading space where a word starts."""
        return self._text("tokens").tokens

    @property
    def input_ids(self) -> tuple[int, ...]:
        """The token ids of the first part."""
        ids = self._text("input_ids").ids
        if ids is None:
            raise NotInThisExplanation("Explanation.input_ids: the model was given embeddings, or tokens were merged")
        return ids

    @property
    def answer_tokens(self) -> int:
        """How many tokens at the end were appended, so that the model predicts what is explained. Their relevance counts in
        the sum. Views mark the first of them by `▸`."""
        return self._text("answer_tokens").answer

    @property
    def prompt(self) -> int:
        """How many tokens stand before the answer."""
        reading = self._text("prompt")
        return len(reading.tokens) - reading.answer

    def of_prompt(self) -> Tensor:
        """The relevance of the tokens before the answer: [tokens], of several numbers [numbers, tokens]."""
        return self.relevance[..., : self.prompt]

    @property
    def shown(self) -> Tensor:
        """[height, width, 3] in uint8: the picture as the model saw it."""
        return self._image("shown").shown

    @property
    def pixel_values(self) -> Tensor:
        """[channels, height, width]: what the model was given."""
        pixels = self._image("pixel_values").pixel_values
        if pixels is None:
            raise NotInThisExplanation(
                "Explanation.pixel_values: the pixels that the model was given were not saved; take shown"
            )
        return pixels

    def _text(self, name: str) -> TextReading:
        reading = self.parts[0].reading
        return reading if isinstance(reading, TextReading) else self._no(name, "text")

    def _image(self, name: str) -> ImageReading:
        reading = self.parts[0].reading
        return reading if isinstance(reading, ImageReading) else self._no(name, "image")

    def _no(self, name: str, kind: str) -> NoReturn:
        other = next((part.name for part in self.parts if part.kind == kind), None)
        hint = f"explanation.part({other!r}).reading has one" if other else f"the parts are {self._part_names()}"
        raise NotInThisExplanation(f"Explanation.{name}: the first part is {self.parts[0].kind}, not {kind}; {hint}")

    def _part_names(self) -> str:
        return ", ".join(repr(part.name) for part in self.parts)
