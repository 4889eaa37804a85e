"""A unit as HTML, light and dark, by the sheets of all views."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from lxt_fx.inside.corpus.kept_samples import pixels_of
from lxt_fx.inside.corpus.unit_facts import TopSample, UnitFacts
from lxt_fx.inside.corpus.unit_view import marked, window
from lxt_fx.views.page import fragment
from lxt_fx.views.panels import pictures
from lxt_fx.views.scaling import ends_at
from lxt_fx.views.sheet import Bars, Heading, Pictures, Section, Sheet, Tokens
from lxt_fx.views.view import Facts, cells

SAMPLES, AROUND = 8, 240
"""How many samples of a list are shown, and how many characters of each."""


def unit_fragment(report: UnitFacts) -> str:
    """One element with its own style, for a notebook."""
    return fragment([unit_sheet(report)])


def unit_sheet(report: UnitFacts) -> Sheet:
    """What the page shows."""
    sections: list[Section] = []
    for title, tops in (("largest activation", report.by_activation), ("largest relevance", report.by_relevance)):
        sections += [Heading(title), *(_sample(top) for top in tops[:SAMPLES])]
    sections += list(_words(report))
    name = f"{report.place} {report.unit}"
    said = name if report.label is None else f"{name}: {report.label}"
    facts = Facts(said, None, 0.0, 0.0, report.table_name, report.model_class, 0.0)
    return Sheet(facts, tuple(sections), (), tuple(report.sentences()))


def _sample(top: TopSample) -> Section:
    title = f"{top.value:.3g}  ·  {top.sample.key}  ·  {top.sample.said}"
    if top.tokens and 0 <= top.position < len(top.tokens):
        heat = marked(top) if top.heatmap is None else top.heatmap
        first, stop = window(top.tokens, top.position, AROUND)
        scale = ends_at(float(heat.abs().max()))
        return Tokens(f"{title}  ·  at '{top.token.strip()}'", cells(top.tokens[first:stop], heat[first:stop], scale))
    if top.sample.picture is None:
        tokens = next(iter(top.sample.texts.values()), (top.sample.key,))
        heat = torch.zeros(len(tokens)) if top.heatmap is None or len(top.heatmap) != len(tokens) else top.heatmap
        return Tokens(title, cells(tokens, heat))
    shown, side = pixels_of(top.sample.picture), max(top.sample.patch, 1)
    relevance = top.heatmap
    if relevance is None:
        relevance, side = torch.zeros(1, 1), max(shown.shape[:2])
        if (box := top.box()) is not None:
            side = box[2] - box[0]
            relevance = torch.zeros(-(-shown.shape[0] // side), -(-shown.shape[1] // side))
            relevance[box[0] // side, box[1] // side] = 1
    scale = ends_at(float(relevance.abs().max()) or 1.0)
    panels = pictures(shown, relevance, side, scale)
    chosen = panels if top.heatmap is not None else (panels[0], panels[2])
    return Pictures(f"{title}  ·  {top.token}", chosen, relevance, scale)


def _words(report: UnitFacts) -> Iterator[Section]:
    for at, words in enumerate(report.words):
        direction = "" if len(report.words) == 1 else f", direction {at + 1}"
        bars = tuple((word.text, word.score) for word in (*words.most, *reversed(words.least)))
        yield Heading(f"writes{direction}")
        yield Bars("scores of entries of the output", bars, ends_at(max(abs(score) for _, score in bars)), 0)
