"""How much of an answer a circuit makes when everything outside of it is as in the corrupted run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import networkx as nx
import torch
from torch import Tensor, nn

from lxt_fx.attribution.non_finite import is_finite
from lxt_fx.attribution.target import TargetLike
from lxt_fx.base.autocast import autocast_off
from lxt_fx.base.errors import InputError, NonFiniteError
from lxt_fx.base.grad_mode import gradients_on
from lxt_fx.base.progress import lasting, steps
from lxt_fx.inside.circuits.ablated_run import ablated_numbers
from lxt_fx.inside.circuits.circuit import PER_HEAD, area, edges_of, kept_edges
from lxt_fx.inside.circuits.contributions import Contributions
from lxt_fx.inside.circuits.network import index_of
from lxt_fx.inside.circuits.pair_batches import pair_batches
from lxt_fx.inside.circuits.pairs import CLEAN, CORRUPTED, Pairs, check_finite, pairs_of
from lxt_fx.views.listed import Listed

if TYPE_CHECKING:
    from rich.console import RenderableType

FUNCTION = "circuit_faithfulness"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class CircuitFaithfulness(Listed):
    """What circuits make of the explained number. `sizes` are the shares of all edges that they were asked to have, the
    smallest first, `edges` how many they have. `values` [circuits, pairs] are the numbers when all else is corrupted,
    `clean` and `corrupted` [pairs] those of both runs."""

    sizes: tuple[float, ...]
    edges: tuple[int, ...]
    values: Tensor
    clean: Tensor
    corrupted: Tensor

    @property
    def faithfulness(self) -> Tensor:
        """f = (m(C) - m(0)) / (m(N) - m(0)) of each circuit C, [circuits], with m the mean over pairs, N the whole network
        and 0 the corrupted run."""
        none, whole = self.corrupted.mean(), self.clean.mean()
        return (self.values.mean(1) - none) / (whole - none)

    @property
    def cpr(self) -> float:
        """The integral of f over the sizes by trapezoids, from the smallest to the largest: the circuit performance ratio
        of MIB (Mueller et al. 2025), larger is better. Raises InputError for one circuit, which has no area."""
        _check_several(self.sizes)
        return area(self.sizes, self.faithfulness.tolist())

    @property
    def cmd(self) -> float:
        """The integral of |1 - f|: the circuit-model distance of MIB, smaller is better. Raises InputError for one
        circuit."""
        _check_several(self.sizes)
        return area(self.sizes, (1 - self.faithfulness).abs().tolist())

    def __repr__(self) -> str:
        if len(self.sizes) < 2:
            return f"CircuitFaithfulness(1 circuit, faithfulness {float(self.faithfulness[0]):.3f})"
        return f"CircuitFaithfulness({len(self.sizes)} circuits, CPR {self.cpr:.3f}, CMD {self.cmd:.3f})"

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table("size", "edges", "faithfulness")
        for column in table.columns:
            column.justify = "right"
        for size, edges, found in zip(self.sizes, self.edges, self.faithfulness.tolist(), strict=True):
            table.add_row(f"{size:.1%}", str(edges), f"{found:.3f}")
        return Group(Text(repr(self)), table)


def _check_several(sizes: Sequence[float]) -> None:
    if len(sizes) < 2:
        raise InputError(
            f"{FUNCTION}: an area needs circuits of two sizes at least; CircuitScores.circuits makes those of MIB"
        )


@lasting
def circuit_faithfulness(
    explained: nn.Module | Any,
    clean: Any,
    corrupted: Any,
    target: TargetLike | Sequence[TargetLike],
    circuits: nx.DiGraph | Mapping[float, nx.DiGraph],
    *,
    processor: Any = None,
    batch: int | None = None,
    progress: bool | None = None,
) -> CircuitFaithfulness:
    """How faithful circuits are: the number that the network gives when each edge outside of a circuit carries what was
    written in the corrupted run.

        found = lxt_fx.circuit_scores(model, clean, corrupted, (" Mary", " John"), processor=tokenizer)
        target = (" Mary", " John")
        curve = lxt_fx.circuit_faithfulness(model, clean, corrupted, target, found.circuits(), processor=tokenizer)
        curve.faithfulness, curve.cpr, curve.cmd

    Every reader reads its own value of the residual stream: the stream of this run less sum over its edges outside of
    (a_u - a_u corrupted), with a_u what writer u adds. With all edges that is the clean run, with none the corrupted one.
    `circuits` is one graph, as `CircuitScores.circuit` makes it, or several by the share of edges that they were asked for.
    The other arguments are those of `circuit_scores`; pairs need not be those that the circuits were found on. Each circuit
    takes one forward, in which norm and projection run once for each head of queries, keys and values that has edges of its
    own.

    Raises InputError for edges that the network has not, for sizes that are no shares, for pairs whose numbers are on
    average the same clean and corrupted, and what `circuit_scores` raises.
    """
    with gradients_on(), autocast_off():
        per_head = _per_head([*circuits.values()] if isinstance(circuits, Mapping) else [circuits])
        found = [
            _measured(pairs_of(explained, processor, *some, FUNCTION, per_head=per_head), circuits)
            for some in pair_batches(clean, corrupted, target, batch, FUNCTION)
        ]
        whole, none, values = (torch.cat(each, -1) for each in zip(*(one.numbers for one in found), strict=True))
        _check_apart(whole, none)
        return CircuitFaithfulness(found[0].sizes, found[0].edges, values, whole, none)


@dataclass(frozen=True, slots=True, eq=False)
class _Measured:
    """What circuits of these `sizes` with so many `edges` make of some pairs: the clean and the corrupted number [pairs],
    and those of the circuits [circuits, pairs]."""

    sizes: tuple[float, ...]
    edges: tuple[int, ...]
    numbers: tuple[Tensor, Tensor, Tensor]


def _measured(pairs: Pairs, circuits: Any) -> _Measured:
    network = pairs.network
    writers, readers = index_of(network.writer_names), index_of(network.reader_names)
    named = _by_size(circuits, int(network.edges.sum()))
    kept = [kept_edges(_one(each), writers, readers, network.edges, FUNCTION) for each in named.values()]
    last = pairs.run(CORRUPTED)
    clean, corrupted = pairs.numbers(CLEAN, pairs.run(CLEAN).output()), pairs.numbers(CORRUPTED, last.output())
    check_finite(pairs, {CLEAN: clean, CORRUPTED: corrupted}, (), FUNCTION)
    written = Contributions(last, network, FUNCTION)
    values = torch.stack([ablated_numbers(pairs, each, written) for each in steps("circuits", kept, len(kept))])
    if not is_finite([values]):
        size = next(size for size, each in zip(named, values, strict=True) if not is_finite([each]))
        raise NonFiniteError(
            f"{FUNCTION}: the number of the circuit of size {size:g} is not finite; try a wider dtype (model.float())"
        )
    return _Measured(tuple(named), tuple(int(each.sum()) for each in kept), (clean, corrupted, values))


def _by_size(circuits: Any, edges: int) -> dict[float, nx.DiGraph]:
    """The circuits by the share of edges that they were asked for, the smallest first, as areas need them."""
    if not isinstance(circuits, Mapping):
        return {len(edges_of(_one(circuits))) / edges: circuits}
    if not circuits:
        raise InputError(f"{FUNCTION}: there is no circuit; CircuitScores.circuits makes some")
    for size in circuits:
        if isinstance(size, bool) or not isinstance(size, (int, float)) or not 0 <= size <= 1:
            raise InputError(
                f"{FUNCTION}: circuits are named by the share of all edges that they were asked for, from 0.0 to 1.0, got "
                f"{size!r}; CircuitScores.circuits gives them so, also for numbers of edges"
            )
    return {float(size): circuits[size] for size in sorted(circuits)}


def _one(circuit: Any) -> nx.DiGraph:
    if not isinstance(circuit, nx.DiGraph):
        raise InputError(
            f"{FUNCTION}: a circuit is a networkx.DiGraph, as CircuitScores.circuit makes it, got {type(circuit).__name__}"
        )
    return circuit


def _per_head(circuits: Sequence[Any]) -> bool:
    """Whether the circuits name a reader of keys and values for each head. Raises InputError where some do."""
    found = {bool(_one(circuit).graph.get(PER_HEAD)) for circuit in circuits}
    if len(found) > 1:
        raise InputError(
            f"{FUNCTION}: some circuits have readers of keys and values for each head (per_head) and others do not; call "
            "it for each kind"
        )
    return True in found


def _check_apart(clean: Tensor, corrupted: Tensor) -> None:
    if float(clean.mean()) == float(corrupted.mean()):
        raise InputError(
            f"{FUNCTION}: the explained number is {float(clean.mean()):.4g} in the mean of the clean and of the corrupted "
            "runs, so no share of it is due to a circuit; give pairs that differ, or another target"
        )
