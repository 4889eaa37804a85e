"""Images beside texts (CLIP): `logits_per_image` [images, texts]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lxt_fx.base.errors import InputError
from lxt_fx.inputs.given import Example
from lxt_fx.tasks.asked import Asked
from lxt_fx.tasks.likeness import plain_text, quoted
from lxt_fx.tasks.rows import of_leaf
from lxt_fx.tasks.task import Context, Number


@dataclass(frozen=True, slots=True)
class Matching:
    """The score of an image and a text. With one text for the image that is their score; with several it is that of the
    best text by default, of a text by its index or its words, or the difference of two."""

    name: str = "matching"

    def number(self, asked: Asked, output: Any, index: int, example: Example, context: Context) -> Number:
        """An entry of `logits_per_image`, or the difference of two."""
        asked.refuse_spot(context.function, "a score of an image and a text has none")
        scores = output["logits_per_image"]
        images = [place.within for place in of_leaf(example, "pixel_values")]
        texts = [place.within for place in of_leaf(example, "input_ids")]
        image = images[0] if images else index
        rows = [row for row in texts if isinstance(row, int)] or list(range(scores.shape[1]))
        if not images and len(scores) == 1:
            image = 0
        own = scores[image, rows]
        chosen = [int(own.argmax()) if asked.entry is None else self._text(asked.entry, rows, context)]
        chosen += [] if asked.minus is None else [self._text(asked.minus, rows, context)]
        shown = [quoted(plain_text(context, rows[each])) for each in chosen]
        value = own[chosen[0]] if len(chosen) == 1 else own[chosen[0]] - own[chosen[1]]
        said = " minus ".join(f"score of the image and {each}" for each in shown)
        return Number(value, said, " minus ".join(each[1:-1] for each in shown))

    def _text(self, wanted: int | str, rows: list[int], context: Context) -> int:
        function = context.function
        if isinstance(wanted, int):
            if -len(rows) <= wanted < len(rows):
                return wanted % len(rows)
            raise InputError(f"{function}: there is no text {wanted}; the image has {len(rows)} (0 to {len(rows) - 1})")
        shown = [plain_text(context, row).casefold() for row in rows]
        if wanted.strip().casefold() in shown:
            return shown.index(wanted.strip().casefold())
        raise InputError(
            f"{function}: there is no text {wanted!r} beside the image; there are {', '.join(map(repr, shown))}"
        )
