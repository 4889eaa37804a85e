"""The printed graph: nodes by module, with the model's source lines and the rule of each node."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from lxt_fx.base.errors import UnknownNameError
from lxt_fx.base.node_text import dtype_name, op_name
from lxt_fx.base.nodes import TensorType, module_stack, source_line, value
from lxt_fx.compiler.explained import Explained, check_explained
from lxt_fx.compiler.record import Stage
from lxt_fx.ops import products
from lxt_fx.passes.positions.asked_positions import said
from lxt_fx.rule_table.rule import Rule

_COLUMN = 88
PLAIN_LAYERS = ("torch.nn.", "transformers.activations.")
"""Classes of modules that get no heading of their own: the line of their single op says what they are."""
_SYMBOL = re.compile(r"\b[su]\d+\b")
_LETTERS = "bsthwuvxyz"
LEGEND = "* carries relevance   + inserted   @ weight   | rule"


def show(explained: Explained, stage: str = "rules", *, module: str | None = None, full: bool = False) -> str:
    """The graph after a stage (`capture`, `canonical`, `groups`, `rules`, `lowered`, `fused`) as text; `modules` prints a
    table of modules and rules instead.

    `module` restricts it to one module and what is inside it (`model.layers.0`). Values that carry no relevance (masks,
    rotary tables) are only counted, unless `full` is set. Raises UnknownNameError for a stage or module that does not
    exist, and InputError for a model that was not transformed, which has no graph.
    """
    from lxt_fx.report.modules_table import modules_table

    check_explained(explained, "show")
    if stage == "modules" and "rules" in explained.record.stages:
        return modules_table(explained)
    chosen = _stage(explained, stage)
    blocks = _blocks(chosen, module, full)
    if module is not None and not blocks:
        raise UnknownNameError(_no_module(chosen, module))
    record = explained.record
    title = f"{record.model_class}   stage {stage}   rules {record.table_name}   captured by {record.method}"
    if record.positions is not None:
        title += f"   positions {said(record.positions)}"
    fixed = [f"fixed: {sentence}" for sentence in record.specialised]
    lines = [title, LEGEND, *fixed, *(f"written out: {sentence}" for sentence in record.written_out), ""]
    for block in blocks:
        lines += [block.heading, *map(_padded, block.lines), ""]
    lines += _formulas(block.rules for block in blocks)
    return "\n".join(lines).rstrip() + "\n"


def diff(explained: Explained, before: str, after: str, *, module: str | None = None, full: bool = False) -> str:
    """The changes between two stages, as a unified diff of their printed graphs. Raises what `show` raises."""
    check_explained(explained, "diff")
    old, new = (_plain_lines(_blocks(_stage(explained, name), module, full)) for name in (before, after))
    return "\n".join(difflib.unified_diff(old, new, before, after, lineterm="", n=2)) + "\n"


@dataclass(frozen=True, slots=True)
class _Block:
    """Consecutive nodes of one module: `lines` are pairs (node as text, name of its rule)."""

    heading: str
    lines: list[tuple[str, str]]
    rules: list[Rule]


def _plain_lines(blocks: list[_Block]) -> list[str]:
    return [line for block in blocks for line in (block.heading, *(text for text, _ in block.lines))]


def _stage(explained: Explained, name: str) -> Stage:
    stages = explained.record.stages
    if name not in stages:
        near = difflib.get_close_matches(name, stages, n=1, cutoff=0.0)
        raise UnknownNameError(
            f"show: there is no stage {name!r}; did you mean {near[0]!r}? Stages: {', '.join(stages)}"
            if near
            else f"show: this module has no stages to print (asked for {name!r})"
        )
    return stages[name]


def _no_module(stage: Stage, module: str) -> str:
    known = sorted({path for node in stage.graph.nodes for path, _ in module_stack(node) if path})
    near = difflib.get_close_matches(module, known, n=3, cutoff=0.0)
    return f"show: the graph has no module {module!r}; nearest: {', '.join(near)}"


def _blocks(stage: Stage, module: str | None, full: bool) -> list[_Block]:
    printer = _Printer(stage)
    blocks: list[_Block] = []
    place: tuple[str, str] | None = None
    hidden = 0
    for node in stage.graph.nodes:
        if node.op == "get_attr" or not _inside(node, module) or not printer.is_shown(node):
            continue
        if not full and not printer.is_relevant(node):
            hidden += 1
            continue
        if _place(node) != place or not blocks:
            place = _place(node)
            blocks.append(_Block(_heading(place, node), [], []))
        if hidden:
            blocks[-1].lines.append((f"  ... {hidden} nodes that carry no relevance", ""))
            hidden = 0
        blocks[-1].lines.append(printer.line(node))
        if node.name in stage.rules:
            blocks[-1].rules.append(stage.rules[node.name])
    return blocks


def _inside(node: Node, module: str | None) -> bool:
    return module is None or any(path == module for path, _ in module_stack(node))


def _place(node: Node) -> tuple[str, str]:
    """(path, class) of the innermost module that is none of the `PLAIN_LAYERS`."""
    stack = [(path, name) for path, name in module_stack(node) if not name.startswith(PLAIN_LAYERS)]
    return (stack[-1][0], stack[-1][1].rsplit(".", 1)[-1]) if stack else ("", "")


def _heading(place: tuple[str, str], node: Node) -> str:
    path, name = place
    if not name:
        return "inputs" if node.op == "placeholder" else "output" if node.op == "output" else "graph"
    line = source_line(node)
    return f"{path or 'model'} ({name})" + (f"  {line}" if line else "")


def _padded(line: tuple[str, str]) -> str:
    text, rule_name = line
    return f"{text:<{_COLUMN}} | {rule_name}" if rule_name else text


class _Printer:
    """Prints the nodes of one stage, with short names for symbolic sizes."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.symbols = _symbol_names(stage)

    def is_shown(self, node: Node) -> bool:
        """Whether the node gets a line. A size is printed where it is read, and checks are irrelevant to relevance."""
        return not (_is_size(node) or "_assert" in str(node.target))

    def is_relevant(self, node: Node) -> bool:
        name = node.name
        return (
            name in self.stage.carrying
            or node.op in ("placeholder", "output")
            or name in self.stage.rules
            or (name in self.stage.inserted and node.target is products.hold)
        )

    def line(self, node: Node) -> tuple[str, str]:
        label = self.stage.labels.get(node.name, "")
        if node.name in self.stage.rules:
            label = self.stage.rules[node.name].name
        if node.op == "output":
            return f"  return {self._argument(node.args[0])}", ""
        mark = ("*" if node.name in self.stage.carrying else "") + ("+" if node.name in self.stage.inserted else "")
        left = f"  %{node.name}: {self.type(value(node))}{mark}"
        if node.op == "placeholder":
            return left, label
        return f"{left} = {op_name(node)}({self._arguments(node)})", label

    def type(self, fake: Any) -> str:
        if isinstance(fake, (list, tuple)):
            return "(" + ", ".join(self.type(item) for item in fake) + ")"
        if not isinstance(fake, (torch.Tensor, TensorType)):
            return self._symbolic(fake)
        return f"{dtype_name(fake.dtype)}[{','.join(map(self._symbolic, fake.shape))}]"

    def _symbolic(self, size: Any) -> str:
        return _SYMBOL.sub(lambda match: self.symbols.get(match.group(), match.group()), str(size))

    def _arguments(self, node: Node) -> str:
        shown = [self._argument(argument, node) for argument in node.args]
        dull = ("device", "pin_memory", "layout")
        shown += [f"{name}={self._argument(v, node)}" for name, v in node.kwargs.items() if name not in dull]
        return ", ".join(shown)

    def _argument(self, argument: Any, reader: Node | None = None) -> str:
        if isinstance(argument, Node):
            if argument.op == "get_attr":
                return "@" + _relative(str(argument.target), reader)
            if _is_size(argument):
                return self._symbolic(value(argument))
            return f"%{argument.name}"
        if isinstance(argument, (list, tuple)):
            return "[" + ", ".join(self._argument(item, reader) for item in argument) + "]"
        if isinstance(argument, torch.dtype):
            return dtype_name(argument)
        if isinstance(argument, int) and argument == 2**63 - 1:
            return "end"
        return f"{argument:g}" if isinstance(argument, float) else str(argument)


