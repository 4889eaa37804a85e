"""Inputs as a person reads them: the tokens of a text, the picture that a model saw, a sound with its time axis."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class TextReading:
    """A text as tokens. Every tuple has one item for each token; padding is left out.

    `tokens` are as a person reads them, with a leading space where a word starts. `ids` is None if the model was given
    embeddings, or tokens were merged. `special` says which tokens the tokenizer added (BOS, [CLS], [SEP], marks of a chat
    template). `segments` numbers the texts of a pair (0, 1; special tokens belong to the text before them), all 0 for one
    text. The last `answer` tokens were appended so that the model predicts what is explained. `text` is the text as a
    person gave it, and `spans` the place of each token in it as (start, end) in characters, (0, 0) for special tokens; both
    None where it is not known."""

    tokens: tuple[str, ...]
    ids: tuple[int, ...] | None
    special: tuple[bool, ...]
    segments: tuple[int, ...]
    answer: int = 0
    text: str | None = None
    spans: tuple[tuple[int, int], ...] | None = None

    def __repr__(self) -> str:
        return f"TextReading({len(self.tokens)} tokens)"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ImageReading:
    """A picture as the model saw it, after resizing and cropping: `shown` [height, width, 3] in uint8. `patch` is the side
    of the model's patches in pixels, 1 if it has none. A place of the relevance is a square of `side` x `side` pixels.
    `pixel_values` [channels, height, width] is what the model was given, where that is a grid of pixels and was saved."""

    shown: Tensor
    patch: int = 1
    side: int = 1
    pixel_values: Tensor | None = None

    def __repr__(self) -> str:
        return f"ImageReading({self.shown.shape[0]} x {self.shown.shape[1]} pixels)"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class SoundReading:
    """A sound whose places are steps of `step` seconds from `start` on. `waveform` [samples] has `rate` samples a second
    and begins at `start`; it is None if the model was given features."""

    step: float
    waveform: Tensor | None = None
    rate: int | None = None
    start: float = 0.0

    def __repr__(self) -> str:
        return f"SoundReading(steps of {self.step:.4g} s)"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class NumbersReading:
    """Numbers of any other kind (a table's columns, boxes): a name for each place where they have names, else empty."""

    names: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"NumbersReading({len(self.names)} names)"


Reading = TextReading | ImageReading | SoundReading | NumbersReading
