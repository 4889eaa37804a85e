"""Sounds with classes for each of their frames (who speaks when): logits [batch, frames, classes]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lxt_fx.attribution.target import Wanted
from lxt_fx.attribution.target_entry import indices_of, logits_of
from lxt_fx.base.errors import InputError
from lxt_fx.inputs.given import Example
from lxt_fx.tasks.asked import Asked
from lxt_fx.tasks.entry import classes, entry_in
from lxt_fx.tasks.rows import row_of
from lxt_fx.tasks.task import Context, Number
from lxt_fx.tasks.transcribing import frames_of


@dataclass(frozen=True, slots=True)
class Frames:
    """The logit of a class at a frame. By default the frame and the class with the largest logit; an index or a name is a
    class, at the frame that shows it best; `Target.at(frame, class)` is both."""

    name: str = "classes of frames"

    def number(self, asked: Asked, output: Any, index: int, example: Example, context: Context) -> Number:
        """An entry of logits [batch, frames, classes]. Frames of padding do not count."""
        row = row_of(example, index, "input_values", "input_features")
        logits = logits_of(context.reading, output)[row]
        logits = logits[: frames_of(len(logits), row, context)]
        frame, chosen = self._frame(asked, logits.detach(), context)
        return entry_in(chosen, logits[frame], classes(context), f" at frame {frame} of {len(logits)}").of(logits[frame])

    def _frame(self, asked: Asked, logits: Any, context: Context) -> tuple[int, Asked]:
        if asked.spot is None and asked.entry is None:
            frame, best = divmod(int(logits.argmax()), logits.shape[1])
            return frame, Asked(best, asked.minus)
        if asked.spot is None:
            (named,) = indices_of(Wanted(asked.entry), logits[0], classes(context))
            return int(logits[:, named].argmax()), Asked(named, asked.minus)
        if isinstance(asked.spot, int) and -len(logits) <= asked.spot < len(logits):
            return asked.spot % len(logits), Asked(asked.entry, asked.minus)
        got = asked.spot if isinstance(asked.spot, (int, tuple)) else "a mask"
        raise InputError(
            f"{context.function}: the sound has {len(logits)} frames (0 to {len(logits) - 1}), and no frame {got}; "
            "write Target.at(frame, class)"
        )
