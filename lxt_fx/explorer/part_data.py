"""The parts of an explanation as the page has them: what a person reads, and the relevance of its places."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lxt_fx.explorer.plain import Payload, array, picture
from lxt_fx.results.part import Part
from lxt_fx.results.readings import ImageReading, SoundReading, TextReading
from lxt_fx.results.show import loudness
from lxt_fx.results.words import sentences, words

MOST_NUMBERS = 2000
"""The most places of a part of numbers; of more the strongest are shown."""

WINDOW, HOP, FRAMES, DECIBELS = 0.025, 0.010, 800, 80
"""Of a spectrogram: seconds of a window and between two of them, the most columns, and from loudest to white."""


def part_data(part: Part) -> Payload:
    """A part, with `values` [places] or, of several numbers, [numbers, places]."""
    reading = part.reading
    if isinstance(reading, TextReading):
        return _with_values(part, "text", text_data(reading))
    if isinstance(reading, ImageReading):
        return _with_values(part, "image", _image(reading))
    if isinstance(reading, SoundReading) and len(part.place_shape) == 1:
        return _with_values(part, "sound", _sound(reading, part.place_shape[0]))
    return _numbers(part)


def text_data(reading: TextReading) -> Payload:
    """The tokens of a text, and which of them are words and sentences."""
    return {
        "tokens": list(reading.tokens),
        "ids": None if reading.ids is None else list(reading.ids),
        "special": list(reading.special),
        "segments": list(reading.segments),
        "answer": reading.answer,
        "words": _spans(words(reading)),
        "sentences": _spans(sentences(reading)),
    }


def _with_values(part: Part, kind: str, facts: Payload) -> Payload:
    return {"name": part.name, "kind": kind, "several": part.several, "values": array(part.values), **facts}


def _spans(ranges: Sequence[range]) -> list[list[int]]:
    return [[found.start, found.stop] for found in ranges]


def _image(reading: ImageReading) -> Payload:
    height, width, _ = reading.shown.shape
    sizes = {"width": width, "height": height, "patch": reading.patch, "side": reading.side}
    return {"png": picture(reading.shown), **sizes}


def _sound(reading: SoundReading, steps: int) -> Payload:
    loud = loudness(reading, steps)
    return {
        "step": reading.step,
        "start": reading.start,
        "loudness": None if loud is None else array(loud),
        "spectrogram": _spectrogram(reading),
        "seconds": reading.waveform.numel() / reading.rate if reading.waveform is not None and reading.rate else None,
    }


def _spectrogram(reading: SoundReading) -> str | None:
    """The loudness of each frequency (upwards) over time, the loudest in black, 80 dB below it
    in white."""
    wave, rate = reading.waveform, reading.rate
    if wave is None or not rate or wave.numel() < 2:
        return None
    samples = wave.double().flatten()
    size = max(2, min(round(WINDOW * rate), len(samples)))
    hop = max(1, round(HOP * rate), -(-len(samples) // FRAMES))
    padded = torch.nn.functional.pad(samples, (0, size))
    windows = padded.unfold(0, size, hop)[:FRAMES] * torch.hann_window(size, dtype=torch.float64)
    power = torch.fft.rfft(windows).abs().square().T.flip(0)  # [frequencies, times], the highest on top
    decibels = 10 * (power / power.max().clamp(min=1e-30)).clamp(min=10 ** (-DECIBELS / 10)).log10()
    grey = (-decibels / DECIBELS * 255).round().to(torch.uint8)
    return picture(grey[..., None].expand(*grey.shape, 3))


def _numbers(part: Part) -> Payload:
    """The numbers by name; of very many the strongest for any of the explained numbers, in their order."""
    values = part.by_number().flatten(1)
    strongest = values.abs().amax(0).argsort(descending=True, stable=True)[:MOST_NUMBERS].sort().values
    shown: Tensor = values[:, strongest]
    return {
        "name": part.name,
        "kind": "numbers",
        "several": part.several,
        "values": array(shown if part.several else shown[0]),
        "names": [part.place(at)[1] for at in strongest.tolist()],
        "left_out": values.shape[1] - len(strongest),
    }
