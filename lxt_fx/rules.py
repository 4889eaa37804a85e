"""Rules by name for a composite: `transform(net, (x,), rules={nn.Linear: Gamma(0.05), "norm": Identity()})`.

Each is a rule for the nodes at its place. `Epsilon`, `Gamma`, `ZPlus`, `Excitation`, `AlphaBeta`, `ZBox`, `WSquare` and
`Flat` are for linear layers, convolutions and matmuls with a constant (`rule_table.linear_rules`). `Uniform` is for
products and quotients of two values that carry relevance. `Identity` and `Stop` are for whole modules.

`Epsilon`, `Uniform`, `Identity` and `Stop` also exist in `lxt_fx.nn`. Those are modules that wrap a module of a model
written by hand; these are rules that `transform` applies to a graph.
"""

from __future__ import annotations

from lxt_fx.ops import activations
from lxt_fx.rule_table import basic_rules, linear_rules
from lxt_fx.rule_table.rule import Conserves, GroupKind, Rule

Epsilon = linear_rules.epsilon
Gamma = linear_rules.gamma
ZPlus = linear_rules.z_plus
Excitation = linear_rules.excitation
AlphaBeta = linear_rules.alpha_beta
ZBox = linear_rules.z_box
WSquare = linear_rules.w_square
Flat = linear_rules.flat


def Uniform() -> Rule:
    """Half of the relevance to each of two factors that carry it (AttnLRP prop. 3.2). A rule for `transform`; the wrapper
    `lxt_fx.nn.Uniform` is for models written by hand."""
    return basic_rules.UNIFORM


def Identity() -> Rule:
    """R_in = R_out over a whole module that maps one value that carries relevance to one of the same shape (AttnLRP eq. 9).
    In gradient form relevance of inputs that are 0 is lost, because value * gradient is 0 there. A rule for `transform`;
    the wrapper `lxt_fx.nn.Identity` is for models written by hand."""
    return Rule(
        name="identity",
        ops={GroupKind.MODULE: activations.identity},
        formula="R_in = R_out over the module: g_in = g_out y / x",
        source="AttnLRP (Achtibat et al. 2024) eq. 9",
        conserves=Conserves.ALL_BUT_ZEROS,
    )


def Stop() -> Rule:
    """No relevance passes through a module: its output is detached. A rule for `transform`; the wrapper `lxt_fx.nn.Stop` is
    for models written by hand."""
    return Rule(
        name="stop",
        ops={},
        holds=lambda site: site.carrying,
        formula="y a constant: R_in = 0",
        source="a linearisation of one's own",
        conserves=Conserves.ALL,
    )


__all__ = [
    "AlphaBeta",
    "Epsilon",
    "Excitation",
    "Flat",
    "Gamma",
    "Identity",
    "Stop",
    "Uniform",
    "WSquare",
    "ZBox",
    "ZPlus",
]
