"""The rule table that `tune` found, which prints and draws the grid that it was found on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lxt_fx.faithfulness.scores import ScoredTable
from lxt_fx.rule_table.table import RuleTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import RenderableType


@dataclass(frozen=True, slots=True, repr=False)
class TunedTable(ScoredTable):
    """The table of the best point, ready for `transform(rules=...)`.

    `scores` holds every point, in the order of its parameters; `measured` says on what, `metric` which number. Printed, it
    is the grid; `show()` prints the rows, as of every table.
    """

    def figure(self, *, width: float = 6.5) -> Figure:
        """The grid as a heatmap, `width` inches wide: means and standard errors, white where a point is as good as the
        plain one, red where better, blue where worse, the best framed.

        Raises InputError for a grid where more than two parameters have several values, or a width too small.
        """
        from lxt_fx.faithfulness.tuning_view import tuning_figure

        return tuning_figure(self, width)

    def show(self) -> None:
        """Print the rows: what is tried first stands first."""
        print(RuleTable.__str__(self))

    def __rich__(self) -> RenderableType:
        from lxt_fx.faithfulness.tuning_view import tuning_view

        return tuning_view(self)

    def __str__(self) -> str:
        from lxt_fx.faithfulness.tuning_view import tuning_view
        from lxt_fx.views.terminal import plain

        return plain(tuning_view(self))

    def __repr__(self) -> str:
        return f"TunedTable({self.name}: {self.best.said}, best of {len(self.scores)})"
