"""The sheet that shows an explanation: a section for each input by its kind, with one colour scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lxt_fx.results.account import Account
from lxt_fx.results.gap import gap_sentences
from lxt_fx.results.look import Asked, Seen, seen
from lxt_fx.results.look import in_patches as in_patches
from lxt_fx.results.origin import ABSOLUTE, SOME, ExplainedNumber, Origin
from lxt_fx.results.part import Part
from lxt_fx.results.place import PlaceRelevance, place_relevance
from lxt_fx.results.readings import ImageReading, SoundReading, TextReading
from lxt_fx.views.panels import pictures
from lxt_fx.views.scaling import Ending, Scaling, scaling
from lxt_fx.views.sheet import Bars, Matrix, Pictures, Section, Sheet, Strong, Tokens, Track, strongest_names
from lxt_fx.views.view import TIE, Facts, cells, number, safe

IMAGE = "image"
TOP, NUMBERS = 8, 40
"""How many of the strongest places are listed, and how many numbers are drawn as bars."""

SEVERAL = (
    "The relevance of a number need not sum to its value: biases, the softmax and the like absorb the rest; lxt_fx.audit "
    "says where."
)


def sheet_of(
    parts: Sequence[Part],
    numbers: Sequence[ExplainedNumber],
    origin: Origin,
    account: Account | None,
    asked: Asked,
) -> Sheet:
    """What the views of an explanation show."""
    shown = seen(parts, asked)
    scales = scales_of([shown], asked)
    sections = [section for one in shown for section in sections_of(one, numbers, scales, title=len(parts) > 1)]
    facts = _facts(parts, numbers, origin, scales, ending([shown], scales, asked))
    listed = not parts[0].several and (len(parts) > 1 or isinstance(parts[0].reading, TextReading))
    return Sheet(facts, tuple(sections), _top(shown, scales[0]) if listed else (), _notes(parts, numbers, account))


def _notes(parts: Sequence[Part], numbers: Sequence[ExplainedNumber], account: Account | None) -> tuple[str, ...]:
    """Why the relevance does not sum to the explained number: the account in words and what these mean, or in general."""
    if account is not None:
        meanings = account.meanings()
        said = f"Accounts: {account}.".replace(" %", f"{TIE}%")
        return (said, *([_sentence(meanings)] if meanings else []))
    if parts[0].several:
        return () if ABSOLUTE in numbers[0].said or SOME in numbers[0].said else (SEVERAL,)
    total = sum(float(part.values.sum(dtype=torch.float64)) for part in parts)
    return tuple(_sentence(said) for said in gap_sentences(parts, numbers[0], total, None))


def _sentence(said: str) -> str:
    return f"{said[0].upper()}{said[1:]}."


def scales_of(shown: Sequence[Sequence[Seen]], asked: Asked) -> tuple[Scaling, ...]:
    """The scale of each explained number, one for all parts of all explanations."""
    every = [one for parts in shown for one in parts]
    found = []
    for at in range(len(every[0].counts)):
        own = [one.part.by_number()[at][one.counts[at]].double() for one in every]
        found.append(scaling(torch.cat(own), None, asked.ends))
    return tuple(found)


def ending(shown: Sequence[Sequence[Seen]], scales: tuple[Scaling, ...], asked: Asked) -> Ending:
    """Where the colours end, and what is left out of them."""
    every = [one for parts in shown for one in parts]
    kinds = {one.part.kind for one in every}
    names = {"text": asked.place, "image": "square", "sound": "step", "numbers": "number"}
    place = names[kinds.pop()] if len(kinds) == 1 else "place"
    left_out = tuple(amount for one in every for amount in one.left_out)
    return Ending(scales, "cell" if len(scales) > 1 and place == asked.place else place, left_out)


def sections_of(
    shown: Seen, numbers: Sequence[ExplainedNumber], scales: Sequence[Scaling], *, title: bool
) -> list[Section]:
    """What shows a part: one section, or where several numbers were explained for something other than a text, one for each
    of them."""
    part = shown.part
    name = part.name if title else ""
    if not part.several:
        return [_section(part, scales[0], shown.counts[0], name)]
    if isinstance(part.reading, TextReading):
        return [_matrix(shown, part.reading, numbers, scales, name)]
    found = []
    for at, explained in enumerate(numbers):
        one = replace(part, axes=part.axes[1:], values=part.values[at], units=None)
        value = f"{explained.value:.4g}".replace("-", "−")
        said = f"{explained.said}{TIE}={TIE}{value}"
        found.append(_section(one, scales[at], shown.counts[at], f"{name}: {said}" if name else said))
    return found


def _matrix(
    shown: Seen, reading: TextReading, numbers: Sequence[ExplainedNumber], scales: Sequence[Scaling], name: str
) -> Matrix:
    values, counts = shown.part.values, shown.counts
    pairs = list(zip(scales, values, strict=True))
    return Matrix(
        name,
        tuple((number.label, number.value) for number in numbers),
        tuple(map(safe, reading.tokens)),
        torch.stack([scale.shares(row) for scale, row in pairs]).where(counts, 0),
        len(reading.tokens) - reading.answer,
        torch.stack([scale.goes_beyond(row) for scale, row in pairs]) & counts,
        shown.read & ~counts,
        values,
    )


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


def _section(part: Part, scale: Scaling, counts: Tensor, title: str) -> Section:
    reading, values = part.reading, part.values
    if isinstance(reading, TextReading):
        return Tokens(title, cells(marked(reading), values, scale, counts))
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


def _track(title: str, reading: SoundReading, values: Tensor, scale: Scaling) -> Track:
    """The sound as long as it is: some models are given silence behind it (Whisper: up to 30 s), whose relevance stands in
    the title. A step is so short that it has little relevance beside a word, so beside a text it has a scale of its own."""
    own, said = int(min(len(values), own_steps(reading))), list[str]()
    if own < len(values):
        said = [f"{(len(values) - own) * reading.step:.3g} s of silence behind it: {number(float(values[own:].sum()))}"]
    if title:
        said.insert(0, f"{title}; relevance {number(float(values[:own].sum()))} on a scale of its own")
        scale = scaling(values[:own], None, scale.kind)
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


def _facts(
    parts: Sequence[Part], numbers: Sequence[ExplainedNumber], origin: Origin, scales: Sequence[Scaling], ending: Ending
) -> Facts:
    main, end = parts[0], max(scale.end for scale in scales)
    total = sum(float(part.values.sum(dtype=torch.float64)) for part in parts)
    made = (total, end, origin.table_name, origin.model_class, origin.seconds)
    if not main.several:
        return Facts(numbers[0].said, numbers[0].value, *made, ending=ending)
    said = f"{len(numbers)} explained numbers, one below another"
    if isinstance(main.reading, TextReading):
        said = f"relevance of the tokens (columns) for {len(numbers)} explained numbers (rows)"
        if main.reading.answer == len(numbers):
            said = "relevance of each answer token (rows) from the tokens before it"
    return Facts(said, None, *made, ending=ending)


def _top(shown: Sequence[Seen], scale: Scaling) -> tuple[Strong, ...]:
    """The strongest places that count."""
    readings = {one.part.name: one.part.reading for one in shown}
    counting = [replace(one.part, values=one.part.values.where(one.counts[0], 0), units=None) for one in shown]

    def where(place: PlaceRelevance) -> str:
        reading, at, found = readings[place.part], place.position, [place.part] if len(shown) > 1 else []
        if isinstance(reading, TextReading) and isinstance(at, int):
            found += [f"position {at}", *(["special"] if reading.special[at] else [])]
        if isinstance(reading, SoundReading) and isinstance(at, int) and at >= own_steps(reading):
            found.append("the silence behind it")
        return ", ".join(found)

    every = top_places(counting, TOP)
    strongest = [place for place in every if place.relevance] or every
    shares = scale.shares(torch.tensor([place.relevance for place in strongest])).tolist()
    return tuple(
        Strong(place.relevance, share, safe(place.token), where(place))
        for place, share in zip(strongest, shares, strict=True)
    )
