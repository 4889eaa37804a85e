"""The named rule tables. A table is a tuple of rules; the first that does not refuse wins."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from lxt_fx.base.one_line import one_line
from lxt_fx.base.torch_internals import aten
from lxt_fx.ops.aten_kinds import CONVOLUTIONS
from lxt_fx.ops.packed import packed_linear
from lxt_fx.rule_table import basic_rules as basic
from lxt_fx.rule_table import conditions as on
from lxt_fx.rule_table import linear_rules, shares
from lxt_fx.rule_table.rule import Role, Rule
from lxt_fx.rule_table.table import RuleTable

_LINEAR_LAYERS = frozenset({aten.linear.default, aten.matmul.default, packed_linear})

_LINEAR = (
    basic.LINEAR,
    basic.CONVOLUTION,
    basic.MATMUL_LINEAR,
    basic.LINEAR_NATIVE,
    basic.SOLVE_LINEAR,
    basic.BATCH_NORM,
    basic.SCALE,
    basic.SCALE_DIV,
    basic.SUM,
    basic.SUM_BY_INDEX,
    basic.SAMPLE,
    basic.MOVE,
    basic.SELECT,
    basic.SELECT_BY_INDEX,
    basic.SOURCE,
    basic.OWN_BACKWARD,
    basic.LOSS,
)

_OF_THE_PAPER = RuleTable(
    name="attnlrp",
    rules=(
        basic.NORM,
        basic.NORMALIZE,
        basic.ATTENTION_LINEAR,
        basic.ATTENTION,
        basic.MATMUL,
        basic.EINSUM,
        basic.SOFTMAX,
        basic.LOG_SOFTMAX,
        basic.IDENTITY_REGION,
        basic.IDENTITY,
        basic.IDENTITY_POWER,
        basic.IDENTITY_CLAMP,
        basic.IDENTITY_PIECEWISE,
        basic.IDENTITY_FROM_ZERO,
        basic.IDENTITY_BASE,
        basic.IDENTITY_SOFTPLUS,
        basic.UNIFORM,
        basic.GATED_RECURRENCE,
        basic.SOLVE,
        *_LINEAR,
    ),
    summary="The AttnLRP paper: softmax by Taylor, half to each factor of a product, identity through activations.",
    paper="Achtibat et al., AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for Transformers, ICML 2024",
)
ATTNLRP = _OF_THE_PAPER.with_rules(
    "attnlrp",
    basic.RECURRENCE_HELD,
    summary=f"{_OF_THE_PAPER.summary} Recurrences, of which the paper says nothing, by MambaLRP.",
)
CP_LRP = _OF_THE_PAPER.with_rules(
    "cp_lrp",
    basic.ATTENTION_HELD,
    basic.ATTENTION_WEIGHTS_HELD,
    basic.RECURRENCE_HELD,  # before gates: what is written to a state may come out of an activation, and is no gate
    basic.GATE_HELD,
    summary="Attention weights, gates and norm factors are held constant, so that the rest is linear and conserves.",
    paper="Ali et al., XAI for Transformers: Better Explanations through Conservative Propagation, ICML 2022",
)
GRADIENT = RuleTable(
    name="gradient",
    rules=(basic.NATIVE,),
    summary="No rule at all: plain input * gradient.",
    paper="Shrikumar et al., Not Just a Black Box, 2016",
)
LXT = _OF_THE_PAPER.with_rules(
    "lxt",
    basic.SOFT_CAP_NATIVE,
    basic.ROUTER_NATIVE,
    summary="attnlrp with LXT's choices where ours differ: a soft cap and the router's division use the plain gradient.",
)
LXT_CP = _OF_THE_PAPER.with_rules(
    "lxt_cp",
    basic.SOFT_CAP_NATIVE,
    basic.ROUTER_NATIVE,
    basic.ATTENTION_HELD,
    basic.ATTENTION_WEIGHTS_HELD,
    basic.GATE_HELD,
    summary="cp_lrp with LXT's choices where ours differ: a soft cap and the router's division use the plain gradient.",
    paper=CP_LRP.paper,
)

RELP = ATTNLRP.with_rules(
    "relp",
    basic.ATTENTION_HELD,
    basic.ATTENTION_WEIGHTS_HELD,
    summary="Attention weights and norm factors are held; identity through activations, half to each factor of a gate.",
    paper="Rezaei Jafari et al., RelP: Faithful and Efficient Circuit Discovery via Relevance Patching, 2025",
)
LIBRAGRAD = replace(
    RELP,
    name="libragrad",
    summary="LibraGrad's pruned and scaled gradients, times the input: the same rules as relp, found from completeness.",
    paper="Mehri et al., LibraGrad: Balancing Gradient Flow for Better Vision Transformer Attributions, CVPR 2025",
)
MAMBA_LRP = ATTNLRP.with_rules(
    "mamba_lrp",
    basic.PARAMETER_HELD,
    summary="attnlrp, with whatever looks like a parameter of a recurrence held, sigmoid gates elsewhere too.",
    paper="Rezaei Jafari et al., MambaLRP: Explaining Selective State Space Sequence Models, NeurIPS 2024",
)
FROZEN_ATTENTION = RuleTable(
    name="frozen_attention",
    rules=(basic.ATTENTION_HELD, basic.ATTENTION_WEIGHTS_HELD, basic.NORM, basic.NORMALIZE, *_LINEAR, basic.NATIVE),
    summary="Attention weights and norm factors are held, all else has its own gradient, as in circuit tracing.",
    paper="Ameisen et al., Circuit Tracing: Revealing Computational Graphs in Language Models, 2025",
)
DETACHED_JACOBIAN = replace(
    CP_LRP,
    name="detached_jacobian",
    summary="Every factor A(x) of A(x) x is held, so that the network is one linear map of its input: the rules of cp_lrp.",
    paper="Golden, Equivalent Linear Mappings of Large Language Models, TMLR 2025",
)
GIM = ATTNLRP.with_rules(
    "gim",
    shares.temperature(2.0),
    shares.NATIVE_REGION,
    shares.NATIVE_ACTIVATION,
    summary="attnlrp, with every softmax passing relevance as at temperature 2 and activations by their own gradient.",
    paper="Edin et al., GIM: Improved Interpretability for Large Language Models, 2025",
)
PA_LRP = ATTNLRP.with_rules(
    "pa_lrp",
    basic.POSITION,
    summary="attnlrp, and half of what a rotated query or key receives is the relevance of its position (RoPE).",
    paper="Bakish et al., Revisiting LRP: Positional Attribution as the Missing Ingredient for Transformer "
    "Explainability, 2025",
)
EPSILON = ATTNLRP.with_rules(
    "epsilon",
    linear_rules.epsilon(1e-6),
    summary="attnlrp, with LRP-epsilon for linear layers and convolutions.",
    paper="Bach et al., On Pixel-Wise Explanations for Non-Linear Classifier Decisions by LRP, PLOS ONE 2015",
)
_VISION = "Montavon et al., Layer-Wise Relevance Propagation: An Overview, 2019"


def dpa(
    query: float = 0.25, key: float = 0.25, value: float = 0.5, gate: float = 0.5, up: float = 0.5
) -> RuleTable:
    """Dual Path Attribution: attnlrp, with these shares for queries, keys and values of an attention, and for a gate and
    what it gates. With the shares of the paper, the defaults, it is attnlrp (Jantsch et al. 2026).

    Raises InputError for a share below 0, or where those of an attention or of a gate do not add up to 1.
    """
    return ATTNLRP.with_rules(
        "dpa",
        *shares.attention(query, key, value),
        shares.gate(gate, up),
        summary=f"attnlrp, with shares {query:g}, {key:g}, {value:g} for queries, keys and values, {gate:g} for a gate and "
        f"{up:g} for what it gates.",
        paper="Jantsch et al., Dual Path Attribution: Efficient Attribution for SwiGLU-Transformers through Layer-Wise "
        "Target Propagation, 2026",
    )


def attnlrp_gamma(conv: float = 0.25, linear: float = 0.05) -> RuleTable:
    """attnlrp for vision: LRP-gamma with gamma `conv` in convolutions and `linear` in linear layers; epsilon in the
    projections of attentions and in the last layers (AttnLRP, Achtibat et al. 2024, sec. 4; `lxt_fx.tune` finds gammas).

    Raises InputError for a gamma below 0.
    """
    return _with_gamma(ATTNLRP, conv, linear)


def cp_lrp_gamma(conv: float = 0.25, linear: float = 0.05) -> RuleTable:
    """cp_lrp for vision, with the gammas of `attnlrp_gamma`: attention weights held, so that gamma is easier to choose.

    Raises InputError for a gamma below 0.
    """
    return _with_gamma(CP_LRP, conv, linear)


def epsilon_plus(first: Rule | None = None) -> RuleTable:
    """z-plus in convolutions, epsilon in linear layers, `first` (`linear_rules.flat()`, say) in the first layers."""
    return _for_convolutions("epsilon_plus", linear_rules.z_plus(), first, "z-plus")


def epsilon_alpha2_beta1(first: Rule | None = None) -> RuleTable:
    """alpha-beta (2, 1) in convolutions, epsilon in linear layers, `first` in the first layers."""
    return _for_convolutions("epsilon_alpha2_beta1", linear_rules.alpha_beta(2, 1), first, "alpha-beta (2, 1)")


def epsilon_gamma_box(
    low: linear_rules.Bound | None = None, high: linear_rules.Bound | None = None, gamma: float = 0.25
) -> RuleTable:
    """gamma in convolutions, epsilon in linear layers, and z-box in the first layers, for pixels between `low` and `high`.

    Raises InputError where a bound is missing, or gamma is below 0.
    """
    box = linear_rules.z_box(low, high)
    return _for_convolutions("epsilon_gamma_box", linear_rules.gamma(gamma), box, f"gamma {gamma:g}")


def _with_gamma(table: RuleTable, conv: float, linear: float) -> RuleTable:
    return table.with_rules(
        f"{table.name}_gamma",
        _at(Role.PROJECTION, linear_rules.epsilon(1e-6)),
        _at(Role.LAST, linear_rules.epsilon(1e-6)),
        _lists(linear_rules.gamma(conv), CONVOLUTIONS),
        _lists(linear_rules.gamma(linear), _LINEAR_LAYERS),
        summary=f"{table.name}, gamma {conv:g} in convolutions and {linear:g} in linear layers, epsilon by attentions.",
        paper=f"{table.paper}; {_VISION}",
    )


def _for_convolutions(name: str, rule: Rule, first: Rule | None, text: str) -> RuleTable:
    found = (_lists(rule, CONVOLUTIONS), linear_rules.epsilon(1e-6))
    first_rules = () if first is None else (_at(Role.FIRST, first),)
    first_text = "" if first is None else f", {first.name} in the first layers"
    summary = f"{text} in convolutions, epsilon in linear layers{first_text}; attnlrp for the rest."
    return ATTNLRP.with_rules(name, *first_rules, *found, summary=summary, paper=_VISION)


def _lists(rule: Rule, ops: Collection[object]) -> Rule:
    """The rule, for these of its ops only."""
    return replace(rule, ops={op: new for op, new in rule.ops.items() if op in ops})


def _at(role: Role, rule: Rule) -> Rule:
    """The rule, for nodes that play this part only."""
    return replace(rule, name=f"{rule.name} ({role.value})", when=on.all_of(on.role_is(role), rule.when))


class Tables(dict[str, RuleTable]):
    """Rule tables by name."""

    def __repr__(self) -> str:
        return one_line(f"TABLES({', '.join(self)})", 190)


TABLES = Tables(
    (table.name, table)
    for table in (
        ATTNLRP,
        CP_LRP,
        GRADIENT,
        EPSILON,
        attnlrp_gamma(),
        cp_lrp_gamma(),
        epsilon_plus(),
        epsilon_alpha2_beta1(),
        RELP,
        MAMBA_LRP,
        LIBRAGRAD,
        FROZEN_ATTENTION,
        DETACHED_JACOBIAN,
        dpa(),
        GIM,
        PA_LRP,
        LXT,
        LXT_CP,
    )
)
"""The tables that `transform(rules=...)` knows by name."""

WITH_ARGUMENTS: dict[str, str] = {
    "epsilon_gamma_box": "lxt_fx.rule_table.tables.epsilon_gamma_box(low, high), least and greatest value of a pixel"
}
"""Tables that need arguments, and so have no name for `transform`: how to make each."""
