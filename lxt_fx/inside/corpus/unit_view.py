"""A unit in the terminal: statistics, the samples with the token marked in its context, words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from lxt_fx.inside.corpus.unit_facts import TopSample, UnitFacts
from lxt_fx.inside.directions import Word, Words
from lxt_fx.tasks.own_text import DECODER
from lxt_fx.views.colour import Scale
from lxt_fx.views.ground import colours_of
from lxt_fx.views.token_lines import share_style
from lxt_fx.views.view import shares

SAMPLES, VALUE, MARKS = 8, 9, ("«", "»")
"""How many samples of a list are printed, how wide a value is, and what stands around the token."""


def unit_view(report: UnitFacts) -> RenderableType:
    """Label, statistics, largest samples by activation and by relevance, words."""
    name = f"{report.place} {report.unit}"
    heading = name if report.label is None else f"{name}: {report.label}"
    found: list[RenderableType] = [Text(heading, style="bold")]
    found += [Text(sentence) for sentence in report.sentences()]
    for title, tops in (("largest activation", report.by_activation), ("largest relevance", report.by_relevance)):
        found += ["", Text(title, style="bold"), *(_Line(top) for top in tops[:SAMPLES])]
        if not tops:
            found.append(Text("no sample", style="dim"))
    for at, words in enumerate(report.words):
        direction = "" if len(report.words) == 1 else f", direction {at + 1}"
        found += ["", Text(f"writes{direction}", style="bold"), *_words(words)]
    found += ["", Text(f"rules {report.table_name}  ·  {report.model_class}", style="dim")]
    return Group(*found)


def _words(words: Words) -> list[_Listed]:
    return [_Listed("for", words.most), _Listed("against", words.least)]


@dataclass(frozen=True, slots=True)
class _Listed:
    """Words in one line, as many as fit."""

    name: str
    words: Sequence[Word]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        line = f"{self.name:>{VALUE - 1}}"
        for word in self.words:
            longer = f"{line}  {word.text.strip() or word.text!r}"
            if cell_len(longer) > options.max_width:
                break
            line = longer
        yield Text(line)


@dataclass(frozen=True, slots=True)
class _Line:
    """One sample in one line: the value, and the token in as much of its text as fits."""

    top: TopSample

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        line = Text(f"{self.top.value:>{VALUE - 1}.3g}  ", no_wrap=True, overflow="crop")
        if self.top.tokens and 0 <= self.top.position < len(self.top.tokens):
            line.append_text(in_context(self.top, options.max_width - VALUE - 1, colours_of(console)))
        else:
            where = self.top.token
            line.append(f"{where} of {self.top.sample.key}" if where else _start(self.top, options.max_width - VALUE - 1))
        yield line


def _start(top: TopSample, width: int) -> str:
    """The start of a text of which no position is known; of a sound, which has at most the text of its decoder, the
    position in it."""
    read = [tokens for leaf, tokens in top.sample.texts.items() if not leaf.startswith(DECODER)]
    text = "".join(read[0]) if read else f"position {top.position} of {top.sample.key}"
    return text if len(text) <= width else f"{text[: width - 1]}…"


def in_context(top: TopSample, width: int, colours: Scale | None = None) -> Text:
    """The tokens around the position, in one line of at most so many columns, with the token marked; coloured by the
    heatmap if there is one and there are colours."""
    tokens, at = top.tokens, top.position
    first, stop = window(tokens, at, width - len("".join(MARKS)) - 2)
    share = None if top.heatmap is None or colours is None else shares(top.heatmap.double())
    line = Text("…" if first else "")
    for index in range(first, stop):
        token, style = tokens[index], ""
        if share is not None and colours is not None and index < len(share):
            style = share_style(float(share[index]), colours)
        if index != at:
            line.append(token, style=style)
            continue
        line.append(" " if token.startswith(" ") else "")
        line.append(f"{MARKS[0]}{token.strip(' ') or token}{MARKS[1]}", style=f"bold {style}".strip())
    return line.append("…" if stop < len(tokens) else "")


def window(tokens: Sequence[str], at: int, width: int) -> tuple[int, int]:
    """As many tokens around one as fit in a width, as many before it as behind it where there are."""
    first, stop = at, at + 1
    used = cell_len(tokens[at])
    while first > 0 or stop < len(tokens):
        before = cell_len("".join(tokens[first:at]))
        left = first > 0 and (stop == len(tokens) or before <= cell_len("".join(tokens[at + 1 : stop])))
        used += cell_len(tokens[first - 1] if left else tokens[stop])
        if used > width:
            break
        first, stop = (first - 1, stop) if left else (first, stop + 1)
    return first, stop


def marked(top: TopSample) -> torch.Tensor:
    """1 at the position of a text and 0 elsewhere: what is coloured where there is no heatmap."""
    return torch.zeros(len(top.tokens)).index_fill(0, torch.tensor([top.position]), 1.0)
