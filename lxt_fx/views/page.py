"""The HTML of sheets: a fragment for a notebook, and for readers of a page who have no scripts."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

from lxt_fx.views.colour import DARK, LIGHT, Scale, ink
from lxt_fx.views.panels import Panel
from lxt_fx.views.sheet import Sheet, Track, binned, seconds_of
from lxt_fx.views.view import number

TRACK = 240
"""The most bars of a sound."""


def fragment(sheets: Sequence[Sheet]) -> str:
    """An element for each sheet, and their style."""
    return _template().render(sheets=sheets, light=LIGHT, dark=DARK)


def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "data_url": _data_url, "kind": _kind, "track": _track, "zip": zip}
    environment.globals |= {"colours": _colours, "bar": _bar}
    return environment.from_string(files("lxt_fx.views").joinpath("explanation.html.j2").read_text(encoding="utf-8"))


def _kind(section: object) -> str:
    return type(section).__name__.lower()


def _track(track: Track) -> dict[str, Any]:
    """The bars of a sound: share, loudness, and what a bar says when it is pointed at; and the times at both ends."""
    sums, heights, size = track.bars(TRACK)
    loud = [0.0] * len(sums) if track.loudness is None else (binned(track.loudness, TRACK)[0] / size).tolist()
    said = [f"{number(value)} · {seconds_of(track, at, size)}" for at, value in enumerate(sums.tolist())]
    bars = list(zip(heights.tolist(), loud, said, strict=True))
    return {"bars": bars, "start": seconds_of(track, 0), "end": seconds_of(track, 1, len(track.relevance))}


def _colours(share: float) -> str:
    """The background and the ink of a share in both themes, as CSS variables."""
    light, dark = LIGHT.colour(share), DARK.colour(share)
    return f"--l:{light};--li:{ink(light)};--d:{dark};--di:{ink(dark)}"


def _bar(scale: Scale) -> str:
    return ",".join(scale.gradient(17))


def _data_url(panel: Panel) -> str:
    return "data:image/png;base64," + base64.b64encode(panel.png()).decode("ascii")
