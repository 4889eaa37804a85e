"""The table of modules and rules: a line for each module and rule; equal layers share a line."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from io import StringIO

from rich import box
from rich.console import Console
from rich.table import Table

from lxt_fx.base.nodes import module_stack
from lxt_fx.compiler.explained import Explained
from lxt_fx.rule_table.rule import Rule
from lxt_fx.rule_table.selectors import selector_text

Line = tuple[str, str, str, str]
"""Class, op, rule, where the rule comes from."""


def modules_table(explained: Explained) -> str:
    """The modules in the order of the graph, with the ops of each that carry relevance, the rules of these ops, and the
    table or place that each rule comes from."""
    record = explained.record
    by_module: dict[str, Counter[Line]] = defaultdict(Counter)
    stage = record.stages["rules"]
    for node in stage.graph.nodes:
        if node.name in stage.rules and node.name in stage.carrying:
            stack = module_stack(node) or [("", record.model_class)]
            path, name = stack[-1]
            op = str(node.target).removeprefix("aten.").removeprefix("lxt_fx.").split(".")[0]
            rule = stage.rules[node.name]
            by_module[path][name.rsplit(".", 1)[-1], op, rule.name, _origin(rule, record.table_name)] += 1
    table = Table(title=f"{record.model_class}: modules and rules", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("module", "class", "ops", "rule", "from"):
        table.add_column(column, overflow="fold")
    for paths, lines in _alike(by_module):
        for number, ((kind, op, rule_name, origin), count) in enumerate(lines):
            ops = op if count == 1 else f"{count} x {op}"
            table.add_row(*((paths, kind) if number == 0 else ("", "")), ops, rule_name, origin)
    console = Console(width=140, record=True, file=StringIO(), color_system=None)
    console.print(table, markup=False)
    return "\n".join(line.rstrip() for line in console.export_text().splitlines()) + "\n"


def _origin(rule: Rule, table: str) -> str:
    return table if rule.where is None else f"put first at {selector_text(rule.where)}"


def _alike(by_module: dict[str, Counter[Line]]) -> list[tuple[str, list[tuple[Line, int]]]]:
    """The lines by module. Modules whose paths differ only in numbers and whose lines are equal become one entry, such as
    `layers.*.mlp (x 30)`."""
    found: dict[tuple[str, tuple[tuple[Line, int], ...]], list[str]] = defaultdict(list)
    for path, lines in by_module.items():
        found[re.sub(r"\b\d+\b", "*", path), tuple(lines.items())].append(path)
    return [
        ((paths[0] or "-") if len(paths) == 1 else f"{pattern} (x {len(paths)})", list(lines))
        for (pattern, lines), paths in found.items()
    ]
