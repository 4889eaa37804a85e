"""What a rule is: one row of data. What a rule table is: a tuple of rows, tried in order."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from io import StringIO
from typing import Any

from torch import nn
from torch.fx import Node

from lxt_fx.base.errors import InputError
from lxt_fx.base.nodes import module_stack
from lxt_fx.base.torch_internals import OpOverload
from lxt_fx.rule_table.functions_as_places import FUNCTIONS


class Keep(Enum):
    """What a row keeps of the relevance that reaches its op."""

    ALL = "all"
    ALL_BUT_CONSTANTS = "all but the share of constants (bias, mask, f(0))"
    ALL_BUT_OFFSET = "all but the softmax offset"
    ALL_BUT_ONE_SIDED = "all but the share of biases; where contributions of a sign are missing, not their part"
    ALL_BUT_ZEROS = "all but the share of biases and of inputs that are 0"
    SELECTED = "all, at the selected elements"
    NATIVE = "nothing is claimed: native gradient"


class GroupKind(Enum):
    """A region of several nodes that rows match as one."""

    RMS_NORM = "rms_norm"
    NORMALIZE = "x * statistic"
    NORMALIZE_QUOTIENT = "x / statistic"
    ELEMENTWISE = "elementwise"
    MODULE = "module"

    def __str__(self) -> str:
        return f"group {self.value}"


class Role(Enum):
    """A part that a node plays: in an attention written as matmul, softmax, matmul, in a router, or in the network.

    A projection is a linear map right before an attention (queries, keys, values) or right behind it. The first linear maps
    have none before them, the last ones have no linear map and no attention behind them.
    """

    SCORES = "attention scores"
    WEIGHTS = "attention weights"
    OUTPUT = "attention output"
    PROJECTION = "attention projection"
    FIRST = "first linear map"
    LAST = "last linear map"
    ROUTER = "normalised routing weights"
    RECURRENCE = "a step of a recurrence"


Op = OpOverload | GroupKind


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """A place where a row may match: one node, or a group of nodes that gives the value of `node`.

    `arguments` are those of the op by schema name; for a group those that its lxt_fx op takes. `carrying` names the
    arguments that carry relevance, once per operand. `members` are the nodes that a row on this site consumes.
    `parameters` names the operand of a product that is a parameter of a recurrence.
    """

    node: Node
    kind: Op | Callable[..., Any]
    arguments: Mapping[str, Any]
    carrying: tuple[str, ...]
    members: frozenset[Node]
    roles: frozenset[Role] = frozenset()
    parameters: tuple[str, ...] = ()

    def carries(self, *names: str) -> bool:
        """Whether exactly these arguments carry relevance."""
        return set(self.carrying) == set(names)


Refusal = str | None
Condition = Callable[[Site], Refusal]
Selector = str | type[nn.Module] | OpOverload | Callable[..., Any]


NOT_LISTED = ("op is not listed", "op is a group")
"""Refusals of the rows that have nothing to do with a site, which are most of them."""


@dataclass(frozen=True, slots=True)
class Match:
    """Why a row is on a node: the op or group that it took (`aten.silu.default`, `group rms_norm`), the operands that
    relevance leaves by, those that the row holds constant, why it matched, and (row, reason) of each row before it that
    lists the op and refused."""

    kind: str
    carrying: tuple[str, ...]
    held: tuple[str, ...]
    why: str
    refusals: tuple[tuple[str, str], ...] = ()


def always(site: Site) -> Refusal:
    """Refuses nothing."""
    return None


def no_settings(site: Site) -> Mapping[str, Any]:
    """The op takes the site's arguments and nothing else."""
    return {}


def holds_nothing(site: Site) -> tuple[str, ...]:
    """No operand is held constant."""
    return ()


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """One row: which ops and what each becomes (None keeps the ATen op), when, the formula, its source, what it keeps.

    `when` returns why not, or None; its docstring says what holds where it does not refuse. `settings` gives arguments of
    the op that the site does not have. `holds` names the operands that the row holds constant; no relevance flows into
    them, so relevance flow is marked again once all such rows are chosen. A row with empty `ops` matches any single node.
    `epsilon` is added, with the sign of z, to what eq. 8 of AttnLRP divides by; None takes that of `transform`. `explicit`
    gives ops of this row their equation: an op with the same arguments and value whose backward takes the relevance of its
    output to that of its inputs. It stands in the explicit form, and neither form puts an epsilon behind the op. An op of a
    user's without one has its own backward between `enter` and `leave` there: x times what it makes of R / z.
    """

    name: str
    ops: Mapping[Any, OpOverload | None]
    formula: str
    source: str
    keeps: Keep
    when: Condition = always
    holds: Callable[[Site], tuple[str, ...]] = holds_nothing
    settings: Callable[[Site], Mapping[str, Any]] = no_settings
    where: Selector | None = None
    epsilon: float | None = None
    explicit: Mapping[OpOverload, OpOverload] = field(default_factory=dict)

    def refuses(self, site: Site) -> Refusal:
        """Why this row does not apply to the site, or None if it does. An op that the row does not list gives a reason
        that starts with `op`."""
        if self.ops and site.kind not in self.ops:
            return NOT_LISTED[0]
        if not self.ops and isinstance(site.kind, GroupKind):
            return NOT_LISTED[1]
        if self.where is not None and not selects(self.where, site.node):
            return f"node is not in {selector_text(self.where)}"
        return self.when(site)

    def why(self, site: Site) -> str:
        """Why this row takes a site that it does not refuse, in sentences."""
        place = "" if self.where is None else f"Put first at {selector_text(self.where)}. "
        listed = f"Lists {kind_text(site.kind)}." if self.ops else "Takes any op."
        return f"{place}{listed} {statement(self.when)}".rstrip()

    def op(self, site: Site) -> OpOverload | None:
        """The lxt_fx op that takes the site's place, or None where the ATen op stays."""
        return self.ops.get(site.kind) if self.ops else None


