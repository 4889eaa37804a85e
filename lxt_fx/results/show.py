"""The sheet that shows an explanation: a section for each input by its kind, with one colour scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lxt_fx.results.account import Account
from lxt_fx.results.merging import merged_pixels
from lxt_fx.results.origin import ExplainedNumber, Origin
from lxt_fx.results.part import Part
from lxt_fx.results.place import PlaceRelevance, place_relevance
from lxt_fx.results.readings import ImageReading, SoundReading, TextReading
from lxt_fx.views.panels import pictures
from lxt_fx.views.sheet import Bars, Matrix, Pictures, Section, Sheet, Tokens, Track, strongest_names
from lxt_fx.views.view import TIE, Facts, cells, number

IMAGE = "image"
TOP, NUMBERS = 8, 40
"""How many of the strongest places are listed, and how many numbers are drawn as bars."""


def sheet_of(
    parts: Sequence[Part],
    numbers: Sequence[ExplainedNumber],
    origin: Origin,
    account: Account | None,
    patch: int | None = None,
) -> Sheet:
    """What the views of an explanation show. Pictures are in squares of `patch` pixels, None for the model's own
    patches."""
    shown = in_patches(parts, patch)
    scale = largest(shown)
    sections = [section for part in shown for section in sections_of(part, numbers, scale, title=len(parts) > 1)]
    facts = _facts(shown, numbers, origin, scale)
    listed = not parts[0].several and (len(parts) > 1 or isinstance(parts[0].reading, TextReading))
    return Sheet(facts, tuple(sections), _top(shown) if listed else (), _notes(account))


def _notes(account: Account | None) -> tuple[str, ...]:
    """The account in words, and what these mean."""
    if account is None:
        return ()
    meanings = account.meanings()
    said = f"Accounts: {account}.".replace(" %", f"{TIE}%")
    return (said, *([f"{meanings[0].upper()}{meanings[1:]}."] if meanings else []))


def in_patches(parts: Sequence[Part], patch: int | None = None) -> tuple[Part, ...]:
    """The parts with pictures in squares of `patch` pixels, or of the model's own patches."""
    return tuple(_in_patches(part, patch) for part in parts)


def _in_patches(part: Part, patch: int | None) -> Part:
    reading = part.reading
    if not isinstance(reading, ImageReading):
        return part
    if patch is None and (reading.patch <= reading.side or reading.patch % reading.side):
        return part
    return merged_pixels(part, reading, reading.patch if patch is None else patch, "views of an explanation")


def largest(parts: Sequence[Part]) -> Tensor:
    """[numbers]: the largest absolute relevance at any place of any part, for each explained number."""
    return torch.stack([part.by_number().double().abs().flatten(1).amax(1) for part in parts]).amax(0)


def sections_of(part: Part, numbers: Sequence[ExplainedNumber], scale: Tensor, *, title: bool) -> list[Section]:
    """What shows a part: one section, or where several numbers were explained for something other than a text, one for each
    of them."""
    name = part.name if title else ""
    if not part.several:
        return [_section(part, float(scale[0]), name)]
    if isinstance(part.reading, TextReading):
        tokens = part.reading.tokens
        shares = part.values.double() / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
        rows = tuple((number.label, number.value) for number in numbers)
        return [Matrix(name, rows, tokens, shares, len(tokens) - part.reading.answer)]
    found = []
    for at, explained in enumerate(numbers):
        one = replace(part, axes=part.axes[1:], values=part.values[at], units=None)
        value = f"{explained.value:.4g}".replace("-", "−")
        said = f"{explained.said}{TIE}={TIE}{value}"
        found.append(_section(one, float(scale[at]), f"{name}: {said}" if name else said))
    return found


def top_places(parts: Sequence[Part], k: int) -> tuple[PlaceRelevance, ...]:
    """The k places of largest absolute relevance of all parts, strongest first."""
    flat = torch.cat([part.values.double().flatten() for part in parts])
    offsets = [0]
    for part in parts:
        offsets.append(offsets[-1] + part.values.numel())
    found = []
    for at in flat.abs().argsort(descending=True, stable=True)[:k].tolist():
        which = next(i for i in range(len(parts)) if at < offsets[i + 1])
        found.append(place_relevance(parts[which], at - offsets[which]))
    return tuple(found)


