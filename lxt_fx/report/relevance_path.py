"""What a certificate lists, read off the graph that runs: every node that relevance passes, where it is stopped on purpose,
where it cannot follow, and what stays unproven."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch.fx import Node

from lxt_fx.base.nodes import is_float, module_path, module_stack, operands, shape, source, value
from lxt_fx.base.on_meta import NOT_COMPARED
from lxt_fx.base.torch_internals import aten
from lxt_fx.compiler.explained import Explained, Record
from lxt_fx.ops import norms, products
from lxt_fx.passes.analysis.mark_flow import SHAPE_ONLY, SHAPE_READERS, Flow, differentiable_operands, mark_flow
from lxt_fx.passes.verify import MERGED_TOLERANCES, TOLERANCES
from lxt_fx.report.printed_graph import PLAIN_LAYERS
from lxt_fx.rule_table.rule import GroupKind, Keep, kind_text

_STOPS = (aten.detach.default, products.hold)
_STATISTIC_INSIDE = (norms.rms_norm, norms.rms_norm_fused, norms.layer_norm, norms.group_norm)


@dataclass(frozen=True, slots=True)
class Row:
    """What a row of the rule table says."""

    name: str
    formula: str
    source: str
    keeps: Keep


@dataclass(frozen=True, slots=True)
class Entry:
    """One node and its row. `op` runs, `original` is the op or group that the row took. `block` is the innermost module
    that is no plain layer, with its class. Relevance leaves by the operands `carrying`; the row holds `held` constant."""

    node: str
    op: str
    original: str
    module: str
    block: str
    line: str
    row: Row
    carrying: tuple[str, ...]
    held: tuple[str, ...]
    why: str
    refusals: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class End:
    """An operand of a node with a row: where a held value, or what is computed from it, is read on the relevance path."""

    node: str
    op: str
    operand: str
    module: str


@dataclass(frozen=True, slots=True)
class Held:
    """A value that carries relevance and is read as a constant by `readers`, so that none flows back that way. `by` says
    whose doing that is, `ends` where the constant enters the relevance path again."""

    value: str
    module: str
    line: str
    readers: tuple[str, ...]
    by: str
    ends: tuple[End, ...]


@dataclass(frozen=True, slots=True)
class NotFollowed:
    """A value that carries relevance and reaches an op without a gradient (a comparison, the indices of a topk): what the
    model does with that op's result gets no relevance."""

    value: str
    reader: str
    op: str
    module: str
    line: str


@dataclass(frozen=True, slots=True)
class NotProven:
    """What a certificate cannot vouch for. `node` is empty where it concerns the whole graph."""

    node: str
    op: str
    module: str
    line: str
    why: str


def flow_that_runs(explained: Explained) -> Flow:
    """Analysis: who carries relevance in the graph that runs, from its inputs, and not as recorded."""
    return mark_flow(explained, [n for n in explained.graph.nodes if n.op == "placeholder" and is_float(n)])


def path_entries(explained: Explained, flow: Flow) -> list[Entry]:
    """Every node on the relevance path that has a row, in graph order."""
    stage, matches = explained.record.stages["lowered"], explained.record.matches
    return [
        _entry(node, explained.record)
        for node in _path(explained, flow)
        if node.name in stage.rules and node.name in matches
    ]


def path_cuts(explained: Explained, flow: Flow) -> list[Entry]:
    """Every node off the path whose row holds the operand that the path would go on to, in graph order."""
    stage, matches = explained.record.stages["lowered"], explained.record.matches
    return [
        _entry(node, explained.record)
        for node in explained.graph.nodes
        if node not in flow.carrying and node.name in stage.rules and node.name in matches
    ]


def _path(explained: Explained, flow: Flow) -> Iterator[Node]:
    return (node for node in explained.graph.nodes if node.op == "call_function" and node in flow.carrying)


def _entry(node: Node, record: Record) -> Entry:
    rule, match = record.stages["lowered"].rules[node.name], record.matches[node.name]
    row = Row(rule.name, rule.formula, rule.source, rule.keeps)
    original = match.kind.removesuffix(".default")
    line = str(source(node) or "")
    return Entry(
        node.name, op_text(node), original, module_path(node), _block(node), line, row,
        match.carrying, match.held, match.why, match.refusals,
    )  # fmt: skip


def op_text(node: Node) -> str:
    """The op as a certificate prints it: `lxt_fx.sdpa`, `aten.add.Tensor`; an item of a tuple with the op that gave it."""
    parent = node.args[0] if node.args else None
    if kind_text(node.target) == "getitem" and isinstance(parent, Node):  # type: ignore[arg-type]
        return f"{op_text(parent)}[{node.args[1]}]"
    return kind_text(node.target).removesuffix(".default")  # type: ignore[arg-type]


def _block(node: Node) -> str:
    stack = [(path, name) for path, name in module_stack(node) if not name.startswith(PLAIN_LAYERS)]
    if not stack:
        return "graph"
    path, name = stack[-1]
    return f"{path or 'model'} ({name.rsplit('.', 1)[-1]})"


def held_values(explained: Explained, flow: Flow) -> list[Held]:
    """Every hold and detach of a carrying value, and the statistics that the ops of norms hold inside."""
    found: list[Held] = []
    for node in explained.graph.nodes:
        if node.target in _STOPS and node.args[0] in flow.carrying:
            rows, lost = _ends(node, explained, flow)
            if rows or not lost:  # the rest ends in ops without a gradient
                readers = tuple(op_text(user) for user in node.users)
                found.append(_held(node.args[0], readers, _whose(node, rows, explained.record), rows))
        elif node.target in _STATISTIC_INSIDE and node in flow.carrying:
            found.append(_held(node.args[0], (op_text(node),), "norm statistic", [(node, "statistic")]))
    return found


