"""The certificate of an explained module: the rule of each node on the relevance path, why it matched, what is not
proven."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from lxt_fx.base.errors import InputError
from lxt_fx.base.on_meta import NOT_COMPARED
from lxt_fx.base.one_line import one_line
from lxt_fx.base.public_door import public
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.transform import transform
from lxt_fx.passes.capture.opened_model import opened
from lxt_fx.passes.capture.settings import is_transformers
from lxt_fx.report.certificate_text import (
    citations,
    entries_text,
    gradient_text,
    graph_text,
    held_text,
    labelled,
    merged_text,
    no_tokens_text,
    not_followed_text,
    not_proven_text,
    packed_text,
    rules_text,
    written_out_text,
)
from lxt_fx.report.packed_maps import PackedMap, packed_maps
from lxt_fx.report.relevance_path import (
    Held,
    ListedRule,
    NotFollowed,
    NotProven,
    PathEntry,
    flow_that_runs,
    held_values,
    path_cuts,
    path_entries,
    unproven,
    values_not_followed,
)
from lxt_fx.views.listed import Listed

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, slots=True)
class Certificate(Listed):
    """The result of `certificate`. `print` gives all of it as text, `summary()` the part for a paper.

    `entries` are the nodes on the relevance path, in graph order. `cuts` are the nodes at which the path stops because
    their rule detaches every operand that it could go on to (attention weights in CP-LRP). `held` are all values that are
    detached on purpose. `not_followed` are the places where the path meets an op without a gradient. `not_proven` lists
    what the certificate cannot prove. `nodes` and `carrying` are the numbers of ops in the graph and on the path. `merged`
    names the batch norms that became part of the layer before them. `no_tokens` are inputs of whole numbers whose lookups
    are constants, because their names say that they are positions, types or the like. `packed` are the layers with packed
    weights, by whose unpacked weights relevance passes.
    """

    model_class: str
    table: str
    paper: str
    overrides: tuple[str, ...]
    merged: tuple[str, ...]
    method: str
    leaves: tuple[str, ...]
    forward_difference: float
    gradient_difference: float
    specialised: tuple[str, ...]
    guards: int
    versions: Mapping[str, str]
    nodes: int
    carrying: int
    entries: tuple[PathEntry, ...]
    cuts: tuple[PathEntry, ...]
    held: tuple[Held, ...]
    not_followed: tuple[NotFollowed, ...]
    not_proven: tuple[NotProven, ...]
    no_tokens: tuple[str, ...] = ()
    packed: tuple[PackedMap, ...] = ()
    written_out: tuple[str, ...] = ()
    copied_layers: int = 0

    def __repr__(self) -> str:
        proven = "proven" if self.proven else f"{len(self.not_proven)} points not proven"
        made = f"{one_line(self.model_class, 60)}, rules {one_line(self.table, 40)}"
        return f"Certificate({made}, {self.carrying} nodes on the path, {proven})"

    @property
    def proven(self) -> bool:
        """Whether `not_proven` is empty, so that each node on the relevance path has a rule that says what it conserves."""
        return not self.not_proven

    @property
    def counts(self) -> dict[ListedRule, int]:
        """The number of nodes of each rule, cuts included."""
        counts: dict[ListedRule, int] = {}
        for entry in (*self.entries, *self.cuts):
            counts[entry.rule] = counts.get(entry.rule, 0) + 1
        return counts

    def summary(self) -> str:
        """About twenty lines: how the module was made, its rules with counts and sources, and what is not proven."""
        made = [line for label, lines in self._made().items() for line in labelled(label, lines)]
        sources = [line for label, lines in self._sources().items() for line in labelled(label, lines)]
        return "\n".join(line.rstrip() for line in (*made, "", *rules_text(self.counts), "", *sources)) + "\n"

    def _made(self) -> dict[str, Sequence[str]]:
        """How the module was made, in lines by label."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        overridden = f", overridden at {', '.join(self.overrides)}" if self.overrides else ""
        difference = f"within {self.forward_difference:.1e} of the model's largest output"
        forward = (difference if self.forward_difference else "bit-equal to the model's") + " on the example"
        if math.isnan(self.forward_difference):
            forward = NOT_COMPARED
        cuts = f"; {len(self.cuts)} more stop it" if self.cuts else ""
        return {
            "certificate": [f"{self.model_class}   ({versions})"],
            "table": [self.table + overridden, *([self.paper] if self.paper else [])],
            "graph": [graph_text(self.method, self.nodes, self.copied_layers)],
            "merged": merged_text(self.merged),
            "packed": packed_text(self.packed),
            "path": [f"{self.carrying} ops carry relevance from the output to {', '.join(self.leaves)}{cuts}"],
            "no tokens": no_tokens_text(self.no_tokens),
            "forward": [forward],
            "gradient": [gradient_text(self.gradient_difference)],
            "written out": written_out_text(self.written_out),
            "fixed": [*(self.specialised or ["nothing"])],
            "checked": [f"{self.guards} conditions on input sizes in every call"],
        }

    def _sources(self) -> dict[str, Sequence[str]]:
        """Papers, what is held, and what is not proven, in lines by label."""
        return {
            "sources": citations(self.counts) or ["none"],
            "held": held_text(self.held),
            "not followed": not_followed_text(self.not_followed),
            "not proven": not_proven_text(self.not_proven),
        }

    def __rich__(self) -> RenderableType:
        """The summary as tables."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        def facts(labels: Mapping[str, Sequence[str]]) -> Table:
            table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
            for label, lines in labels.items():
                if lines:
                    table.add_row(label, Text("\n".join(lines)))
            return table

        rules = Table("rule", "ops", "formula", "source", "conserves")
        for rule, count in self.counts.items():
            rules.add_row(*map(Text, (rule.name, str(count), rule.formula, rule.source, rule.conserves.value)))
        title = Text(f"Certificate of {self.model_class}, rules {self.table}", style="bold")
        return Group(title, facts(self._made()), "", rules, "", facts(self._sources()))

    def __str__(self) -> str:
        """The summary, then every node by module; equal layers are listed once, with the names of the first."""
        return "\n".join([self.summary().rstrip(), *entries_text([*self.entries, *self.cuts])]) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values for `json.dumps`."""
        found = asdict(self) | {"versions": dict(self.versions), "proven": self.proven}
        found |= {"entries": [_flat(entry) for entry in self.entries], "cuts": [_flat(entry) for entry in self.cuts]}
        if math.isnan(self.forward_difference):  # JSON has no NaN
            found["forward_difference"] = None
        if math.isnan(self.gradient_difference):
            found["gradient_difference"] = None
        for each in found["packed"]:
            each["difference"] = None if math.isnan(each["difference"]) else each["difference"]
        found["counts"] = [_written(rule) | {"count": count} for rule, count in self.counts.items()]
        return found

    def to_json(self, path: str | Path) -> None:
        """Writes `to_dict()` to a file, UTF-8."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def to_html(self, path: str | Path) -> None:
        """Writes one self-contained page in which the certificate is explored (`lxt_fx.explore`)."""
        public("explore")(self, path=path)


def certificate(explained: nn.Module) -> Certificate:
    """The certificate of an explained module: the rule of every node that relevance passes, why it matched and why earlier
    rules did not, where relevance stops, and what is not proven. It is read from the graph that runs, not only from the
    record.

    `explained` is what `lxt_fx.transform` or `lxt_fx.load` made; a transformers model is transformed under `attnlrp`.
    Raises InputError for any other module, because the example inputs that `transform` needs are unknown.
    """
    explained = opened(explained, "certificate")
    if not isinstance(explained, Explained):
        if not is_transformers(explained):
            raise InputError(
                f"certificate: {type(explained).__name__} was not made by lxt_fx.transform or lxt_fx.load, so nothing is "
                "known of its rules; give it what lxt_fx.transform(model, (x,)) returns for an example x"
            )
        explained = transform(explained)
    record = explained.record
    flow = flow_that_runs(explained)
    entries = path_entries(explained, flow)
    ops = [node for node in explained.graph.nodes if node.op == "call_function"]
    return Certificate(
        model_class=record.model_class,
        table=record.table_name,
        paper=record.paper,
        overrides=record.overrides,
        merged=record.merged,
        method=record.method,
        leaves=record.leaves,
        forward_difference=record.forward_difference,
        gradient_difference=record.gradient_difference,
        specialised=record.specialised,
        guards=len(record.guards),
        versions=record.versions,
        nodes=len(ops),
        carrying=sum(node in flow.carrying for node in ops),
        entries=tuple(entries),
        cuts=tuple(path_cuts(explained, flow)),
        held=tuple(held_values(explained, flow)),
        not_followed=tuple(values_not_followed(explained, flow)),
        not_proven=tuple(unproven(explained, flow, entries)),
        no_tokens=record.no_tokens,
        copied_layers=record.copied_layers,
        packed=tuple(packed_maps(explained, flow)),
        written_out=record.written_out,
    )


def _written(rule: ListedRule) -> dict[str, str]:
    return {"rule": rule.name, "formula": rule.formula, "source": rule.source, "conserves": rule.conserves.value}


def _flat(entry: PathEntry) -> dict[str, Any]:
    return asdict(entry) | _written(entry.rule)
