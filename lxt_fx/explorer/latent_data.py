"""What is inside a model as the page has it: relevance by layer and token, by head, and of the strongest units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.explorer.plain import Payload, array
from lxt_fx.inside.corpus.result import Corpus
from lxt_fx.inside.latent_result import Latent
from lxt_fx.inside.latent_value import LatentValue
from lxt_fx.results.explanation import Explanation
from lxt_fx.results.readings import TextReading

UnitLabels = Mapping[tuple[str, int], str] | Corpus
"""Labels of units by place and unit, as `lxt_fx.labels` reads them; or a corpus, which has samples too."""

TOP, SAMPLES, AROUND = 20, 3, 12
"""How many units are shown for each explained number, how many samples of each, and tokens of a sample on either side."""

LARGEST = 2_000_000
"""The most numbers of an array: of the stream, of heads, of the positions of units."""


@dataclass(slots=True)
class _Found:
    """The places of a latent result that have the positions of one text, for one example: [numbers, positions, units]."""

    latent: Latent
    example: int
    reading: TextReading
    notes: list[str] = field(default_factory=list)

    def row(self, value: LatentValue) -> int | None:
        """The entry of the batch whose tokens are those of the text; None where the place has no such positions."""
        if not value.columns:
            return None
        rows = [row for row in value.rows(self.example) if tuple(value.text(row)[1]) == self.reading.tokens]
        return rows[0] if len(rows) == 1 else None

    def places(self, *, heads: bool = False, units: bool = False) -> dict[str, LatentValue]:
        """The places of the residual stream, with heads, or with other units; those that have these positions."""
        found = {}
        for name, value in self.latent.items():
            is_stream, has_heads = name.startswith("residual."), "heads" in value.axes
            kind = has_heads if heads else not has_heads and not is_stream if units else is_stream
            if kind and self.row(value) is not None:
                found[name] = value
        return found

    def fits(self, what: str, each: int) -> bool:
        """Whether so many numbers `each` for every explained number and position are not too many; else a note says so."""
        size = len(self.latent.numbers(self.example)) * len(self.reading.tokens) * each
        if size > LARGEST:
            self.notes.append(
                f"The relevance of {what}, {size} numbers, is too much for a page ({LARGEST} is the most); explain fewer "
                "numbers or a shorter text."
            )
        return size <= LARGEST

    def relevance(self, value: LatentValue) -> Tensor:
        """[numbers, positions, units] of the text's own tokens."""
        row = self.row(value)
        assert row is not None, "places() has asked"
        return value.by_token_and_unit()[:, row, value.text(row)[0]]

    def activation(self, value: LatentValue) -> Tensor:
        """[positions, units] of the text's own tokens."""
        row = self.row(value)
        assert row is not None, "places() has asked"
        return value.activation_by_token_and_unit()[row, value.text(row)[0]]


def latent_data(
    latent: Latent, explanation: Explanation, example: int, labels: UnitLabels | None
) -> tuple[Payload | None, list[str]]:
    """The latent values of one example beside its explanation, and what of them cannot be shown."""
    for at, part in enumerate(explanation.parts):
        if isinstance(part.reading, TextReading):
            found = _Found(latent, example, part.reading)
            if any(found.row(value) is not None for value in latent.values()):
                return _data(found, at, labels), found.notes
    return None, ["No place inside the model has the positions of a text of this result, so none is shown."]


def check_belongs(latent: Latent, explanation: Explanation, example: int) -> None:
    """Raises InputError for a latent result of other numbers or another text than those of the explanation."""
    own = latent.explanations[example]
    pairs = list(zip(own.numbers, explanation.numbers, strict=False))
    same = len(own.numbers) == len(explanation.numbers) and all(
        a.said == b.said and abs(a.value - b.value) <= 1e-3 * max(abs(a.value), abs(b.value)) for a, b in pairs
    )
    if not same:
        raise InputError(
            f"explore: the latent result explains {own.numbers[0]!r}, and the explanation {explanation.numbers[0]!r}; give "
            "the one whose target and text are those of the explanation, or the latent result alone"
        )


def _data(found: _Found, part: int, labels: UnitLabels | None) -> Payload:
    stream = found.places()
    return {
        "part": part,
        "layers": list(stream),
        "stream": _stream(found, list(stream.values())),
        "heads": _heads(found),
        "units": _units(found, labels),
    }


def _stream(found: _Found, places: Sequence[LatentValue]) -> Payload | None:
    """[numbers, layers, positions]: the relevance of the residual stream."""
    if not places or not found.fits("the residual stream", len(places)):
        return None
    return array(torch.stack([found.relevance(value).sum(2) for value in places], 1))


def _heads(found: _Found) -> Payload | None:
    """[numbers, layers, positions, heads], NaN behind the heads of a layer that has fewer than another."""
    places = found.places(heads=True)
    if not places:
        return None
    each = [found.relevance(value) for value in places.values()]
    most = max(one.shape[2] for one in each)
    if not found.fits("heads", len(each) * most):
        return None
    padded = [torch.nn.functional.pad(one, (0, most - one.shape[2]), value=torch.nan) for one in each]
    return {"places": list(places), "values": array(torch.stack(padded, 1))}


def _units(found: _Found, labels: UnitLabels | None) -> list[Payload]:
    """The units with the largest absolute relevance for each number, summed over tokens: neurons and features."""
    listed = list[Payload]()
    if not found.places(units=True) or not found.fits("units", TOP):
        return listed
    places = {name: (found.relevance(value), found.activation(value)) for name, value in found.places(units=True).items()}
    for number in range(len(found.latent.numbers(found.example))):
        scored = []
        for name, (relevance, _) in places.items():
            best = relevance[number].sum(0).abs().topk(min(TOP, relevance.shape[2]))
            scored += [(float(score), name, int(unit)) for score, unit in zip(*best, strict=True)]
        for _, name, unit in sorted(scored, key=lambda one: -one[0])[:TOP]:
            relevance, activation = (each[..., unit] for each in places[name])
            at = int(relevance[number].abs().argmax())
            listed.append({
                "number": number, "place": name, "unit": unit, "relevance": float(relevance[number].sum()),
                "activation": float(activation[at]), "label": _label(labels, name, unit),
                "by_position": array(relevance[number]), "samples": _samples(labels, name, unit),
            })  # fmt: skip
    return listed


def _label(labels: UnitLabels | None, place: str, unit: int) -> str | None:
    named = labels.labels if isinstance(labels, Corpus) else labels
    return None if named is None else named.get((place, unit))


def _samples(labels: UnitLabels | None, place: str, unit: int) -> list[str]:
    if not isinstance(labels, Corpus) or place not in labels or unit not in labels[place]:
        return []
    return [sample_text(top.tokens, top.position, top.token) for top in labels.unit(place, unit).by_activation[:SAMPLES]]


def sample_text(tokens: Sequence[str], position: int, token: str) -> str:
    """A sample in words, with the token at the position marked and some tokens on either side."""
    if not 0 <= position < len(tokens):
        return token
    before, after = tokens[max(0, position - AROUND) : position], tokens[position + 1 : position + 1 + AROUND]
    space = " " if token.startswith(" ") else ""
    return f"{''.join(before)}{space}«{token.lstrip(' ')}»{''.join(after)}".strip()