def kind_text(kind: Op | Callable[..., Any]) -> str:
    """An op or a group as it is printed: `aten.silu.default`, `group rms_norm`, `getitem`."""
    return str(kind) if isinstance(kind, (OpOverload, GroupKind)) else getattr(kind, "__name__", str(kind))


def statement(condition: Condition) -> str:
    """What holds where the condition does not refuse: the first paragraph of its docstring, or its name. Nothing for
    `always`."""
    if condition is always:
        return ""
    if not inspect.isfunction(condition):
        return "Its condition holds."
    if not condition.__doc__:
        return f"Its condition {condition.__name__.strip('<>')} holds."
    return " ".join(inspect.cleandoc(condition.__doc__).split("\n\n")[0].split())


def selects(selector: Selector, node: Node) -> bool:
    """Whether a selector means this node: a module path with `*` for one segment (a module selects all inside it), a
    `%node` as printed, a module class, or an op."""
    if isinstance(selector, OpOverload):
        return node.target == selector
    if not isinstance(selector, (str, type)):
        return node.target in FUNCTIONS[selector]
    if isinstance(selector, type):
        wanted = f"{selector.__module__}.{selector.__qualname__}"
        return any(name == wanted for _, name in module_stack(node))
    if selector.startswith("%"):
        return fnmatch.fnmatchcase(node.name, selector[1:])
    pattern = selector.split(".")
    return any(_same_path(pattern, path.split(".")) for path, _ in module_stack(node))


def _same_path(pattern: list[str], path: list[str]) -> bool:
    return len(pattern) == len(path) and all(map(fnmatch.fnmatchcase, path, pattern))


@dataclass(frozen=True, slots=True)
class RuleTable:
    """Rows tried in order on every carrying node; the first that does not refuse wins. `summary` is one sentence, `paper`
    what to cite."""

    name: str
    rows: tuple[Rule, ...]
    summary: str = ""
    paper: str = ""

    def override(self, where: Selector, rule: Rule | RuleTable) -> RuleTable:
        """A new table that tries `rule`, or the rows of another table, first on the nodes that `where` selects: a module
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
            return replace(self, rows=(*(replace(row, where=where) for row in rule.rows), *self.rows))
        if not isinstance(rule, Rule):
            raise InputError(f"RuleTable.override: rule must be a lxt_fx.Rule or RuleTable, got {type(rule).__name__}")
        return replace(self, rows=(replace(rule, where=where), *self.rows))

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
        """Where rows were put first by `override`, the latest first."""
        return tuple(dict.fromkeys(selector_text(rule.where) for rule in self.rows if rule.where is not None))

    def with_rows(self, name: str, *rows: Rule, summary: str, paper: str = "") -> RuleTable:
        """A new table under another name that tries these rows before the rows of this one."""
        return RuleTable(name, (*rows, *self.rows), summary, paper or self.paper)

    def show(self) -> None:
        """Print the rows: what is tried first stands first."""
        print(self)

    def __str__(self) -> str:
        """The rows as a text table: what is tried first stands first."""
        from rich import box
        from rich.console import Console
        from rich.table import Table

        table = Table(title=f"{self.name}: {self.summary}", title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
        for column in ("row", "ops", "formula", "source", "keeps"):
            table.add_column(column, no_wrap=column == "row")
        for rule in self.rows:
            label = rule.name if rule.where is None else f"{rule.name} at {selector_text(rule.where)}"
            table.add_row(label, _ops_text(rule), rule.formula, rule.source, rule.keeps.value)
        console = Console(width=160, record=True, file=StringIO(), color_system=None)
        console.print(table, markup=False)
        return "\n".join(line.rstrip() for line in console.export_text().splitlines()) + "\n"


def _ops_text(rule: Rule) -> str:
    if not rule.ops:
        return "any"
    names = [str(op).removeprefix("aten.").removesuffix(".default") for op in rule.ops]
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def selector_text(selector: Selector | None) -> str:
    """A selector as it is printed."""
    return selector if isinstance(selector, str) else getattr(selector, "__name__", str(selector))
