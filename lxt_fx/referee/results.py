"""The results of a benchmark with their views."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lxt_fx.referee.measured import Measurements
from lxt_fx.views.listed import Listed

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class BenchResults(Measurements, Listed):
    """The results of `bench`, also of a run that is not done. `reference` is the method that the others are compared with.

    Iterating gives a table for each model, task and metric, with all methods.
    """

    def to_markdown(self) -> str:
        """The tables as Markdown."""
        from lxt_fx.referee.results_text import markdown

        return markdown(self)

    def to_html(self, path: str | Path) -> None:
        """Writes one self-contained page: tables, and for each a plot of the differences to the reference."""
        from lxt_fx.referee.results_page import page

        Path(path).write_text(page(self), encoding="utf-8")

    def to_png(self, path: str | Path, metric: str, *, width: float = 7.0) -> None:
        """Writes the differences to the reference under a metric, a panel for each model and task. Raises UnknownNameError
        for another metric, and InputError where it has no result."""
        from lxt_fx.referee.forest import forest
        from lxt_fx.views.files import save

        save(forest(self, metric, width), path, "png")

    def to_svg(self, path: str | Path, metric: str, *, width: float = 7.0) -> None:
        """As `to_png`, as vectors."""
        from lxt_fx.referee.forest import forest
        from lxt_fx.views.files import save

        save(forest(self, metric, width), path, "svg")

    def __rich__(self) -> RenderableType:
        from lxt_fx.referee.results_text import terminal

        return terminal(self)
