"""The ledger that `audit` returns: the books, with flow graph, arrivals, printed page, picture and data frame."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import networkx as nx
from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.base.json_file import write_json
from lxt_fx.base.public_door import public
from lxt_fx.ledger.arrivals import Landing, landing
from lxt_fx.ledger.at_places import at_place, behind_place
from lxt_fx.ledger.books import Books, entry_dict
from lxt_fx.ledger.flow_graph import flow_graph
from lxt_fx.views.listed import Listed

if TYPE_CHECKING:
    import pandas
    from rich.console import RenderableType


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Ledger(Books, Listed):
    """Double-entry bookkeeping of one audit. Every amount is [examples] in float64: one for each explained number.

    `value` = sum of `sources` + sum of `entries` + `residual`. Printed, it is a page; see `Books` for what it holds.
    """

    def at(self, place: str) -> Tensor:
        """The relevance that reached a place inside the model, [examples]: a standard name (`residual.3`), a module path
        (its output) or a `%node`. Raises UnknownNameError for one that there is not."""
        return at_place(self, place)

    def behind(self, place: str) -> dict[str, Tensor]:
        """What the ops between a cut of the network and the output took, [examples] by cause, and sources that join there
        by name: `at(place)` and these add up to the value, less the residual.

        Raises InputError for a place that relevance can pass by, UnknownNameError for one that there is not.
        """
        return behind_place(self, place)

    def flow_graph(self) -> nx.DiGraph:
        """The relevance flow graph, summed over examples; `lxt_fx.flow` groups, prunes and writes it."""
        return flow_graph(self)

    def landing(self, position: int = 0) -> Landing:
        """How relevance reached the token at `position`, layer by layer; 0 is the attention sink of most decoders."""
        return landing(self, position)

    def to_json(self, path: str | Path) -> None:
        """Writes `to_dict()` as UTF-8 JSON."""
        write_json(self.to_dict(), path)

    def to_dataframe(self) -> pandas.DataFrame:
        """One line for each source and leak of each example. The column `amount` adds up to the explained values less the
        residual.

        Raises InputError where pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise InputError("to_dataframe needs pandas: pip install lxt_fx[frames]; to_dict() needs nothing") from error
        lines = [
            {"example": example, "kind": "source", "name": source.name, "amount": float(source.amount[example])}
            for source in self.sources
            for example in range(self.examples)
        ]
        lines += [
            {"example": example, "kind": "leak", **entry_dict(entry), "amount": float(entry.amount[example])}
            for entry in self.entries
            for example in range(self.examples)
        ]
        columns = ["example", "kind", "cause", "name", "node", "op", "rule", "layer", "module", "line", "amount"]
        return pandas.DataFrame(lines, columns=columns).fillna("")

    def to_png(self, path: str | Path, *, width: float = 6.5) -> None:
        """Writes a waterfall from the explained value through the layers to the sources, `width` inches wide.

        Raises InputError for a ledger of several examples: take `ledger.example(0)`.
        """
        from lxt_fx.ledger.waterfall import waterfall

        waterfall(self, path, width)

    def to_html(self, path: str | Path) -> None:
        """Writes one self-contained page in which each example is explored (`lxt_fx.explore`)."""
        public("explore")(self, path=path)

    def __rich__(self) -> RenderableType:
        from lxt_fx.ledger.page import ledger_view

        return ledger_view(self)

    def __repr__(self) -> str:
        return f"Ledger({self.model_class}, rules {self.table_name}, {self.examples} examples, {len(self.entries)} entries)"
