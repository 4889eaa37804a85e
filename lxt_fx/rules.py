"""Rules by name for a composite: `transform(net, (x,), rules={nn.Linear: Gamma(0.05), "norm": Identity()})`.

Each is a row for the nodes at its place. `Epsilon`, `Gamma`, `ZPlus`, `Excitation`, `AlphaBeta`, `ZBox`, `WSquare` and
`Flat` serve linear layers, convolutions and matmuls with a constant (`rule_table.linear_rules`), `Uniform` products and
quotients of two carrying values; `Identity` and `Stop` take a module as a whole.
"""

from __future__ import annotations

from lxt_fx.ops import activations
from lxt_fx.rule_table import basic_rules as rows
from lxt_fx.rule_table import linear_rules
from lxt_fx.rule_table.rule import GroupKind, Keep, Rule

Epsilon = linear_rules.epsilon
Gamma = linear_rules.gamma
ZPlus = linear_rules.z_plus
Excitation = linear_rules.excitation
AlphaBeta = linear_rules.alpha_beta
ZBox = linear_rules.z_box
WSquare = linear_rules.w_square
Flat = linear_rules.flat


def Uniform() -> Rule:
    """Half of the relevance to each of two carrying factors (AttnLRP prop. 3.2)."""
    return rows.UNIFORM


def Identity() -> Rule:
    """R_in = R_out over a whole module that takes one carrying value to one of the same shape (AttnLRP eq. 9). What falls
    on inputs that are 0 is lost in gradient form, where value * gradient cannot carry it."""
    return Rule(
        name="identity",
        ops={GroupKind.MODULE: activations.identity},
        formula="R_in = R_out over the module: g_in = g_out y / x",
        source="AttnLRP (Achtibat et al. 2024) eq. 9",
        keeps=Keep.ALL_BUT_ZEROS,
    )


def Stop() -> Rule:
    """No relevance passes through a module: what it computes is a constant."""
    return Rule(
        name="stop",
        ops={},
        holds=lambda site: site.carrying,
        formula="y a constant: R_in = 0",
        source="a linearisation of one's own",
        keeps=Keep.ALL,
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