def _is_size(node: Node) -> bool:
    return isinstance(value(node), (int, torch.SymInt, str))


def _symbol_names(stage: Stage) -> Mapping[str, str]:
    """Letters for the symbolic sizes: b and s for batch and length of the first input that carries relevance, then
    others."""
    found: dict[str, str] = {}
    letters = iter(_LETTERS)
    placeholders = [
        n for n in stage.graph.nodes if n.op == "placeholder" and isinstance(value(n), (torch.Tensor, TensorType))
    ]
    for node in sorted(placeholders, key=lambda n: n.name not in stage.carrying):
        for size in value(node).shape:
            for symbol in _SYMBOL.findall(str(size)):
                if symbol not in found:
                    found[symbol] = next(letters, symbol)
    return found


def _relative(path: str, reader: Node | None) -> str:
    """A weight's name relative to the module that reads it: `q_proj.weight`."""
    inner = _place(reader)[0] if reader is not None else ""
    return path.removeprefix(f"{inner}.") if inner else path


def _formulas(found: Iterable[list[Rule]]) -> list[str]:
    """Each rule once, with its count, formula and source."""
    counts: dict[Rule, int] = {}
    for rules in found:
        for rule in rules:
            counts[rule] = counts.get(rule, 0) + 1
    if not counts:
        return []
    names = max(len(rule.name) for rule in counts)
    formulas = max(len(rule.formula) for rule in counts)
    return ["rules"] + [
        f"  {count:>5} x {rule.name:<{names}}  {rule.formula:<{formulas}}  {rule.source}" for rule, count in counts.items()
    ]
