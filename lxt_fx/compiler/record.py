"""The record of an explained module: how `transform` made it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch.fx import Graph

from lxt_fx.base.one_line import one_line
from lxt_fx.rule_table.rule import Match, Rule
from lxt_fx.rule_table.table import RuleTable
from lxt_fx.views.listed import Listed

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, slots=True)
class Stage:
    """The graph after a step of `transform`, and what was known of its nodes, by node name."""

    name: str
    graph: Graph
    carrying: frozenset[str] = frozenset()
    rules: Mapping[str, Rule] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    inserted: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return f"Stage({self.name}, {len(self.graph.nodes)} nodes)"


@dataclass(frozen=True, slots=True)
class Record(Listed):
    """How `transform` made a module.

    `called_with` are the inputs that the model was captured with; a call may leave out those in `optional`. `inputs` are
    those of the graph. They differ where the model reads tokens: `inputs_embeds` is looked up by `input_ids`, and is an
    input of the graph in its place. A call may give such a value too: beside its tokens, or instead of them if it is in
    `given_alone`. `leaves` are the float inputs of the graph at which relevance is read. `specialised` says what is fixed
    to the example. `forward_difference` is the largest difference to the model's own output on the example, relative to
    its largest value: 0.0 means bit-equal, NaN not compared (meta device). `gradient_difference` is the largest difference
    of the graph's gradient, before any rule, to the model's own on the example, relative to the norm of the model's: NaN
    means not compared, and `gradient_note` says why, or where a backward was lost. `unknown` names nodes with their native
    gradient, because no rule accepted them (always empty under strict=True). `matches` says why the rule of a node matched,
    by name of the node in the rewritten graph. `form` is `gradient` or `explicit`. `overrides` are the places where the
    table was overridden. `merged` names the batch norms that became part of the layer before them. `positions` are the
    positions of the logits, None for all of them. `table` is the rule table itself, None for a module that was loaded from
    a file, which holds its name only. `order` are the names of positional inputs of a call, as the model has them; if it is
    empty, those of `called_with`. `constants` are the settings of the model that the graph has fixed, those that the
    example gave and the defaults of the model's signature. `to_repeat` names those that a call must give to get this
    graph, because the model takes another value for them if they are left out. `no_tokens` are inputs of whole numbers
    that look up a table and were taken, by their name, for positions, types or the like, so that what they look up is a
    constant. `padded_note` says why texts that are padded were not compared with the model's; empty if they were, or if
    there are no texts. `written_out` names the nodes whose op no rule takes and that therefore became the ops that it is
    written out in. `copied_layers` is the number of layers of the graph that are copies of one that was traced, because
    they are the same code with other weights; `traced_layers` says in sentences which layers looked alike and were traced
    one by one, and why. `not_kept` says why the capture is not kept, so that the next call captures the model again;
    empty if it is kept, or if the module was loaded. `renamed` are nodes of the canonical graph that have another name in
    the rewritten one, with that name.
    """

    model_class: str
    table_name: str
    form: str
    paper: str
    overrides: tuple[str, ...]
    merged: tuple[str, ...]
    called_with: tuple[str, ...]
    inputs: tuple[str, ...]
    given_alone: tuple[str, ...]
    leaves: tuple[str, ...]
    optional: tuple[str, ...]
    constants: Mapping[str, Any]
    method: str
    specialised: tuple[str, ...]
    guards: tuple[str, ...]
    sizes: Mapping[str, tuple[int | None, ...]]
    forward_difference: float
    seconds: Mapping[str, float]
    stages: Mapping[str, Stage] = field(repr=False)
    unknown: Mapping[str, str]
    matches: Mapping[str, Match] = field(repr=False)
    versions: Mapping[str, str]
    positions: tuple[int, ...] | None = None
    table: RuleTable | None = field(default=None, repr=False)
    gradient_difference: float = math.nan
    gradient_note: str = ""
    order: tuple[str, ...] = ()
    to_repeat: tuple[str, ...] = ()
    no_tokens: tuple[str, ...] = ()
    padded_note: str = ""
    written_out: tuple[str, ...] = ()
    copied_layers: int = 0
    traced_layers: tuple[str, ...] = ()
    not_kept: str = ""
    renamed: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        made = f"{self.form} form, captured by {self.method}, {len(self.matches)} rules matched"
        return f"Record({one_line(self.model_class, 60)}, rules {one_line(self.table_name, 40)}, {made})"

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        differences = {"forward": self.forward_difference, "gradient": self.gradient_difference}
        compared = (f"{name} {'not compared' if math.isnan(d) else f'{d:.1e}'}" for name, d in differences.items())
        facts = {
            "form": self.form,
            "captured by": f"{self.method}, {len(self.stages)} stages ({', '.join(self.stages)})",
            "inputs": ", ".join(self.inputs),
            "relevance at": ", ".join(self.leaves),
            "rules matched": str(len(self.matches)),
            "overridden at": ", ".join(self.overrides),
            "fixed": "; ".join(self.specialised),
            "traced one by one": "; ".join(self.traced_layers),
            "captured for each call": self.not_kept,
            "without a rule": ", ".join(self.unknown),
            "difference to the model": ", ".join(compared),
            "seconds": ", ".join(f"{name} {seconds:.2g}" for name, seconds in self.seconds.items()),
            "versions": ", ".join(f"{name} {version}" for name, version in self.versions.items()),
        }
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        for name, fact in facts.items():
            if fact:
                table.add_row(name, Text(fact))
        return Group(Text(f"{self.model_class}, rules {self.table_name}", style="bold"), table)
