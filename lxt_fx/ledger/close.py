"""From what the taps read to the entries of a ledger: each node's leak, split into what its rule says and what is left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.fx import Node

from lxt_fx.attribution.target import Choice
from lxt_fx.base.nodes import TensorType, module_path, source, value
from lxt_fx.base.torch_internals import aten
from lxt_fx.compiler.explained import Explained
from lxt_fx.ledger.claimed import Cause
from lxt_fx.ledger.ledger import Entry, Ledger, Place, Source
from lxt_fx.ledger.taps import K, Meter, layer_of
from lxt_fx.report.printed_graph import op_name
from lxt_fx.rule_table.rule import Keep, Rule


def settle_accounts(
    explained: Explained,
    goals: Sequence[Choice],
    relevance: Mapping[str, list[Tensor]],
    meter: Meter,
    tokens: Sequence[tuple[str, ...]],
) -> Ledger:
    """The ledger of one run: `goals` are the explained numbers by row, `relevance` that of each leaf by row.

    The residual shows an edge that was not tapped: the gradient that reached a node against those that its readers passed
    on. Where the model casts to a narrower dtype than its own, that difference is rounding, and is booked at the node.
    """
    rows, dtype = len(goals), str(goals[0].value.dtype).removeprefix("torch.")
    explained_value = _by_row([goal.value for goal in goals], rows)
    reaching, passing = _all_by_row(meter.reaching, rows), _all_by_row(meter.passing, rows)
    places = {node.name: _place(node, explained.record.stages["lowered"].rules) for node in explained.graph.nodes}
    taken: dict[str, dict[tuple[Cause, str], Tensor]] = {}
    for (name, cause, what), amounts in meter.taken.items():
        taken.setdefault(name, {})[cause, what] = _by_row(amounts, rows)
    nothing = torch.zeros_like(explained_value)
    received: dict[str, Tensor] = {}
    given: dict[str, Tensor] = {}
    for edge, amount in passing.items():
        received[edge.consumer] = received.get(edge.consumer, nothing) + amount
        given[edge.producer] = given.get(edge.producer, nothing) + amount
    entries = [Entry(places["output"], Cause.TARGET, "", explained_value - received.get("output", nothing))]
    for name in reversed(reaching):
        left = reaching[name] - received.get(name, nothing)
        entries += _split(places[name], left, taken.get(name, {}), explained.record.stages["lowered"].rules.get(name))
        if is_narrower(places[name].dtype, dtype):
            summed = given.get(name, nothing) - reaching[name]
            entries.append(Entry(places[name], Cause.UNACCOUNTED, "sum of its readers", summed))
    order = {name: index for index, name in enumerate(places)}
    entries.sort(key=lambda entry: -order[entry.place.node])
    return Ledger(
        explained=tuple(goal.said for goal in goals),
        value=explained_value,
        sources=tuple(_source(name, found, tokens) for name, found in relevance.items()),
        entries=tuple(entries),
        places=places,
        reaching=reaching,
        passing=passing,
        heads=_all_by_row(meter.heads, rows),
        positions=_all_by_row(meter.positions, rows),
        profile=_all_by_row(meter.profile, rows),
        model_class=explained.record.model_class,
        table_name=explained.record.table_name,
        dtype=dtype,
        rotates=_rotates(explained),
    )


def is_narrower(dtype: str, than: str) -> bool:
    """Whether the one floating-point dtype has fewer digits than the other."""
    return bool(dtype) and torch.finfo(getattr(torch, dtype)).eps > torch.finfo(getattr(torch, than)).eps


def _by_row(amounts: list[Tensor], rows: int) -> Tensor:
    """[rows, ...] on the CPU in float64; rows without a reading are 0."""
    stacked = torch.stack([amount.detach().double().cpu() for amount in amounts])
    return torch.cat([stacked, stacked.new_zeros(rows - len(stacked), *stacked.shape[1:])])


def _all_by_row(amounts: Mapping[K, list[Tensor]], rows: int) -> dict[K, Tensor]:
    return {key: _by_row(found, rows) for key, found in amounts.items()}


def _split(place: Place, left: Tensor, taken: Mapping[tuple[Cause, str], Tensor], rule: Rule | None) -> Iterator[Entry]:
    """The entries of one node: the shares that its formula gives, and the rest under the cause that its row allows."""
    for (cause, name), amount in taken.items():
        yield Entry(place, cause, name, amount)
        left = left - amount
    if rule is None:
        yield Entry(place, Cause.NO_RULE, "", left)
    else:
        yield Entry(place, Cause.NATIVE if rule.keeps is Keep.NATIVE else Cause.UNACCOUNTED, "", left)


def _place(node: Node, rules: Mapping[str, Rule]) -> Place:
    path = module_path(node)
    rule = rules.get(node.name)
    op = op_name(node) if node.op == "call_function" else node.op
    line = str(source(node) or "")
    return Place(node.name, op, rule.name if rule else "", path, layer_of(path), line, _narrowest(node))


def _narrowest(node: Node) -> str:
    """The floating-point dtype of fewest digits among a node's value and what it reads; empty where there is none."""
    known = [value(n) for n in (node, *node.all_input_nodes)]
    dtypes = {found.dtype for found in known if isinstance(found, (Tensor, TensorType))}
    floats = [dtype for dtype in dtypes if dtype.is_floating_point or dtype.is_complex]
    return str(max(floats, key=lambda dtype: torch.finfo(dtype).eps)).removeprefix("torch.") if floats else ""


def _source(name: str, relevance: list[Tensor], tokens: Sequence[tuple[str, ...]]) -> Source:
    """A leaf whose first dimension counts the rows gives each row its own part; what other parts got is kept apart."""
    whole = torch.stack(relevance).cpu()
    rows = len(relevance)
    if rows > 1 and whole.shape[1] == rows:
        own = torch.stack([whole[row, row] for row in range(rows)])
        return Source(name, own, whole.reshape(rows, -1).sum(1) - own.reshape(rows, -1).sum(1), tuple(tokens))
    own = whole[:, 0] if whole.dim() > 2 and whole.shape[1] == 1 else whole
    return Source(name, own, torch.zeros(rows, dtype=torch.float64), tuple(tokens))


def _rotates(explained: Explained) -> bool:
    """Whether positions enter by rotation: a carrying value times a table of cosines."""
    carrying = explained.record.stages["lowered"].carrying
    todo = [node for node in explained.graph.nodes if node.target in (aten.cos.default, aten.polar.default)]
    seen = set(todo)
    while todo:
        for user in todo.pop().users:
            if user.name in carrying and user.target in (aten.mul.Tensor, aten.view_as_real.default):
                return True
            if user not in seen and user.name not in carrying:
                seen.add(user)
                todo.append(user)
    return False



