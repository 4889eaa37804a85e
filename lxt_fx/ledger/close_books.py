"""Makes the ledger from what the taps read: the leak of each node, split into what its formula says and the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.fx import Node

from lxt_fx.attribution.places import nodes_of_names
from lxt_fx.attribution.target_entry import Choice
from lxt_fx.base.node_text import op_name
from lxt_fx.base.nodes import TensorType, module_path, source_line, value
from lxt_fx.base.torch_internals import aten
from lxt_fx.compiler.explained import Explained
from lxt_fx.ledger.books import Entry, Place, Source
from lxt_fx.ledger.causes import Cause
from lxt_fx.ledger.ledger import Ledger
from lxt_fx.ledger.meter import Readings, by_example
from lxt_fx.ledger.taps import layer_of
from lxt_fx.ops.own_backward import OWN_BACKWARD
from lxt_fx.rule_table.rule import Conserves, Rule

_OWN_BACKWARD = {str(op).removesuffix(".default") for op in OWN_BACKWARD}


def close_books(
    explained: Explained,
    goals: Sequence[Choice],
    relevance: Mapping[str, list[Tensor]],
    readings: Readings,
    tokens: Sequence[tuple[str, ...]],
) -> Ledger:
    """The ledger of one run. `goals` are the explained numbers and `relevance` is that of each leaf, both by example.

    The relevance that reaches a node should equal the sum of what its readers passed to it. A difference is an edge without
    a tap, and shows in the residual. Where the model casts to a less precise dtype than its own, the difference is rounding
    and becomes an entry of the node.
    """
    examples, dtype = len(goals), str(goals[0].value.dtype).removeprefix("torch.")
    explained_value = by_example([goal.value for goal in goals], examples)
    reaching, passing = readings.reaching, readings.passing
    places = {node.name: _place(node, explained.record.stages["lowered"].rules) for node in explained.graph.nodes}
    taken: dict[str, dict[tuple[Cause, str], Tensor]] = {}
    for (name, cause, what), amount in readings.taken.items():
        taken.setdefault(name, {})[cause, what] = amount
    nothing = torch.zeros_like(explained_value)
    received: dict[str, Tensor] = {}
    given: dict[str, Tensor] = {}
    for edge, amount in passing.items():
        received[edge.consumer] = received.get(edge.consumer, nothing) + amount
        given[edge.producer] = given.get(edge.producer, nothing) + amount
    entries = [Entry(places["output"], Cause.TARGET, "", explained_value - received.get("output", nothing))]
    for name in reversed(list(reaching)):
        left = reaching[name] - received.get(name, nothing)
        entries += _split(places[name], left, taken.get(name, {}), explained.record.stages["lowered"].rules.get(name))
        if is_narrower(places[name].dtype, dtype):
            summed = given.get(name, nothing) - reaching[name]
            entries.append(Entry(places[name], Cause.UNACCOUNTED, "sum of its readers", summed))
    order = {name: index for index, name in enumerate(places)}
    entries.sort(key=lambda entry: -order[entry.place.node])
    reads = {front.leaf: front.reads for front in explained._fronts}
    return Ledger(
        explained=tuple(goal.said for goal in goals),
        value=explained_value,
        sources=tuple(_source(name, found, tokens, reads.get(name, ())) for name, found in relevance.items()),
        entries=tuple(entries),
        places=places,
        reaching=reaching,
        passing=passing,
        heads=readings.heads,
        positions=readings.positions,
        profile=readings.profile,
        model_class=explained.record.model_class,
        table_name=explained.record.table_name,
        dtype=dtype,
        rotates=_rotates(explained),
        inside=nodes_of_names(explained),
    )


def is_narrower(dtype: str, than: str) -> bool:
    """Whether the one floating-point dtype has fewer digits than the other."""
    return bool(dtype) and torch.finfo(getattr(torch, dtype)).eps > torch.finfo(getattr(torch, than)).eps


def _split(place: Place, left: Tensor, taken: Mapping[tuple[Cause, str], Tensor], rule: Rule | None) -> Iterator[Entry]:
    """The entries of one node: the shares that its formula gives, and the rest under the cause that its rule allows."""
    for (cause, name), amount in taken.items():
        yield Entry(place, cause, name, amount)
        left = left - amount
    yield Entry(place, _rest(place, rule), "", left)


def _rest(place: Place, rule: Rule | None) -> Cause:
    if rule is None:
        return Cause.NO_RULE
    if rule.conserves is not Conserves.NATIVE:
        return Cause.UNACCOUNTED
    return Cause.OWN_BACKWARD if place.op in _OWN_BACKWARD else Cause.NATIVE


def _place(node: Node, rules: Mapping[str, Rule]) -> Place:
    path = module_path(node)
    rule = rules.get(node.name)
    op = op_name(node) if node.op == "call_function" else node.op
    line = str(source_line(node) or "")
    return Place(node.name, op, rule.name if rule else "", path, layer_of(path), line, _narrowest(node))


def _narrowest(node: Node) -> str:
    """The least precise floating-point dtype among a node's value and its operands; empty where there is none."""
    known = [value(n) for n in (node, *node.all_input_nodes)]
    dtypes = {found.dtype for found in known if isinstance(found, (Tensor, TensorType))}
    floats = [dtype for dtype in dtypes if dtype.is_floating_point or dtype.is_complex]
    return str(max(floats, key=lambda dtype: torch.finfo(dtype).eps)).removeprefix("torch.") if floats else ""


def _source(
    name: str, relevance: list[Tensor], tokens: Sequence[tuple[str, ...]], looked_up_by: tuple[str, ...]
) -> Source:
    """Splits batched relevance by example; relevance at other examples than the explained one goes to `elsewhere`."""
    whole = torch.stack(relevance).cpu()
    examples = len(relevance)
    if examples > 1 and whole.shape[1] == examples:
        own = torch.stack([whole[example, example] for example in range(examples)])
        elsewhere = whole.reshape(examples, -1).sum(1) - own.reshape(examples, -1).sum(1)
        return Source(name, own, elsewhere, tuple(tokens), looked_up_by)
    own = whole[:, 0] if whole.dim() > 2 and whole.shape[1] == 1 else whole
    return Source(name, own, torch.zeros(examples, dtype=torch.float64), tuple(tokens), looked_up_by)


def _rotates(explained: Explained) -> bool:
    """Whether positions enter by rotation: a carrying value is multiplied by a table of cosines."""
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