def _section(part: Part, scale: float, title: str) -> Section:
    reading, values = part.reading, part.values
    if isinstance(reading, TextReading):
        return Tokens(title, cells(marked(reading), values, scale))
    if isinstance(reading, ImageReading):
        title = "" if title == IMAGE else title  # the panels say it
        return Pictures(title, pictures(reading.shown, values, reading.side, scale), values, scale)
    if isinstance(reading, SoundReading) and values.dim() == 1:
        return _track(title, reading, values, scale)
    names = [part.place(flat)[1] for flat in range(values.numel())]
    bars, left_out = strongest_names(names, values.flatten(), NUMBERS)
    return Bars(title, bars, scale, left_out)


def marked(reading: TextReading) -> tuple[str, ...]:
    """The tokens as they are drawn, with `▸` before the first answer token."""
    first = len(reading.tokens) - reading.answer
    if not reading.answer:
        return reading.tokens
    token = reading.tokens[first]
    shown = f" ▸{token[1:]}" if token.startswith(" ") else f"▸{token}"
    return (*reading.tokens[:first], shown, *reading.tokens[first + 1 :])


def _track(title: str, reading: SoundReading, values: Tensor, scale: float) -> Track:
    """The sound as long as it is: some models are given silence behind it (Whisper: up to 30 s), whose relevance stands in
    the title. A step is so short that it has little relevance beside a word, so beside a text it has a scale of its own."""
    own, said = int(min(len(values), own_steps(reading))), list[str]()
    if own < len(values):
        said = [f"{(len(values) - own) * reading.step:.3g} s of silence behind it: {number(float(values[own:].sum()))}"]
    if title:
        said.insert(0, f"{title}; relevance {number(float(values[:own].sum()))} on a scale of its own")
        scale = float(values[:own].abs().max())
    return Track("; ".join(said), values[:own], scale, reading.step, reading.start, loudness(reading, own))


def own_steps(reading: SoundReading) -> float:
    """How many steps the sound is long; infinite where that is not known."""
    if reading.waveform is None or not reading.rate:
        return math.inf
    return max(1, math.ceil(len(reading.waveform) / reading.rate / reading.step))


def loudness(reading: SoundReading, steps: int) -> Tensor | None:
    """The root mean square of the samples of each step, the loudest as 1."""
    if reading.waveform is None or reading.rate is None or not len(reading.waveform):
        return None
    samples = reading.waveform.double().flatten()
    index = (torch.arange(len(samples)) / (reading.step * reading.rate)).long().clamp(max=steps - 1)
    squares = torch.zeros(steps, dtype=torch.float64).index_add_(0, index, samples.square())
    loud = (squares / torch.bincount(index, minlength=steps).clamp(min=1)).sqrt()
    return loud / loud.max().clamp(min=1e-12)


def _facts(parts: Sequence[Part], numbers: Sequence[ExplainedNumber], origin: Origin, scale: Tensor) -> Facts:
    main = parts[0]
    total = sum(float(part.values.sum(dtype=torch.float64)) for part in parts)
    made = (origin.table_name, origin.model_class, origin.seconds)
    if not main.several:
        return Facts(numbers[0].said, numbers[0].value, total, float(scale[0]), *made)
    said = f"{len(numbers)} explained numbers, one below another"
    if isinstance(main.reading, TextReading):
        said = f"relevance of the tokens (columns) for {len(numbers)} explained numbers (rows)"
        if main.reading.answer == len(numbers):
            said = "relevance of each answer token (rows) from the tokens before it"
    return Facts(said, None, total, float(scale.max()), *made)


def _top(parts: Sequence[Part]) -> tuple[tuple[float, str, str], ...]:
    readings = {part.name: part.reading for part in parts}

    def where(place: PlaceRelevance) -> str:
        reading, at, found = readings[place.part], place.position, [place.part] if len(parts) > 1 else []
        if isinstance(reading, TextReading) and isinstance(at, int):
            found += [f"position {at}", *(["special"] if reading.special[at] else [])]
        if isinstance(reading, SoundReading) and isinstance(at, int) and at >= own_steps(reading):
            found.append("the silence behind it")
        return ", ".join(found)

    return tuple((place.relevance, place.token, where(place)) for place in top_places(parts, TOP))
