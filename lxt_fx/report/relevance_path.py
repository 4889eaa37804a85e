"""What a certificate lists, as found in the graph that runs: the nodes that relevance passes, where it is stopped on
purpose, where it meets an op without a gradient, and what is not proven."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch.fx import Node

from lxt_fx.base.nodes import module_path, module_stack, operands, shape, source_line, value
from lxt_fx.base.on_meta import NOT_COMPARED
from lxt_fx.base.torch_internals import OpOverload, aten
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.record import Record
from lxt_fx.ops import explicit, norms, products
from lxt_fx.ops.aten_kinds import SHAPE_READERS
from lxt_fx.passes.analysis.mark_flow import SHAPE_ONLY, Flow, differentiable_operands, mark_flow
from lxt_fx.passes.analysis.relevance_leaves import relevance_leaves
from lxt_fx.passes.verify import MERGED_TOLERANCES, TOLERANCES
from lxt_fx.report.printed_graph import PLAIN_LAYERS
from lxt_fx.rule_table.rule import Conserves, GroupKind, kind_text

_STOPS = (aten.detach.default, products.hold)
_STATISTIC_INSIDE = frozenset(norm.op for norm in norms.NORMS if norm.inside)


@dataclass(frozen=True, slots=True)
class ListedRule:
    """A rule as a certificate lists it."""

    name: str
    formula: str
    source: str
    conserves: Conserves


@dataclass(frozen=True, slots=True)
class PathEntry:
    """A node and its rule. `op` is the op that runs, `original` the op or group of the model that the rule matched. `block`
    is the innermost module that is no plain layer, with its class. Relevance goes to the operands `carrying`; the rule
    detaches the operands `held`. `why` says why the rule matched, `refusals` why earlier rules did not."""

    node: str
    op: str
    original: str
    module: str
    block: str
    line: str
    rule: ListedRule
    carrying: tuple[str, ...]
    held: tuple[str, ...]
    why: str
    refusals: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class End:
    """An operand of a node on the relevance path that reads a detached value, or what was computed from it."""

    node: str
    op: str
    operand: str
    module: str


@dataclass(frozen=True, slots=True)
class Held:
    """A value that carries relevance but is detached for `readers`, so that no relevance comes back from them. `by` names
    the rule, or the model's own code, that detaches it. `ends` are the operands at which it enters the relevance path
    again."""

    value: str
    module: str
    line: str
    readers: tuple[str, ...]
    by: str
    ends: tuple[End, ...]


@dataclass(frozen=True, slots=True)
class NotFollowed:
    """A value that carries relevance and is read by an op without a gradient (a comparison, the indices of a topk). What
    the model computes from that op's result gets no relevance."""

    value: str
    reader: str
    op: str
    module: str
    line: str


@dataclass(frozen=True, slots=True)
class NotProven:
    """Something that a certificate cannot prove. `node` is empty if it concerns the whole graph."""

    node: str
    op: str
    module: str
    line: str
    why: str


def flow_that_runs(explained: Explained) -> Flow:
    """Analysis: which nodes carry relevance in the graph that runs. It is computed anew, not read from the record."""
    return mark_flow(explained, relevance_leaves(explained.graph))


def path_entries(explained: Explained, flow: Flow) -> list[PathEntry]:
    """Every node on the relevance path that has a rule, in graph order."""
    stage, matches = explained.record.stages["lowered"], explained.record.matches
    return [
        _entry(node, explained.record)
        for node in _path(explained, flow)
        if node.name in stage.rules and node.name in matches
    ]


def path_cuts(explained: Explained, flow: Flow) -> list[PathEntry]:
    """Every node that has a rule but is not on the path, because the rule detaches its operands; in graph order."""
    stage, matches = explained.record.stages["lowered"], explained.record.matches
    return [
        _entry(node, explained.record)
        for node in explained.graph.nodes
        if node not in flow.carrying and node.name in stage.rules and node.name in matches
    ]


def _path(explained: Explained, flow: Flow) -> Iterator[Node]:
    return (node for node in explained.graph.nodes if node.op == "call_function" and node in flow.carrying)


def _entry(node: Node, record: Record) -> PathEntry:
    rule, match = record.stages["lowered"].rules[node.name], record.matches[node.name]
    listed = ListedRule(rule.name, rule.formula, rule.source, rule.conserves)
    original = match.kind.removesuffix(".default")
    line = str(source_line(node) or "")
    return PathEntry(
        node.name, op_text(node), original, module_path(node), _block(node), line, listed,
        match.carrying, match.held, match.why, match.refusals,
    )  # fmt: skip


def op_text(node: Node) -> str:
    """The op as a certificate prints it: `lxt_fx.sdpa`, `aten.add.Tensor`; for an item of a tuple the op that returned
    it."""
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
    """Every detached value that carries relevance, and the statistics that the ops of norms detach inside."""
    found: list[Held] = []
    for node in explained.graph.nodes:
        if node.target in _STOPS and node.args[0] in flow.carrying:
            ends, lost = _ends(node, explained, flow)
            if ends or not lost:  # the rest ends in ops without a gradient
                readers = tuple(op_text(user) for user in node.users)
                found.append(_held(node.args[0], readers, _whose(node, ends, explained.record), ends))
        elif node.target in _STATISTIC_INSIDE and node in flow.carrying:
            found.append(_held(node.args[0], (op_text(node),), "norm statistic", [(node, "statistic")]))
    return found


def _held(value: Node, readers: tuple[str, ...], by: str, ends: list[tuple[Node, str]]) -> Held:
    places = tuple(End(node.name, op_text(node), name, module_path(node)) for node, name in dict.fromkeys(ends))
    return Held(value.name, module_path(value), str(source_line(value) or ""), tuple(dict.fromkeys(readers)), by, places)


