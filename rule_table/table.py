"""A rule table: rules tried in order."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from lxt_fx.base.errors import InputError
from lxt_fx.base.one_line import one_line
from lxt_fx.base.public_door import public
from lxt_fx.base.torch_internals import OpOverload
from lxt_fx.rule_table.functions_as_places import FUNCTIONS
from lxt_fx.rule_table.rule import Rule, kind_text
from lxt_fx.rule_table.selectors import Selector, selector_text
from lxt_fx.views.listed import Listed

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

WIDEST, WIDE = 160, 120
"""Columns of a printed table where there is no terminal, and the fewest that its five columns need."""


@dataclass(frozen=True, slots=True)
class RuleTable(Listed):
    """Rules tried in order on every carrying node; the first that does not refuse wins. `summary` is one sentence, `paper`
    what to cite."""

    name: str
    rules: tuple[Rule, ...]
    summary: str = ""
    paper: str = ""

    def __repr__(self) -> str:
        return f"RuleTable({one_line(self.name, 80)}, {len(self.rules)} rules)"

    def override(self, where: Selector, rule: Rule | RuleTable) -> RuleTable:
        """A new table that tries `rule`, or the rules of another table, first on the nodes that `where` selects: a module
        path (`model.layers.*.mlp`, which selects all inside it), a module class, a function (torch.softmax), an ATen op, or
        a node (`%mul_3`).

        Raises InputError if `where` or `rule` is of another type.
        """
        if callable(where) and not isinstance(where, (type, OpOverload)) and where not in FUNCTIONS:
            known = ", ".join(sorted({function.__name__ for function in FUNCTIONS}))
            raise InputError(
                f"RuleTable.override: function {selector_text(where)!r} is no place that lxt_fx knows; it knows {known}; "
                "or name the ATen op, such as torch.ops.aten.tanh.default"
            )
        if not isinstance(where, (str, type, OpOverload)) and not callable(where):
            raise InputError(
                f"RuleTable.override: where must be a module path, a module class, an op or a %node, got {where!r}"
            )
        if isinstance(rule, RuleTable):
            return replace(self, rules=(*(replace(each, where=where) for each in rule.rules), *self.rules))
        if not isinstance(rule, Rule):
            raise InputError(f"RuleTable.override: rule must be a lxt_fx.Rule or RuleTable, got {_said(rule)}")
        return replace(self, rules=(replace(rule, where=where), *self.rules))

    def composite(self, rules: Mapping[Selector, Rule | RuleTable]) -> RuleTable:
        """A new table with `override` for each item; where two select a node, the earlier one counts.

        Raises InputError as `override` does.
        """
        table = self
        for where, rule in reversed(list(rules.items())):
            table = table.override(where, rule)
        return table

    @property
    def overrides(self) -> tuple[str, ...]:
        """Where rules were put first by `override`, the latest first."""
        return tuple(dict.fromkeys(selector_text(rule.where) for rule in self.rules if rule.where is not None))

    def with_rules(self, name: str, *rules: Rule, summary: str, paper: str = "") -> RuleTable:
        """A new table under another name that tries these rules before those of this one."""
        return RuleTable(name, (*rules, *self.rules), summary, paper or self.paper)

    def to_html(self, path: str | Path) -> None:
        """Writes one self-contained page in which the table is explored (`lxt_fx.explore`)."""
        public("explore")(self, path=path)

    def show(self) -> None:
        """Print the rules: what is tried first stands first."""
        print(self)

    def __rich__(self) -> RenderableType:
        return _drawn(self)

    def __str__(self) -> str:
        """The rules as text, in the order in which they are tried: a table, or a list where the terminal is narrow."""
        width = min(shutil.get_terminal_size((WIDEST, 24)).columns, WIDEST)
        return _as_table(self, width) if width >= WIDE else _as_list(self, width)


def _said(rule: object) -> str:
    """What was given in the place of a rule, and what to give."""
    kind = rule if isinstance(rule, type) else type(rule)
    name = "".join(word[:1].upper() + word[1:] for word in getattr(rule, "__name__", kind.__name__).split("_"))
    if kind.__module__.startswith("lxt_fx.nn"):
        return (
            f"lxt_fx.nn.{kind.__name__}, which wraps a module of a model written by hand (put it there, and transform with "
            "strict=False); rules for a table are those of lxt_fx.rules"
        )
    if getattr(rule, "__module__", "") in ("lxt_fx.rule_table.linear_rules", "lxt_fx.rules"):
        return f"the function that makes it: call it, {name}()"
    return kind.__name__


def _as_table(table: RuleTable, width: int) -> str:
    from rich.console import Console

    console = Console(width=width, record=True, file=StringIO(), color_system=None)
    console.print(_drawn(table), markup=False)
    return "\n".join(line.rstrip() for line in console.export_text().splitlines()) + "\n"


def _drawn(table: RuleTable) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    title = Text(f"{table.name}: {table.summary}", style="table.title")
    drawn = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    for column in ("rule", "ops", "formula", "source", "conserves"):
        drawn.add_column(column, no_wrap=column == "rule")
    for rule in table.rules:
        facts = (label_text(rule), ops_text(rule), rule.formula, rule.source, rule.conserves.value)
        drawn.add_row(*map(Text, facts))
    return drawn


def _as_list(table: RuleTable, width: int) -> str:
    lines = [*textwrap.wrap(f"{table.name}: {table.summary}", width), ""]
    for rule in table.rules:
        facts = (ops_text(rule), rule.formula, f"{rule.source}; conserves: {rule.conserves.value}")
        lines += [label_text(rule), *(line for fact in facts for line in _indented(fact, width)), ""]
    return "\n".join(lines)


def _indented(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent="    ", subsequent_indent="      ", break_on_hyphens=False)


def label_text(rule: Rule) -> str:
    """The name of a rule, with the place that an override gave it."""
    return rule.name if rule.where is None else f"{rule.name} at {selector_text(rule.where)}"


def ops_text(rule: Rule) -> str:
    """The ops that a rule is for, the first few by name."""
    if not rule.ops:
        return "any"
    names = [kind_text(op).removeprefix("aten.").removesuffix(".default") for op in rule.ops]
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
