"""The ledger of one explanation: what each source got, what each node kept and why, adding up to the explained number."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import networkx as nx
import torch
from torch import Tensor

from lxt_fx.base.errors import InputError, LedgerError
from lxt_fx.base.json_file import write_json
from lxt_fx.ledger.arrivals import Landing, landing
from lxt_fx.ledger.claimed import Cause
from lxt_fx.ledger.flow_graph import flow_graph
from lxt_fx.ledger.taps import Edge

if TYPE_CHECKING:
    import pandas
    from rich.console import RenderableType

K = TypeVar("K", bound=Hashable)

TOLERANCES = {"float64": 1e-9, "complex128": 1e-9, "float32": 1e-4, "complex64": 1e-4}
"""What rounding may leave of the largest relevance that reached any node; of other dtypes 0.1."""

CONSTANTS = (Cause.BIAS, Cause.CONSTANT, Cause.INTERCEPT)
"""Causes that are shares of constants: of parameters and numbers of the model."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node stands: its name and op as printed, its row, the module that made it, its layer, the model's line, and
    the narrowest dtype among its value and operands."""

    node: str
    op: str
    rule: str
    module: str
    layer: str
    line: str
    dtype: str


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """What one node kept for one cause, `amount` [rows] in float64. `name` says which constant it was."""

    place: Place
    cause: Cause
    name: str
    amount: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """The relevance of one input. `relevance` [rows, ...] is leaf * gradient in float64 (embeddings [rows, tokens, hidden],
    pixels [rows, channels, height, width]); `elsewhere` [rows] what the target of a row gave to other rows (0 in a model
    whose rows do not meet). `tokens` name the positions of each row, where they are known."""

    name: str
    relevance: Tensor
    elsewhere: Tensor
    tokens: tuple[tuple[str, ...], ...]

    @property
    def amount(self) -> Tensor:
        """All that the input got, [rows]."""
        return self.relevance.reshape(len(self.relevance), -1).sum(1) + self.elsewhere

    def row(self, one: slice) -> Source:
        """The part of one row."""
        return replace(self, relevance=self.relevance[one], elsewhere=self.elsewhere[one], tokens=self.tokens[one])

    def by_token(self) -> Tensor:
        """[rows, tokens], summed over the hidden dimension. Raises InputError for an input that is no embeddings."""
        if not self.is_tokens:
            raise InputError(f"ledger: {self.name} {list(self.relevance.shape[1:])} is no sequence of token embeddings")
        return self.relevance.sum(-1)

    @property
    def is_tokens(self) -> bool:
        """Whether it holds embeddings [rows, tokens, hidden]."""
        return self.relevance.dim() == 3 and self.name.endswith("embeds")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Ledger:
    """Double-entry bookkeeping of one audit; every amount is [rows] in float64, one for each explained number.

    `value` = sum of `sources` + sum of `entries` + `residual`. `reaching` is <output, gradient> of each node, `passing`
    <operand, gradient> of each edge; `heads` splits attentions by head, `positions` their query, key and value by token,
    `profile` the output of each layer by token.
    """

    explained: tuple[str, ...]
    value: Tensor
    sources: tuple[Source, ...]
    entries: tuple[Entry, ...]
    places: Mapping[str, Place]
    reaching: Mapping[str, Tensor]
    passing: Mapping[Edge, Tensor]
    heads: Mapping[Edge | str, Tensor]
    positions: Mapping[tuple[str, str], Tensor]
    profile: Mapping[str, Tensor]
    model_class: str
    table_name: str
    dtype: str
    rotates: bool

    @property
    def rows(self) -> int:
        """How many numbers were explained."""
        return len(self.value)

    @property
    def residual(self) -> Tensor:
        """[rows]: the explained value less all sources and leaks. Rounding, unless an edge was missed."""
        return self.value - self.relevance - self.leaks

    @property
    def relevance(self) -> Tensor:
        """[rows]: what all sources got."""
        return self._sum(source.amount for source in self.sources)

    @property
    def leaks(self) -> Tensor:
        """[rows]: what all nodes kept."""
        return self._sum(entry.amount for entry in self.entries)

    def _sum(self, amounts: Any) -> Tensor:
        return sum(amounts, torch.zeros_like(self.value))

    def _by(self, key: Callable[[Entry], K], entries: Sequence[Entry] | None = None) -> dict[K, Tensor]:
        found: dict[K, Tensor] = {}
        for entry in self.entries if entries is None else entries:
            found[key(entry)] = found.get(key(entry), torch.zeros_like(self.value)) + entry.amount
        return found

    def by_cause(self) -> dict[Cause, Tensor]:
        """Leaks [rows] by cause."""
        return self._by(lambda entry: entry.cause)

    def by_rule(self) -> dict[str, Tensor]:
        """Leaks [rows] by the row of the table."""
        return self._by(lambda entry: entry.place.rule)

    def by_module(self) -> dict[str, Tensor]:
        """Leaks [rows] by the innermost module that made the node."""
        return self._by(lambda entry: entry.place.module)

    def by_layer(self) -> dict[str, Tensor]:
        """Leaks [rows] by layer (`model.layers.3`), the one nearest to the output first."""
        return self._by(lambda entry: entry.place.layer)

    def constants(self) -> dict[str, Tensor]:
        """What biases, position and token-type embeddings, CLS and other constants received, [rows] by their names."""
        return self._by(lambda entry: entry.name, [entry for entry in self.entries if entry.cause in CONSTANTS])

    def largest(self, k: int = 10) -> tuple[Entry, ...]:
        """The k largest leaks by absolute amount, summed over rows."""
        order = sorted(self.entries, key=lambda entry: -float(entry.amount.abs().sum()))
        return tuple(order[:k])

    def row(self, index: int) -> Ledger:
        """The ledger of one row.

        Raises InputError for a row that does not exist.
        """
        if not -self.rows <= index < self.rows:
            raise InputError(f"ledger: there is no row {index}; it has {self.rows} (0 to {self.rows - 1})")
        index %= self.rows
        one = slice(index, index + 1)
        return replace(
            self,
            explained=self.explained[one],
            value=self.value[one],
            sources=tuple(source.row(one) for source in self.sources),
            entries=tuple(replace(entry, amount=entry.amount[one]) for entry in self.entries),
            reaching=_rows(self.reaching, one),
            passing=_rows(self.passing, one),
            heads=_rows(self.heads, one),
            positions=_rows(self.positions, one),
            profile=_rows(self.profile, one),
        )

    def scale(self) -> Tensor:
        """[rows]: the largest relevance that reached any node, in absolute value; what rounding is relative to."""
        return torch.stack([self.value.abs(), *(amount.abs() for amount in self.reaching.values())]).amax(0)

    def faults(self, tolerance: float | None = None) -> tuple[Entry, ...]:
        """Leaks that no rule accounts for beyond rounding, largest first. `tolerance` is relative to `scale()`; None takes
        1e-9 where the node computes in float64, 1e-4 in float32, 0.1 in half precision."""
        scale = self.scale()

        def is_fault(entry: Entry) -> bool:
            limit = scale * (_tolerance(entry.place.dtype) if tolerance is None else tolerance)
            return entry.cause is Cause.UNACCOUNTED and bool((entry.amount.abs() > limit).any())

        return tuple(sorted(filter(is_fault, self.entries), key=lambda entry: -float(entry.amount.abs().sum())))

    def is_rounding(self, amount: Tensor) -> bool:
        """Whether an amount [rows] is too small to say anything: a hundredth of what `faults` lets pass."""
        return bool((amount.abs() <= 0.01 * _tolerance(self.dtype) * self.scale()).all())

    def check(self, tolerance: float | None = None) -> None:
        """Raises LedgerError where a node kept what its row does not account for, or the ledger does not close.
        `tolerance` as for `faults`."""
        faults = self.faults(tolerance)
        if faults:
            worst, place = faults[0], faults[0].place
            raise LedgerError(
                f"ledger: %{place.node} = {place.op} ({place.module}, {place.line}) kept {_numbers(worst.amount)} of the "
                f"{_numbers(self.reaching[place.node])} that reached it, and its row {place.rule!r} does not account for "
                f"that ({len(faults)} such nodes); mend the row's op, or let the row claim less (keeps)"
            )
        limit = self.scale() * (_tolerance(self.dtype) if tolerance is None else tolerance)
        if bool((self.residual.abs() > limit).any()):
            raise LedgerError(
                f"ledger: {_numbers(self.residual)} of {_numbers(self.value)} is found neither at a source nor in a leak, "
                "so relevance took a way that was not tapped; this is a bug of lxt_fx, please report the model"
            )

    def flow_graph(self) -> nx.DiGraph:
        """The relevance flow graph, summed over rows: see `lxt_fx.flow_graph`."""
        return flow_graph(self)

    def landing(self, position: int = 0) -> Landing:
        """How relevance came to the token at `position`, layer by layer; 0 is the attention sink of most decoders."""
        return landing(self, position)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; amounts are lists with one number for each row. Leaks of 0 are left out."""
        entries = [entry for entry in self.entries if bool(entry.amount.any())]
        return {
            "model_class": self.model_class,
            "rules": self.table_name,
            "dtype": self.dtype,
            "explained": list(self.explained),
            "value": self.value.tolist(),
            "residual": self.residual.tolist(),
            "sources": [_source_dict(source) for source in self.sources],
            "constants": {name: amount.tolist() for name, amount in self.constants().items()},
            "causes": {cause.value: amount.tolist() for cause, amount in self.by_cause().items()},
            "layers": {layer: amount.tolist() for layer, amount in self.by_layer().items()},
            "leaks": [_entry_dict(entry) | {"amount": entry.amount.tolist()} for entry in entries],
        }

    def to_json(self, path: str | Path) -> None:
        """Writes `to_dict()` as UTF-8 JSON."""
        write_json(self.to_dict(), path)

    def to_dataframe(self) -> pandas.DataFrame:
        """One line for each row, source and leak; the column `amount` adds up to the explained values less the residual.

        Raises InputError where pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise InputError("to_dataframe needs pandas: pip install lxt_fx[frames]; to_dict() needs nothing") from error
        lines = [
            {"row": row, "kind": "source", "name": source.name, "amount": float(source.amount[row])}
            for source in self.sources
            for row in range(self.rows)
        ]
        lines += [
            {"row": row, "kind": "leak", **_entry_dict(entry), "amount": float(entry.amount[row])}
            for entry in self.entries
            for row in range(self.rows)
        ]
        columns = ["row", "kind", "cause", "name", "node", "op", "rule", "layer", "module", "line", "amount"]
        return pandas.DataFrame(lines, columns=columns).fillna("")

    def to_png(self, path: str | Path, *, width: float = 6.5) -> None:
        """Writes a waterfall from the explained value through the layers to the sources, `width` inches wide.

        Raises InputError for a ledger of several rows: take `ledger.row(0)`.
        """
        from lxt_fx.ledger.waterfall import waterfall

        waterfall(self, path, width)

    def __rich__(self) -> RenderableType:
        from lxt_fx.ledger.page import ledger_view

        return ledger_view(self)

    def __str__(self) -> str:
        from lxt_fx.ledger.page import ledger_text

        return ledger_text(self)

    def __repr__(self) -> str:
        return f"Ledger({self.model_class}, rules {self.table_name}, {self.rows} rows, {len(self.entries)} entries)"


def _rows(amounts: Mapping[K, Tensor], rows: slice) -> dict[K, Tensor]:
    return {key: amount[rows] for key, amount in amounts.items()}


def _tolerance(dtype: str) -> float:
    return TOLERANCES.get(dtype, 0.1)


def _numbers(amount: Tensor) -> str:
    return ", ".join(f"{number:.4g}" for number in amount.tolist())


def _source_dict(source: Source) -> dict[str, Any]:
    found: dict[str, Any] = {"name": source.name, "amount": source.amount.tolist()}
    if source.tokens:
        found["tokens"] = [list(tokens) for tokens in source.tokens]
        found["relevance"] = source.by_token().tolist()
    return found


def _entry_dict(entry: Entry) -> dict[str, Any]:
    place = entry.place
    return {
        "cause": entry.cause.value,
        "name": entry.name,
        "node": place.node,
        "op": place.op,
        "rule": place.rule,
        "layer": place.layer,
        "module": place.module,
        "line": place.line,
    }