def _whose(hold: Node, ends: list[tuple[Node, str]], record: Record) -> str:
    if hold.target is not products.hold or hold.name not in record.stages["lowered"].inserted:
        return "the model's own detach or no_grad"
    return " and ".join(dict.fromkeys(_reading(node, name, record) for node, name in ends)) or "nothing: no rule reads it"


def _reading(node: Node, name: str, record: Record) -> str:
    """Why a node reads this operand as a constant."""
    match, rule = record.matches.get(node.name), record.stages["lowered"].rules.get(node.name)
    if match is None or rule is None:
        return f"%{node.name}, which has no rule"
    if name in match.held:
        return rule.name
    if name == "statistic":
        return "norm statistic"
    if match.kind == str(GroupKind.ELEMENTWISE):
        return "value of an activation, for its own rule"
    return f"constant {name} of {rule.name}"


def values_not_followed(explained: Explained, flow: Flow) -> list[NotFollowed]:
    """Every value that carries relevance and that an op without a gradient reads, directly or after it was detached."""
    found: list[NotFollowed] = []
    for node in explained.graph.nodes:
        if node not in flow.carrying:
            continue
        lost = [user for user in node.users if user.target not in _STOPS and _ends_gradient(user, node)]
        for hold in node.users:
            lost += _ends(hold, explained, flow)[1] if hold.target in _STOPS else []
        for reader in dict.fromkeys(lost):
            found.append(
                NotFollowed(node.name, reader.name, op_text(reader), module_path(reader), str(source_line(reader) or ""))
            )
    return found


def _ends(start: Node, explained: Explained, flow: Flow) -> tuple[list[tuple[Node, str]], list[Node]]:
    """Where a detached value and all that is computed from it are read: operands of nodes that have a rule or carry
    relevance, and ops without a gradient."""
    rules = explained.record.stages["lowered"].rules
    ends: list[tuple[Node, str]] = []
    lost: list[Node] = []
    todo, seen = [start], {start}
    for node in todo:
        for reader in node.users:
            if reader in flow.carrying or reader.name in rules or reader.op == "output":
                ends += [(reader, operand.name) for operand in operands(reader) if operand.node is node]
            elif reader in seen or _reads_shape(reader, node):
                continue
            elif reader.target not in _STOPS and _ends_gradient(reader, node):
                lost.append(reader)
            else:
                seen.add(reader)
                todo.append(reader)
    return ends, lost


def _ends_gradient(reader: Node, node: Node) -> bool:
    """Whether the reader computes with the node's value and has no gradient for any operand."""
    return reader.op == "call_function" and not _reads_shape(reader, node) and not differentiable_operands(reader)


def _reads_shape(reader: Node, node: Node) -> bool:
    """Whether the reader does not compute with the node's value: a size, a check, an op that makes a tensor like this
    one."""
    if reader.target in SHAPE_READERS or "sym_" in str(reader.target) or "_assert" in str(reader.target):
        return True
    return [SHAPE_ONLY.get(reader.target)] == [operand.name for operand in operands(reader) if operand.node is node]


def unproven(explained: Explained, flow: Flow, entries: list[PathEntry]) -> list[NotProven]:
    """What is not proven: nodes without a rule (strict=False) or without an entry (a bug of lxt_fx), rules that claim
    nothing, a graph that is not the recorded one, a forward that differs, branches fixed to the example."""
    record = explained.record
    listed = {entry.node: entry for entry in entries}
    found = [NotProven("", "", "", "", why) for why in _unproven_of_the_graph(explained)]
    for node in _path(explained, flow):
        why = _unproven_of(node.name, listed.get(node.name), record) or _without_equation(node, record)
        if why:
            found.append(NotProven(node.name, op_text(node), module_path(node), str(source_line(node) or ""), why))
    return found


def _unproven_of(name: str, entry: PathEntry | None, record: Record) -> str:
    if entry is not None:
        return f"rule {entry.rule.name} ({entry.rule.conserves.value})" if entry.rule.conserves is Conserves.NATIVE else ""
    if name in record.unknown:
        return "no rule matched: native gradient (strict=False)"
    return "it has no rule on record, which is a bug of lxt_fx; please report it"


def _without_equation(node: Node, record: Record) -> str:
    """Why a user's own op in an explicit form is not proven: its rule gives no equation (`explicit=`). Else empty."""
    theirs = isinstance(node.target, OpOverload) and node.target.namespace not in ("aten", "lxt_fx")
    match = record.matches.get(node.name)
    replaced = match is not None and match.kind != kind_text(node.target)  # type: ignore[arg-type]
    entered = any(operand.node.target is explicit.enter for operand in operands(node))
    if not (theirs and replaced and entered):
        return ""
    return "its rule gives no equation (explicit=), so x times the op's own vjp is used, which proves nothing"


def _unproven_of_the_graph(explained: Explained) -> Iterator[str]:
    record = explained.record
    if math.isnan(record.forward_difference):
        yield f"the forward was {NOT_COMPARED}"
    elif not record.forward_difference <= _tolerance(explained):
        yield f"the forward differs from the model's by {record.forward_difference:.2g} of its largest value"
    if record.gradient_note.startswith("capture lost"):
        yield f"the gradient before any rule is off by {record.gradient_difference:.0%}: {record.gradient_note}"
    elif record.gradient_note or math.isnan(record.gradient_difference):
        yield f"the gradient before any rule was {record.gradient_note or NOT_COMPARED}"
    if record.padded_note:
        yield f"padded texts were not compared with the model's answers to them: {record.padded_note}"
    if record.method != "torch.export":
        yield f"captured by {record.method}: data-dependent branches of the model's code are fixed to the example"
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
