"""The rule table that `tune` found; it prints and draws the grid that was searched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lxt_fx.faithfulness.scores import ScoredTable
from lxt_fx.rule_table.table import RuleTable
from lxt_fx.views.listed import Listed

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import RenderableType


@dataclass(frozen=True, slots=True, repr=False)
class TunedTable(ScoredTable):
    """The table of the best point, ready for `transform(rules=...)`.

    `scores` are all points of the grid, ordered by their parameters; `measured` says on which examples, `metric` names the
    score. `print` shows the grid; `show()` prints the rules, as for every table.
    """

    def figure(self, *, width: float = 6.5) -> Figure:
        """The grid as a heatmap, `width` inches wide, with means and standard errors. A point as good as the plain one is
        white, a better one red, a worse one blue; the best has a frame.

        Raises InputError if more than two parameters have several values, or the width is too small.
        """
        from lxt_fx.faithfulness.tuning_view import tuning_figure

        return tuning_figure(self, width)

    def show(self) -> None:
        """Prints the rules, in the order in which they are tried."""
        print(RuleTable.__str__(self))

    def __rich__(self) -> RenderableType:
        from lxt_fx.faithfulness.tuning_view import tuning_view

        return tuning_view(self)

    def __str__(self) -> str:
        return Listed.__str__(self)

    def __repr__(self) -> str:
        return f"TunedTable({self.name}: {self.best.said}, best of {len(self.scores)})"
