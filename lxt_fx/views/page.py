"""The HTML of sheets: a fragment for a notebook, and for readers of a page who have no scripts.

A notebook's stylesheet must not reach it, and a shadow root is no way: a notebook sets the HTML of an output as text, in
which no declared shadow root is made, and a script that makes one does not run where the notebook is not trusted. So each
element is reset (`all: revert`), and each rule of ours is more specific than others without `!important`, by `:not(#_#_)`,
which counts as two ids and fits every element.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup, escape

from lxt_fx.views.colour import DARK, LIGHT, ink
from lxt_fx.views.panels import Panel
from lxt_fx.views.scaling import MARKED
from lxt_fx.views.sheet import Matrix, Sheet, Track, binned, seconds_of
from lxt_fx.views.view import Cell, number

TRACK = 240
"""The most bars of a sound."""

MOST, ROWS = 100, 100
"""The most tokens and the most numbers of a matrix."""


def fragment(sheets: Sequence[Sheet]) -> str:
    """An element for each sheet, and their style."""
    return _template().render(sheets=sheets, style=style())


@cache
def style() -> Markup:
    """The style of all fragments."""
    text = files("lxt_fx.views").joinpath("fragment.css").read_text(encoding="utf-8")
    text = re.sub(r"\.lxt-fx(?=[ ,{])", ".lxt-fx:not(#_#_)", text)
    for name, scale in (("BAR_LIGHT", LIGHT), ("BAR_DARK", DARK)):
        text = text.replace(name, ", ".join(scale.gradient(17)))
    return Markup(text)


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "data_url": _data_url, "kind": _kind, "track": _track, "rows": _rows}
    environment.filters |= {"marks": _marks, "coded": _coded}
    environment.globals |= {"colours": _colours, "MOST": MOST, "ROWS": ROWS}
    return environment.from_string(files("lxt_fx.views").joinpath("explanation.html.j2").read_text(encoding="utf-8"))


def _coded(text: str) -> Markup:
    """A sentence whose code stands between backticks, as in a terminal."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _kind(section: object) -> str:
    return type(section).__name__.lower()


def _marks(cell: Cell) -> str:
    """The classes of a token: start and end of a word, for and against, beyond the scale, muted."""
    sign = "f" if cell.share >= MARKED else "a" if cell.share <= -MARKED else ""
    found = ("t", "s" * cell.starts, "e" * cell.ends, sign, "o" * cell.beyond, "m" * cell.muted)
    return " ".join(filter(None, found))


def _rows(matrix: Matrix, most: int) -> Iterator[tuple[str, float, list[tuple[float, float, str]]]]:
    """For each explained number its label and value, and of each cell the relevance, the share, and the classes."""
    for at, (label, value) in enumerate(matrix.rows[:most]):
        cells = zip(
            matrix.relevance[at].tolist(), matrix.shares[at].tolist(), matrix.beyond[at].tolist(),
            matrix.muted[at].tolist(), strict=True,
        )  # fmt: skip
        found = []
        for column, (relevance, share, beyond, muted) in enumerate(cells):
            split = "split" if column == matrix.split else ""
            marks = ("a" * (share <= -MARKED), "o" * beyond, "m" * muted, split)
            found.append((relevance, share, " ".join(filter(None, marks))))
        yield label, value, found


def _track(track: Track) -> dict[str, Any]:
    """The bars of a sound: share, whether it goes beyond the scale, loudness, and what a bar says when it is pointed at;
    and the times at both ends."""
    sums, scale, size = track.bars(TRACK)
    loud = [0.0] * len(sums) if track.loudness is None else (binned(track.loudness, TRACK)[0] / size).tolist()
    said = [f"{number(value)} · {seconds_of(track, at, size)}" for at, value in enumerate(sums.tolist())]
    bars = list(zip(scale.shares(sums).tolist(), scale.goes_beyond(sums).tolist(), loud, said, strict=True))
    ends = {"start": seconds_of(track, 0), "end": seconds_of(track, 1, len(track.relevance))}
    return {"bars": bars, "loud": track.loudness is not None, **ends}


def _colours(share: float) -> str:
    """The background and the ink of a share in both themes, as CSS variables."""
    light, dark = LIGHT.colour(share), DARK.colour(share)
    return f"--l:{light};--li:{ink(light)};--d:{dark};--di:{ink(dark)}"


def _data_url(panel: Panel) -> str:
    return "data:image/png;base64," + base64.b64encode(panel.png()).decode("ascii")
