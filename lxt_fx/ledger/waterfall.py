"""The waterfall of a ledger: from the explained value, through what each layer absorbs, to the inputs."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lxt_fx.base.errors import InputError
from lxt_fx.ledger.books import Books
from lxt_fx.ledger.causes import Cause
from lxt_fx.ledger.page import shown_causes
from lxt_fx.views.files import save
from lxt_fx.views.heatmap import BLACK, EDGE, MUTED, NARROWEST

COLOURS = {
    Cause.BIAS: "#0072b2", Cause.CONSTANT: "#56b4e9", Cause.POSITION: "#2f4b7c", Cause.INTERCEPT: "#009e73",
    Cause.OFFSET: "#e69f00",
    Cause.EPSILON: "#000000", Cause.ONE_SIDED: "#8c564b", Cause.ZERO: "#bcbd22", Cause.SELECTION: "#f0e442",
    Cause.HELD: "#cc79a7", Cause.NATIVE: "#d55e00", Cause.ERROR: "#6a51a3", Cause.FEATURE: "#66c2a5",
    Cause.OWN_BACKWARD: "#8a6d00", Cause.NO_RULE: "#a11a1a", Cause.TARGET: "#7a7a7a", Cause.UNACCOUNTED: "#d1001f",
}  # fmt: skip
"""After Okabe and Ito: told apart by colour-blind readers too."""

VALUE, SOURCE = "#33373e", "#2a6f4e"
BAR, MARGIN = 0.19, 1.15
"""Inches: the height of one bar, and of the space above and below all bars."""


class Bar(NamedTuple):
    """One line of the waterfall: what stands at its left, and segments (label, colour, from, to)."""

    name: str
    segments: tuple[tuple[str, str, float, float], ...]


def waterfall(ledger: Books, path: str | Path, width: float) -> None:
    """Writes the figure as PNG, `width` inches wide.

    Raises InputError for a ledger of several examples, or a width too small.
    """
    if ledger.examples != 1:
        raise InputError(f"to_png: a waterfall shows one example, not {ledger.examples}: draw ledger.example(0), say")
    if width < 2 * NARROWEST:
        raise InputError(f"to_png: width must be at least {2 * NARROWEST} inches, got {width}")
    found = bars(ledger)
    height = MARGIN + BAR * len(found)
    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    _draw(axes, found)
    axes.set_title(f"{ledger.explained[0]}\n{ledger.model_class}, rules {ledger.table_name}", fontsize=8, loc="left")
    save(figure, path, "png")


def bars(ledger: Books) -> list[Bar]:
    """From the explained value down to the inputs; layers that absorb nothing are left out."""
    left, shown = float(ledger.value), shown_causes(ledger) + ([Cause.UNACCOUNTED] if ledger.faults() else [])
    found = [Bar("explained value", (("explained value", VALUE, 0.0, left),))]
    for layer in dict.fromkeys(entry.place.layer for entry in ledger.entries):
        segments = []
        for cause in shown:
            amount = sum(float(e.amount) for e in ledger.entries if e.place.layer == layer and e.cause is cause)
            if amount:
                segments.append((cause.value, COLOURS[cause], left, left - amount))
                left -= amount
        if segments:
            found.append(Bar(layer or "(model)", tuple(segments)))
    for source in ledger.sources:
        amount = float(source.amount)
        found.append(Bar(source.name, (("input", SOURCE, left, left - amount),)))
        left -= amount
    return found


def _draw(axes: Axes, found: list[Bar]) -> None:
    named: dict[str, str] = {}
    for line, bar in enumerate(found):
        lane = 0.8 / len(bar.segments)
        for index, (label, colour, start, end) in enumerate(bar.segments):
            named.setdefault(label, colour)
            axes.barh(line - 0.4 + lane * (index + 0.5), end - start, lane, left=start, color=colour, linewidth=0)
        if line + 1 < len(found):
            end = bar.segments[-1][3] if line else bar.segments[0][3]
            axes.plot([end, end], [line, line + 1], color=EDGE, linewidth=0.6, zorder=0)
    axes.axvline(0, color=MUTED, linewidth=0.6, zorder=0)
    axes.set_yticks(range(len(found)), [bar.name for bar in found], fontsize=7, color=BLACK)
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.tick_params(axis="x", labelsize=7, colors=MUTED)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("relevance", fontsize=7, color=MUTED)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(EDGE)
    handles = [axes.barh(0, 0, color=colour, label=label) for label, colour in named.items()]
    axes.legend(handles=handles, fontsize=7, frameon=False, ncols=min(4, len(handles)), loc="upper center",
                bbox_to_anchor=(0.5, -0.45 / max(1.0, BAR * len(found))))  # fmt: skip
