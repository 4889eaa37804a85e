"""What the steps of `transform` hand on: the canonical graph, the rules that were chosen, the rewritten module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.record import Stage
from lxt_fx.passes.analysis.assign_rules import Plan
from lxt_fx.passes.analysis.find_groups import Groups
from lxt_fx.passes.analysis.mark_flow import Flow
from lxt_fx.passes.canonical.cut_at_lookups import Front
from lxt_fx.passes.canonical.write_out import WrittenOut
from lxt_fx.passes.capture.example import Example
from lxt_fx.passes.positions.asked_positions import Narrowing
from lxt_fx.passes.verify_gradient.verify_gradient import GradientProof
from lxt_fx.rule_table.rule import Match


@dataclass(frozen=True, slots=True)
class Canonical:
    """What is known of the canonical graph. `example` are its inputs, and `fronts` compute those of them that are looked up
    by tokens. `check` compares a forward with the forward of this graph. `no_tokens` are inputs that look up a table and
    are no tokens, by their name."""

    example: Example
    fronts: tuple[Front, ...]
    flow: Flow
    check: Callable[..., None]
    no_tokens: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Chosen:
    """The rule of each node. `merged` names the batch norms that became part of the layer before them, and `written` says
    which ops were written out in others."""

    flow: Flow
    groups: Groups
    plan: Plan
    merged: tuple[str, ...]
    check: Callable[..., None]
    written: WrittenOut


@dataclass(frozen=True, slots=True)
class Compiled:
    """The rewritten module, and what the steps found out on the way. `sizes` are those of the inputs, with None for a free
    one. `narrowing` selects the positions that were asked for, if some were. `renamed` are nodes of the canonical graph
    that have another name in the rewritten one, with that name."""

    module: Explained
    begun: Canonical
    proof: GradientProof
    chosen: Chosen
    stages: Mapping[str, Stage]
    matches: Mapping[str, Match]
    sizes: Mapping[str, tuple[int | None, ...]]
    narrowing: Narrowing | None
    renamed: Mapping[str, str]
