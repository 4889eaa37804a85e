"""Sheets as files: PNG, PDF and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf, PdfPages
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from lxt_fx.views.heatmap import PAGE, sheet_figures
from lxt_fx.views.sheet import Sheet

DOTS = 200
"""Dots per inch of a PNG."""

SETTINGS: Any = {"pdf.fonttype": 42, "text.usetex": False, "savefig.bbox": None}
SETTINGS |= {"svg.fonttype": "path", "svg.hashsalt": "lxt_fx"}
"""What a file is written with, whatever the caller's settings: text in a PDF stays text."""


def write_png(sheets: Sheet | Sequence[Sheet], path: str | Path, width: float) -> tuple[Path, ...]:
    """Writes the pages as `path`, `name-2.png`, ..., and returns these."""
    path = Path(path)
    figures = _figures(sheets, width, PAGE)
    paths = (path, *(path.with_stem(f"{path.stem}-{number}") for number in range(2, len(figures) + 1)))
    for figure, found in zip(figures, paths, strict=True):
        save(figure, found, "png")
    return paths


def write_pdf(sheets: Sheet | Sequence[Sheet], path: str | Path, width: float) -> None:
    """Writes one file with a page for each figure."""
    figures = _figures(sheets, width, PAGE)
    with matplotlib.rc_context(SETTINGS), PdfPages(Path(path)) as pages:
        for figure in figures:
            FigureCanvasPdf(figure)
            pages.savefig(figure, facecolor="white")


def write_svg(sheet: Sheet, path: str | Path, width: float) -> None:
    """Writes one file, as tall as it needs to be."""
    (figure,) = sheet_figures(sheet, width, None)
    with matplotlib.rc_context(SETTINGS):
        said = {"Date": None, "Title": sheet.facts.heading()}
        FigureCanvasSVG(figure).print_figure(Path(path), format="svg", facecolor="white", metadata=said)


def save(figure: Figure, path: str | Path, kind: Literal["png", "pdf", "svg"]) -> None:
    """Writes one figure as a file of this kind."""
    with matplotlib.rc_context(SETTINGS):
        if kind == "svg":
            FigureCanvasSVG(figure).print_figure(Path(path), format=kind, facecolor="white", metadata={"Date": None})
            return
        canvas = FigureCanvasAgg(figure) if kind == "png" else FigureCanvasPdf(figure)
        canvas.print_figure(Path(path), format=kind, dpi=DOTS, facecolor="white")


def _figures(sheets: Sheet | Sequence[Sheet], width: float, tallest: float) -> list[Figure]:
    listed = [sheets] if isinstance(sheets, Sheet) else sheets
    return [figure for sheet in listed for figure in sheet_figures(sheet, width, tallest)]
