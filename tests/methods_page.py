"""Every published method as a difference of tables: the table of docs/methods.md, made of `lxt_fx.TABLES`.

    python tests/methods_page.py      # writes it into the page
"""

from __future__ import annotations

import ast
import re
from itertools import takewhile
from pathlib import Path

import lxt_fx
from lxt_fx.rule_table.rule import Rule
from lxt_fx.rule_table.table import RuleTable, label_text

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "methods.md"
BEGIN, END = "<!-- made of lxt_fx.TABLES by tests/methods_page.py -->", "<!-- end of table -->"


def table() -> str:
    """The table as Markdown, between its marks."""
    lines = ["| table | paper | rules that it puts first | the other rules |", "|---|---|---|---|"]
    for name, found in lxt_fx.TABLES.items():
        base, first = _difference(found)
        lines.append(f"| `{name}` | {_short(found.paper)} | {_rules(first)} | {base} |")
    return "\n".join((BEGIN, *lines, END))


def _difference(found: RuleTable) -> tuple[str, tuple[Rule, ...]]:
    """Which table before it has most of its last rules, and which of them are missing; and the rules before these."""
    others = {}
    for name, other in lxt_fx.TABLES.items():
        if other is found:
            break
        others[name] = _same_at_the_end(found, other)
    name = max(others, key=lambda each: others[each], default="")
    same = others.get(name, 0)
    if not same:
        return "its own", found.rules
    first = found.rules[: len(found.rules) - same]
    missing = [rule for rule in lxt_fx.TABLES[name].rules if rule not in found.rules]
    without = f", without *{', '.join(rule.name for rule in missing)}*" if missing else ""
    return f"`{name}`{without}", first


def _same_at_the_end(one: RuleTable, other: RuleTable) -> int:
    """How many rules are the same from the end on; 0 where that is less than half of the other table, or one rule."""
    pairs = zip(reversed(one.rules), reversed(other.rules), strict=False)
    same = len(list(takewhile(lambda pair: pair[0] is pair[1], pairs)))
    return same if same > max(1, len(other.rules) // 2) else 0


def _rules(rules: tuple[Rule, ...]) -> str:
    if not rules:
        return "none: the same rules"
    if len(rules) > 8:
        return f"{len(rules)}: {', '.join(dict.fromkeys(rule.name for rule in rules))}"
    return "; ".join(dict.fromkeys(f"*{label_text(rule)}*: {rule.formula}" for rule in rules)).replace("|", "\\|")


def _short(paper: str) -> str:
    """Authors and year of each work."""
    works = (re.match(r"(.*? et al\.|[^,]+),.*?(\d{4})$", work.strip()) for work in paper.split(";"))
    return "; ".join(f"{work[1]} {work[2]}" for work in works if work is not None)


def missing_tests() -> list[str]:
    """Tests that the page names (`tests/FILE.py::NAME`) and that are not there."""
    named = re.findall(r"`(tests/\w+\.py)::(\w+)`", PAGE.read_text(encoding="utf-8"))
    assert len(named) > 5, "the page names the test of each method"
    return [f"{path}::{name}" for path, name in named if name not in _functions(ROOT / path)]


def _functions(path: Path) -> set[str]:
    if not path.exists():
        return set()
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef)}


def main() -> None:
    """Write the table into the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    PAGE.write_text(before + table() + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main()
