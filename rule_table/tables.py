"""The named rule tables. A table is a tuple of rows; the first that does not refuse wins."""

from __future__ import annotations

from lxt_fx.rule import RuleTable
from lxt_fx.rule_table import rows

_LINEAR_ROWS = (
    rows.LINEAR,
    rows.CONVOLUTION,
    rows.MATMUL_LINEAR,
    rows.LINEAR_NATIVE,
    rows.BATCH_NORM,
    rows.SCALE,
    rows.SCALE_DIV,
    rows.SUM,
    rows.MOVE,
    rows.SELECT,
)

ATTNLRP = RuleTable(
    name="attnlrp",
    rows=(
        rows.NORM,
        rows.NORMALIZE,
        rows.ATTENTION_LINEAR,
        rows.ATTENTION,
        rows.MATMUL,
        rows.EINSUM,
        rows.SOFTMAX,
        rows.IDENTITY_REGION,
        rows.IDENTITY,
        rows.IDENTITY_POWER,
        rows.IDENTITY_CLAMP,
        rows.IDENTITY_FROM_ZERO,
        rows.IDENTITY_SOFTPLUS,
        rows.UNIFORM,
        *_LINEAR_ROWS,
    ),
    summary="The AttnLRP paper: softmax by Taylor, half to each factor of a product, identity through activations.",
    paper="Achtibat et al., AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for Transformers, ICML 2024",
)
CP_LRP = ATTNLRP.with_rows(
    "cp_lrp",
    rows.ATTENTION_HELD,
    rows.ATTENTION_WEIGHTS_HELD,
    rows.GATE_HELD,
    summary="Attention weights, gates and norm factors are held constant, so that the rest is linear and conserves.",
    paper="Ali et al., XAI for Transformers: Better Explanations through Conservative Propagation, ICML 2022",
)
GRADIENT = RuleTable(
    name="gradient",
    rows=(rows.NATIVE,),
    summary="No rule at all: plain input * gradient.",
    paper="Shrikumar et al., Not Just a Black Box, 2016",
)
LXT = ATTNLRP.with_rows(
    "lxt",
    rows.SOFT_CAP_NATIVE,
    rows.ROUTER_NATIVE,
    summary="attnlrp with LXT's choices where ours differ: a soft cap and the router's division keep their plain gradient.",
)
LXT_CP = CP_LRP.with_rows(
    "lxt_cp",
    rows.SOFT_CAP_NATIVE,
    rows.ROUTER_NATIVE,
    summary="cp_lrp with LXT's choices where ours differ: a soft cap and the router's division keep their plain gradient.",
    paper=CP_LRP.paper,
)

TABLES: dict[str, RuleTable] = {table.name: table for table in (ATTNLRP, CP_LRP, GRADIENT, LXT, LXT_CP)}
