"""The HTML of an explanation: a page of its own, or a fragment for a notebook."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from importlib.resources import files

from jinja2 import Environment, StrictUndefined, Template

from lxt_fx.views.colour import DARK, LIGHT, Scale, ink
from lxt_fx.views.panels import Panel
from lxt_fx.views.view import Cell, Facts, number


def token_page(cells: Sequence[Cell], facts: Facts, top: Sequence[tuple[int, str, float]]) -> str:
    """A whole page for a text."""
    return _render(True, facts, cells=cells, top=top, panels=())


def token_fragment(cells: Sequence[Cell], facts: Facts, top: Sequence[tuple[int, str, float]]) -> str:
    """The same as one element with its own style, for a notebook."""
    return _render(False, facts, cells=cells, top=top, panels=())


def image_page(panels: Sequence[Panel], facts: Facts) -> str:
    """A whole page for an image."""
    return _render(True, facts, cells=(), top=(), panels=panels)


def image_fragment(panels: Sequence[Panel], facts: Facts) -> str:
    """The same as one element with its own style, for a notebook."""
    return _render(False, facts, cells=(), top=(), panels=panels)


def _render(
    whole_page: bool,
    facts: Facts,
    *,
    cells: Sequence[Cell],
    top: Sequence[tuple[int, str, float]],
    panels: Sequence[Panel],
) -> str:
    return _template().render(
        whole_page=whole_page, facts=facts, cells=cells, top=top, panels=panels, light=LIGHT, dark=DARK
    )


def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "data_url": _data_url}
    environment.globals |= {"colours": _colours, "bar": _bar}
    return environment.from_string(files("lxt_fx.views").joinpath("explanation.html.j2").read_text(encoding="utf-8"))


def _colours(share: float) -> str:
    """The background and the ink of a share in both themes, as CSS variables."""
    light, dark = LIGHT.colour(share), DARK.colour(share)
    return f"--l:{light};--li:{ink(light)};--d:{dark};--di:{ink(dark)}"


def _bar(scale: Scale) -> str:
    return ",".join(scale.gradient(17))


def _data_url(panel: Panel) -> str:
    return "data:image/png;base64," + base64.b64encode(panel.png()).decode("ascii")
