"""The scores of one head as sums over pairs of writers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lxt_fx.attribution.places import nearest
from lxt_fx.base.autocast import autocast_off
from lxt_fx.base.errors import InputError, UnknownNameError
from lxt_fx.base.frames import pandas_for
from lxt_fx.base.one_line import one_line
from lxt_fx.inside.circuits.circuit import By, checked_by
from lxt_fx.inside.circuits.network import index_of
from lxt_fx.results.origin import ExplainedNumber
from lxt_fx.views.listed import Listed
from lxt_fx.views.view import safe

if TYPE_CHECKING:
    from pandas import DataFrame
    from rich.console import RenderableType

SHOWN = 10
"""So many pairs are printed."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class QKAttribution(Listed):
    """Why one head attends from the token at `query` to the token at `key`, positions of `tokens`; and all that another
    query and key of this head need (`at`). Tensors are on the CPU, at least float32.

    `queries` [query writers, tokens, size] are what each writer makes of the head's queries, times the scale of its scores,
    and `keys` [key writers, tokens, size] of its keys; summed over writers and multiplied they are `scores`. `gradients`
    [queries, keys] are what flows back to each score under the rules `table_name`, from the explained `number`. `pattern`
    [queries, keys] are the weights behind the softmax. `position_bias` [queries, keys] is what is added to the scores by
    position (ALiBi), which is no pair; 0 where there is none.
    """

    head: str
    tokens: tuple[str, ...]
    query: int
    key: int
    query_writers: tuple[str, ...]
    key_writers: tuple[str, ...]
    queries: Tensor
    keys: Tensor
    gradients: Tensor
    pattern: Tensor
    position_bias: Tensor
    number: ExplainedNumber
    table_name: str

    @property
    @autocast_off()
    def scores(self) -> Tensor:
        """a_ij before the softmax and before what is added by position, [queries, keys]."""
        return self.queries.sum(0) @ self.keys.sum(0).T

    @property
    def map(self) -> Tensor:
        """The relevance a_ij g_ij of each score, [queries, keys]."""
        return self.scores * self.gradients

    @property
    @autocast_off()
    def products(self) -> Tensor:
        """What each pair adds to the score of this query and key, [query writers, key writers]. Their sum is the score."""
        return self.queries[:, self.query] @ self.keys[:, self.key].T

    @property
    def relevance(self) -> Tensor:
        """R_ij(a, b) of this query and key, [query writers, key writers]. Its sum is a_ij g_ij."""
        return self.products * self.gradients[self.query, self.key]

    @autocast_off()
    def everywhere(self) -> Tensor:
        """The sum of R_ij(a, b) over all queries and keys, [query writers, key writers]."""
        return torch.einsum("atd,ts,bsd->ab", self.queries, self.gradients, self.keys)

    def at(self, query: int, key: int) -> QKAttribution:
        """The same head for another query and key; negative ones count from the end. Raises InputError for a position that
        there is not, and for a key that the query does not see."""
        count = len(self.tokens)
        i, j = checked_position(query, count, "query"), checked_position(key, count, "key")
        if not self.pattern[i, j] > 0:
            raise InputError(
                f"qk_attribution: the query at {i} gives the key at {j} no weight, as a mask hides it or the softmax "
                "rounds to 0, so nothing flows back to their score; QKAttribution.top_positions lists pairs that matter"
            )
        return replace(self, query=i, key=j)

    def pair(self, query_writer: str, key_writer: str) -> float:
        """R_ij(a, b) of two writers. Raises UnknownNameError for names that there are not."""
        i, j = _index(self.query_writers, query_writer), _index(self.key_writers, key_writer)
        return float(self.relevance[i, j])

    def top(self, count: int = SHOWN, by: By = "absolute") -> list[tuple[str, str, float]]:
        """The pairs that matter most for this query and key, as (writer at the query, writer at the key, relevance)."""
        found = _largest(self.relevance, count, by)
        return [(self.query_writers[a], self.key_writers[b], value) for a, b, value in found]

    def top_everywhere(self, count: int = SHOWN, by: By = "absolute") -> list[tuple[str, str, float]]:
        """The pairs that matter most over all queries and keys, as (writer at the query, writer at the key, relevance)."""
        found = _largest(self.everywhere(), count, by)
        return [(self.query_writers[a], self.key_writers[b], value) for a, b, value in found]

    def top_positions(self, count: int = SHOWN, by: By = "absolute") -> list[tuple[int, int, float]]:
        """The queries and keys whose scores matter most, as (query, key, relevance a_ij g_ij)."""
        seen = int((self.pattern > 0).sum())
        return _largest(self.map.masked_fill(self.pattern <= 0, 0.0), min(count, seen), by)

    def to_dataframe(self) -> DataFrame:
        """A line for each pair of writers of this query and key: `query_writer`, `key_writer`, `product`, `relevance`.
        Raises InputError without pandas."""
        pandas, sizes = pandas_for(), self.relevance.shape
        found: DataFrame = pandas.DataFrame(
            {
                "query_writer": [name for name in self.query_writers for _ in range(sizes[1])],
                "key_writer": list(self.key_writers) * sizes[0],
                "product": self.products.flatten().tolist(),
                "relevance": self.relevance.flatten().tolist(),
            }
        )
        return found

    def __repr__(self) -> str:
        where = f"{self.query} -> {self.key}"
        size = f"{len(self.query_writers)} x {len(self.key_writers)} pairs"
        return f"QKAttribution({self.head}, {where}, {size}, rules {one_line(self.table_name, 40)})"

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        i, j = self.query, self.key
        lines = [
            f"{self.number.said} = {self.number.value:.4g}, rules {self.table_name}",
            f"{self.head} from {i} {_token(self.tokens[i])} to {j} {_token(self.tokens[j])}: weight "
            f"{float(self.pattern[i, j]):.3g}, score {float(self.scores[i, j]):+.4g}, its relevance "
            f"{float(self.map[i, j]):+.4g}",
        ]
        if self.position_bias.any():
            bias, gradient = float(self.position_bias[i, j]), float(self.gradients[i, j])
            lines.append(f"bias of the position {bias:+.4g}, its relevance {bias * gradient:+.4g}")
        table = Table("at the query", "at the key", "part of the score", "relevance")
        for column in table.columns[2:]:
            column.justify = "right"
        products = self.products
        for a, b, value in _largest(self.relevance, SHOWN, "absolute"):
            names = (Text(self.query_writers[a]), Text(self.key_writers[b]))
            table.add_row(*names, f"{float(products[a, b]):+.4f}", f"{value:+.4f}")
        return Group(*(Text(line, style="bold" if at == 1 else "") for at, line in enumerate(lines)), table)


def checked_position(given: object, count: int, what: str) -> int:
    """The position from 0 on. Raises InputError for one that there is not."""
    if isinstance(given, bool) or not isinstance(given, int) or not -count <= given < count:
        raise InputError(
            f"qk_attribution: {what} must be a position of the text, 0 to {count - 1} or -{count} to -1 from the end, "
            f"got {given!r:.100}"
        )
    return given % count


def _token(token: str) -> str:
    return f"'{one_line(safe(token), 20)}'"


def _index(names: tuple[str, ...], name: str) -> int:
    index = index_of(names)
    if name not in index:
        raise UnknownNameError(f"qk_attribution: there is no {name!r}; {nearest(name, names)}")
    return index[name]


def _largest(values: Tensor, count: int, by: By) -> list[tuple[int, int, float]]:
    """The largest entries of a matrix, the largest first. Raises InputError for a count or an order that there is not."""
    checked_by(by, "qk_attribution")
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise InputError(f"qk_attribution: count must be a whole number of at least 0, got {count!r}")
    flat = values.flatten()
    order = torch.sort(flat.abs() if by == "absolute" else flat, descending=True, stable=True).indices[:count].tolist()
    return [(at // values.shape[1], at % values.shape[1], float(flat[at])) for at in order]