def _held(value: Node, readers: tuple[str, ...], by: str, ends: list[tuple[Node, str]]) -> Held:
    places = tuple(End(node.name, op_text(node), name, module_path(node)) for node, name in dict.fromkeys(ends))
    return Held(value.name, module_path(value), str(source(value) or ""), tuple(dict.fromkeys(readers)), by, places)


def _whose(hold: Node, ends: list[tuple[Node, str]], record: Record) -> str:
    if hold.target is not products.hold or hold.name not in record.stages["lowered"].inserted:
        return "the model's own detach or no_grad"
    return " and ".join(dict.fromkeys(_reading(node, name, record) for node, name in ends)) or "nothing: no row reads it"


def _reading(node: Node, name: str, record: Record) -> str:
    """Why a node reads this operand as a constant."""
    match, rule = record.matches.get(node.name), record.stages["lowered"].rules.get(node.name)
    if match is None or rule is None:
        return f"%{node.name}, which has no row"
    if name in match.held:
        return rule.name
    if name == "statistic":
        return "norm statistic"
    if match.kind == str(GroupKind.ELEMENTWISE):
        return "value of an activation, for its own row"
    return f"constant {name} of {rule.name}"


def values_not_followed(explained: Explained, flow: Flow) -> list[NotFollowed]:
    """Every carrying value that an op without a gradient reads, itself or by what is computed from it as a constant."""
    found: list[NotFollowed] = []
    for node in explained.graph.nodes:
        if node not in flow.carrying:
            continue
        lost = [user for user in node.users if user.target not in _STOPS and _ends_gradient(user, node)]
        for hold in node.users:
            lost += _ends(hold, explained, flow)[1] if hold.target in _STOPS else []
        for reader in dict.fromkeys(lost):
            found.append(
                NotFollowed(node.name, reader.name, op_text(reader), module_path(reader), str(source(reader) or ""))
            )
    return found


def _ends(start: Node, explained: Explained, flow: Flow) -> tuple[list[tuple[Node, str]], list[Node]]:
    """Where what is computed from a held value ends: operands of nodes that have a row or carry, and ops without a
    gradient."""
    rules = explained.record.stages["lowered"].rules
    rows: list[tuple[Node, str]] = []
    lost: list[Node] = []
    todo, seen = [start], {start}
    for node in todo:
        for reader in node.users:
            if reader in flow.carrying or reader.name in rules or reader.op == "output":
                rows += [(reader, operand.name) for operand in operands(reader) if operand.node is node]
            elif reader in seen or _reads_shape(reader, node):
                continue
            elif reader.target not in _STOPS and _ends_gradient(reader, node):
                lost.append(reader)
            else:
                seen.add(reader)
                todo.append(reader)
    return rows, lost


def _ends_gradient(reader: Node, node: Node) -> bool:
    """Whether the reader computes with the node's value and has no gradient to any operand."""
    return reader.op == "call_function" and not _reads_shape(reader, node) and not differentiable_operands(reader)


def _reads_shape(reader: Node, node: Node) -> bool:
    """Sizes, checks, and ops that make a tensor like this one compute nothing with its value."""
    if reader.target in SHAPE_READERS or "sym_" in str(reader.target) or "_assert" in str(reader.target):
        return True
    return [SHAPE_ONLY.get(reader.target)] == [operand.name for operand in operands(reader) if operand.node is node]


def unproven(explained: Explained, flow: Flow, entries: list[Entry]) -> list[NotProven]:
    """Nodes without a row (strict=False), nodes without an entry (a fault of lxt_fx), rows that claim nothing, a graph that
    is not the recorded one, a forward that differs, choices fixed to the example."""
    record = explained.record
    listed = {entry.node: entry for entry in entries}
    found = [NotProven("", "", "", "", why) for why in _unproven_of_the_graph(explained)]
    for node in _path(explained, flow):
        why = _unproven_of(node.name, listed.get(node.name), record)
        if why:
            found.append(NotProven(node.name, op_text(node), module_path(node), str(source(node) or ""), why))
    return found


def _unproven_of(name: str, entry: Entry | None, record: Record) -> str:
    if entry is not None:
        return f"row {entry.row.name} ({entry.row.keeps.value})" if entry.row.keeps is Keep.NATIVE else ""
    if name in record.unknown:
        return "no row matched: native gradient (strict=False)"
    return "it has no row on record, which is a fault of lxt_fx; please report it"


def _unproven_of_the_graph(explained: Explained) -> Iterator[str]:
    record = explained.record
    if math.isnan(record.forward_difference):
        yield f"the forward was {NOT_COMPARED}"
    elif not record.forward_difference <= _tolerance(explained):
        yield f"the forward differs from the model's by {record.forward_difference:.2g} of its largest value"
    if record.method != "torch.export":
        yield f"captured by {record.method}: choices that the model's code makes from values are fixed to the example"
    now, then = (_written(nodes) for nodes in (explained.graph.nodes, record.stages["lowered"].graph.nodes))
    changed = sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))
    if changed:
        yield f"the graph was changed after transform at %{', %'.join(changed[:3])}{' and more' if changed[3:] else ''}"


def _written(nodes: object) -> dict[str, str]:
    return {node.name: f"{node.target} {node.args} {node.kwargs}" for node in nodes if node.op == "call_function"}  # type: ignore[attr-defined]


def _tolerance(explained: Explained) -> float:
    output = next(node for node in reversed(explained.graph.nodes) if node.op == "output")
    found = {value(node).dtype for node in output.all_input_nodes if shape(node) is not None}
    by_dtype = MERGED_TOLERANCES if explained.record.merged else TOLERANCES
    return max((by_dtype.get(dtype, 0.0) for dtype in found), default=0.0)
