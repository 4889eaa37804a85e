"""What a rule is: which ops, when, what each becomes, and what it conserves, as one piece of data."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from torch.fx import Node

from lxt_fx.base.one_line import one_line
from lxt_fx.base.torch_internals import OpOverload
from lxt_fx.rule_table.selectors import Selector, selector_text, selects


class Conserves(Enum):
    """How much of the relevance that reaches its op a rule passes on; the op absorbs the rest."""

    ALL = "all"
    ALL_BUT_CONSTANTS = "all but the share of constants (bias, mask, f(0))"
    ALL_BUT_OFFSET = "all but the softmax offset"
    ALL_BUT_ONE_SIDED = "all but the share of biases; where contributions of a sign are missing, not their part"
    ALL_BUT_ZEROS = "all but the share of biases and of inputs that are 0"
    ALL_BUT_POSITIONS = "half; the other half is the relevance of positions"
    SELECTED = "all, at the selected elements"
    NATIVE = "nothing is claimed: native gradient"


class GroupKind(Enum):
    """What a group of several nodes computes that a rule takes as one op."""

    RMS_NORM = "rms_norm"
    NORMALIZE = "x * statistic"
    NORMALIZE_QUOTIENT = "x / statistic"
    ELEMENTWISE = "elementwise"
    MODULE = "module"

    def __str__(self) -> str:
        return f"group {self.value}"


class Role(Enum):
    """The part that a node plays: in an attention written as matmul, softmax, matmul; in a router; or in the network.

    A projection is a linear map right before an attention (queries, keys, values) or right behind it. The first linear maps
    have no linear map before them; the last ones have no linear map and no attention behind them. A rotation by position
    (RoPE) turns queries and keys by tables of constants: x cos + P(x) sin.
    """

    SCORES = "attention scores"
    WEIGHTS = "attention weights"
    OUTPUT = "attention output"
    PROJECTION = "attention projection"
    FIRST = "first linear map"
    LAST = "last linear map"
    ROUTER = "normalised routing weights"
    RECURRENCE = "a step of a recurrence"
    ROTATION = "a product with a table in a rotation by position"


Op = OpOverload | GroupKind

WIDTH = 80
"""Columns of a printed rule."""


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """A place where a rule may match: one node, or a group of nodes that computes the value of `node`.

    `arguments` are those of the op by schema name; for a group, those that its lxt_fx op takes. `carrying` names the
    arguments that carry relevance, once per operand. `members` are the nodes that a rule at this site replaces.
    `parameters` names the operand of a product that is a parameter of a recurrence, `gates` the operands that come out of
    an activation. `of_group` says of a node that it is the last one of a group, which is a site too.
    """

    node: Node
    kind: Op | Callable[..., Any]
    arguments: Mapping[str, Any]
    carrying: tuple[str, ...]
    members: frozenset[Node]
    roles: frozenset[Role] = frozenset()
    parameters: tuple[str, ...] = ()
    gates: tuple[str, ...] = ()
    of_group: bool = False

    def carries(self, *names: str) -> bool:
        """Whether exactly these arguments carry relevance."""
        return set(self.carrying) == set(names)


Refusal = str | None
Condition = Callable[[Site], Refusal]


NOT_LISTED = ("op is not listed", "op is a group")
"""The refusals of rules that have nothing to do with a site: most of them."""


@dataclass(frozen=True, slots=True)
class Match:
    """Why a node has its rule.

    `kind` is the op or group that the rule took (`aten.silu.default`, `group rms_norm`). Relevance leaves by the operands
    `carrying`; the rule holds `held` constant. `why` says why it matched. `refusals` has (rule, reason) for each earlier
    rule that lists the op and refused.
    """

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
    """One rule: which ops and what each becomes, when, the formula, its source, what it conserves.

    `ops` maps each ATen op or group to the lxt_fx op that replaces it; None leaves the ATen op, or all ops of the
    group, with its native gradient. A rule with empty `ops` matches any single node. `when` returns why the rule does
    not apply, or None; its docstring says what holds where it applies. `settings` gives arguments of the op that the
    site does not have, and `numbers` those that are the same at every site (a gamma): under other numbers the graph is
    the same. `holds` names the operands that the rule holds constant; no relevance flows into them, so the flow of
    relevance is marked again once all such rules are chosen. `where` is the place that `RuleTable.override` puts the
    rule at. `epsilon` is added, with the sign of z, to what AttnLRP eq. 8 divides by; None takes that of `transform`.

    `explicit` gives ops of this rule their equation for the explicit form: an op with the same arguments and value, whose
    backward takes the relevance of its output to that of its inputs. Neither form then puts an epsilon behind the op. A
    user's op without an equation uses its own vjp there, R_in = x * vjp(R / z); the certificate lists it as not proven.
    """

    name: str
    ops: Mapping[Any, OpOverload | None]
    formula: str
    source: str
    conserves: Conserves
    when: Condition = always
    holds: Callable[[Site], tuple[str, ...]] = holds_nothing
    settings: Callable[[Site], Mapping[str, Any]] = no_settings
    where: Selector | None = None
    epsilon: float | None = None
    explicit: Mapping[OpOverload, OpOverload] = field(default_factory=dict)
    numbers: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        place = "" if self.where is None else f" at {one_line(selector_text(self.where), 50)}"
        return f"Rule({one_line(self.name, 50)}{place}, {one_line(self.formula, 60)})"

    def __str__(self) -> str:
        """The rule as text: its facts, one a line, then every op with what it becomes."""
        facts = (
            ("formula", self.formula),
            ("source", self.source),
            ("conserves", self.conserves.value),
            ("when", statement(self.when) or "Always."),
            ("epsilon", "" if self.epsilon is None else f"{self.epsilon:g}"),
        )
        title = self.name if self.where is None else f"{self.name} at {selector_text(self.where)}"
        lines = [line for name, text in facts if text for line in _hanging(f"{name:<11}{text}", " " * 11)]
        ops = [_becomes(op, new) for op, new in self.ops.items()] or ["any op stays"]
        return "\n".join((title, *lines, *(line for op in ops for line in _hanging(op, " " * 4))))

    def refuses(self, site: Site) -> Refusal:
        """Why this rule does not apply to the site, or None if it does. Where the rule does not list the op, the reason
        starts with `op`."""
        if self.ops and site.kind not in self.ops:
            return NOT_LISTED[0]
        if not self.ops and isinstance(site.kind, GroupKind):
            return NOT_LISTED[1]
        if self.where is not None and not selects(self.where, site.node):
            return f"node is not in {selector_text(self.where)}"
        return self.when(site)

    def why(self, site: Site) -> str:
        """Why this rule takes a site that it does not refuse, in sentences."""
        place = "" if self.where is None else f"Put first at {selector_text(self.where)}. "
        listed = f"Lists {kind_text(site.kind)}." if self.ops else "Takes any op."
        return f"{place}{listed} {statement(self.when)}".rstrip()

    def op(self, site: Site) -> OpOverload | None:
        """The lxt_fx op that takes the site's place, or None where the ATen op stays."""
        return self.ops.get(site.kind) if self.ops else None


def _hanging(text: str, indent: str) -> list[str]:
    """The text in lines that a terminal of 80 columns can show, all but the first indented."""
    return textwrap.wrap(f"  {text}", WIDTH, subsequent_indent=f"  {indent}", break_on_hyphens=False)


def _becomes(op: Op | Callable[..., Any], new: OpOverload | None) -> str:
    old = kind_text(op).removeprefix("aten.").removesuffix(".default")
    return f"{old} stays" if new is None else f"{old} -> {str(new).removesuffix('.default')}"


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


