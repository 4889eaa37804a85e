"""How relevance reached one token: through the values of an attention, through its softmax, or along the residual
stream."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lxt_fx.base.errors import InputError
from lxt_fx.base.one_line import one_line
from lxt_fx.ledger.books import Books
from lxt_fx.views.listed import Listed

if TYPE_CHECKING:
    from rich.console import RenderableType

PARTS = ("value", "key", "query")


@dataclass(frozen=True, slots=True)
class Arrival:
    """One layer: the relevance of the token and of all tokens at the layer's output, and the relevance that attention gave
    to the token's value, key (through the softmax) and query, from all tokens, the token included. NaN where the layer's
    output is not [batch, tokens, hidden]."""

    layer: str
    of_token: float
    of_all: float
    by_value: float
    by_key: float
    by_query: float


@dataclass(frozen=True, slots=True)
class Landing(Listed):
    """Relevance at one token, summed over examples: for each layer, starting at the output, and at the input. `of_inputs`
    is the sum of the absolute relevance of all tokens. It and `at_input` are NaN where the input is not tokens."""

    position: int
    token: str
    arrivals: tuple[Arrival, ...]
    at_input: float
    of_inputs: float

    @property
    def share(self) -> float:
        """The token's share of the absolute relevance of all tokens at the input, 0 to 1."""
        return abs(self.at_input) / self.of_inputs if self.of_inputs else 0.0

    def __repr__(self) -> str:
        received = f"{self.at_input:.4g} at the input"
        return f"Landing(position {self.position} {one_line(self.token, 40)!r}, {len(self.arrivals)} layers, {received})"

    def __rich__(self) -> RenderableType:
        """A table with one line for each layer, from the output down to the input."""
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        table.add_column("layer", no_wrap=True, overflow="fold")  # names stay whole, headings break
        for column in ("at its output", "of all tokens", "to its value", "to its key", "to its query"):
            table.add_column(column, justify="right")
        for arrival in self.arrivals:
            numbers = (arrival.of_token, arrival.of_all, arrival.by_value, arrival.by_key, arrival.by_query)
            table.add_row(arrival.layer, *(f"{amount:.4f}" for amount in numbers))
        title = f"Relevance at position {self.position}{f' {self.token!r}' if self.token else ''}"
        if not math.isnan(self.at_input):
            table.add_row("input", f"{self.at_input:.4f}", "", "", "", "")
            title += f": {self.share:.0%} of the absolute relevance of all tokens"
        return Group(Text(title), "", table)


def landing(ledger: Books, position: int) -> Landing:
    """The relevance at the token at `position`, layer by layer, and what attention gave to it.

    Raises InputError where no layer has tokens, or the position is not in the text.
    """
    counts = {found.shape[1] for found in (*ledger.positions.values(), *ledger.profile.values())}
    if not counts:
        raise InputError(f"landing: {ledger.model_class} has no attention and no layer with tokens")
    if not -max(counts) <= position < max(counts):
        raise InputError(f"landing: position {position} is not in the text, which has {max(counts)} tokens")
    position %= max(counts)
    known = ledger.profile.keys() | {ledger.places[node].layer for node, _ in ledger.positions}
    layers = dict.fromkeys(place.layer for place in ledger.places.values() if place.layer in known)
    arrivals = tuple(_arrival(ledger, layer, position) for layer in reversed(layers))
    source = next((source for source in ledger.sources if source.is_tokens), None)
    if source is None or position >= source.relevance.shape[1]:
        return Landing(position, "", arrivals, math.nan, math.nan)
    token = source.tokens[0][position] if len(source.tokens) == 1 else ""
    found = source.by_token()
    return Landing(position, token, arrivals, float(found[:, position].sum()), float(found.abs().sum()))


def _arrival(ledger: Books, layer: str, position: int) -> Arrival:
    profile = ledger.profile.get(layer)
    whole = math.nan if profile is None else float(profile.sum())
    own = math.nan if profile is None or position >= profile.shape[1] else float(profile[:, position].sum())
    moved = dict.fromkeys(PARTS, 0.0)
    for (node, part), found in ledger.positions.items():
        if part in moved and ledger.places[node].layer == layer and position < found.shape[1]:
            moved[part] += float(found[:, position].sum())
    return Arrival(layer, own, whole, moved["value"], moved["key"], moved["query"])
