"""All rules. Each reads like the paper: which ops and what each becomes, when, the formula, its source, what it conserves.

g is the gradient that the rewritten graph passes; relevance is value * g.
"""

from __future__ import annotations

from dataclasses import replace

from lxt_fx.base.torch_internals import aten
from lxt_fx.ops import activations, norms, products, recurrences
from lxt_fx.ops.activations import ACTIVATIONS
from lxt_fx.ops.aten_kinds import CONVOLUTIONS, GROUPED_MATMULS, LOSSES, MOVES, SELECTIONS, SUMS, TRANSFORMS
from lxt_fx.ops.own_backward import OWN_BACKWARD as OWN_BACKWARD_OPS
from lxt_fx.ops.packed import packed_linear
from lxt_fx.ops.sources import SOURCES
from lxt_fx.rule_table import conditions as on
from lxt_fx.rule_table.rule import Conserves, GroupKind, Role, Rule

ATTNLRP = "AttnLRP (Achtibat et al. 2024)"
CP_LRP = "CP-LRP (Ali et al. 2022)"

NORM = Rule(
    name="norm",
    ops={GroupKind.RMS_NORM: norms.rms_norm, **{op: norm.op for op, norm in norms.OF.items()}},
    when=on.one_carries,
    formula="y = (x - mean) s, s held constant: R_in = R_out",
    source=f"{ATTNLRP} prop. 3.4",
    conserves=Conserves.ALL_BUT_CONSTANTS,
)
NORMALIZE = Rule(
    name="normalize",
    ops={GroupKind.NORMALIZE: norms.normalize_mul, GroupKind.NORMALIZE_QUOTIENT: norms.normalize_div},
    formula="y = x s(x), s held constant: R_in = R_out",
    source=f"{ATTNLRP} prop. 3.4",
    conserves=Conserves.ALL,
)
ATTENTION = Rule(
    name="attention",
    ops={aten.scaled_dot_product_attention.default: products.sdpa},
    settings=on.attention_shares(),
    formula="1/2 to v, 1/4 to q and to k; softmax between as R_i = x_i (R_i - s_i sum R)",
    source=f"{ATTNLRP} prop. 3.1 + 3.3",
    conserves=Conserves.ALL_BUT_OFFSET,
)
ATTENTION_LINEAR = Rule(
    name="attention of a constant",
    ops={aten.scaled_dot_product_attention.default: products.sdpa_held},
    when=on.only("value"),
    formula="R_v = v_i P_ji R_j / z_j",
    source=f"{ATTNLRP} eq. 8",
    conserves=Conserves.ALL,
)
MATMUL = Rule(
    name="matmul",
    ops={aten.matmul.default: products.matmul},
    when=on.two_carry,
    formula="half to each operand, then R_i = sum_j x_i W_ji R_j / z_j",
    source=f"{ATTNLRP} prop. 3.3",
    conserves=Conserves.ALL,
)
EINSUM = Rule(
    name="einsum",
    ops={aten.einsum.default: products.einsum},
    when=on.all_operands_carry,
    formula="an equal share to each operand, then R_i = sum_j x_i W_ji R_j / z_j",
    source=f"{ATTNLRP} prop. 3.3",
    conserves=Conserves.ALL,
)
SOFTMAX = Rule(
    name="softmax",
    ops={aten.softmax.int: products.softmax},
    formula="R_i = x_i (R_i - s_i sum_j R_j)",
    source=f"{ATTNLRP} prop. 3.1",
    conserves=Conserves.ALL_BUT_OFFSET,
)
LOG_SOFTMAX = Rule(
    name="log softmax",
    ops={aten.log_softmax.int: None, aten.logsumexp.default: None},
    formula="R_i = x_i (g_i - s_i sum_j g_j), of logsumexp x_i s_i g: native",
    source=f"the Taylor expansion of {ATTNLRP} prop. 3.1",
    conserves=Conserves.ALL_BUT_OFFSET,
)
IDENTITY = Rule(
    name="identity",
    ops={f.aten: f.op for f in ACTIVATIONS if f.at_zero == 0 and not f.some},
    formula="R_in = R_out: g_in = g_out y / x",
    source=f"{ATTNLRP} eq. 9",
    conserves=Conserves.ALL,
)
IDENTITY_POWER = Rule(
    name="identity",
    ops={aten.pow.Tensor_Scalar: activations.pow},
    when=on.exponent_is_a_number,
    formula="R_in = R_out: g_in = g_out x^(n-1)",
    source=f"{ATTNLRP} eq. 9",
    conserves=Conserves.ALL,
)
IDENTITY_CLAMP = Rule(
    name="identity",
    ops={aten.hardtanh.default: activations.hardtanh},
    when=on.range_holds_zero,
    formula="R_in = R_out: g_in = g_out y / x",
    source=f"{ATTNLRP} eq. 9",
    conserves=Conserves.ALL,
)
IDENTITY_PIECEWISE = Rule(
    name="identity",
    ops={aten.prelu.default: None},
    when=on.only("self"),
    formula="R_in = R_out: g_in = g_out y / x, the native gradient",
    source=f"{ATTNLRP} eq. 9",
    conserves=Conserves.ALL,
)
IDENTITY_FROM_ZERO = Rule(
    name="identity from f(0)",
    ops={f.aten: f.op for f in ACTIVATIONS if f.at_zero != 0 and not f.some},
    formula="R_in = R_out (y - f(0)) / y: f(0) absorbs its share",
    source=f"{ATTNLRP} eq. 9, with f(0) as a bias",
    conserves=Conserves.ALL_BUT_CONSTANTS,
)
IDENTITY_BASE = Rule(
    name="identity from f(0)",
    ops={aten.pow.Scalar: activations.exp_base},
    when=on.positive_base,
    formula="R_in = R_out (y - 1) / y: b^0 absorbs its share",
    source=f"{ATTNLRP} eq. 9, with f(0) as a bias",
    conserves=Conserves.ALL_BUT_CONSTANTS,
)
IDENTITY_SOFTPLUS = Rule(
    name="identity from f(0)",
    ops={aten.softplus.default: activations.softplus},
    when=on.default_softplus,
    formula="R_in = R_out (y - f(0)) / y: f(0) absorbs its share",
    source=f"{ATTNLRP} eq. 9, with f(0) as a bias",
    conserves=Conserves.ALL_BUT_CONSTANTS,
)
IDENTITY_REGION = Rule(
    name="identity",
    ops={GroupKind.ELEMENTWISE: activations.identity},
    when=on.same_shape,
    formula="R_in = R_out: g_in = g_out y / x",
    source=f"{ATTNLRP} eq. 9",
    conserves=Conserves.ALL_BUT_CONSTANTS,
)
UNIFORM = Rule(
    name="uniform",
    ops={aten.mul.Tensor: products.mul, aten.div.Tensor: products.div},
    when=on.two_carry,
    formula="R_a = R_b = R_out / 2",
    source=f"{ATTNLRP} prop. 3.2, eq. 7",
    conserves=Conserves.ALL,
)
LINEAR = Rule(
    name="linear",
    ops={aten.linear.default: products.linear, packed_linear: None},
    when=on.only("input"),
    formula="R_i = sum_j x_i W_ji R_j / z_j",
    source=f"{ATTNLRP} eq. 8",
    conserves=Conserves.ALL_BUT_CONSTANTS,
)
CONVOLUTION = Rule(
    name="linear",
    ops=dict.fromkeys(sorted(CONVOLUTIONS, key=str)),
    when=on.only("input"),
    formula="R_i = sum_j x_i W_ji R_j / z_j",
    source=f"{ATTNLRP} eq. 8",
    conserves=Conserves.ALL_BUT_CONSTANTS,
)
MATMUL_LINEAR = Rule(
    name="linear",
    ops={aten.matmul.default: products.matmul_held},
    when=on.one_carries,
    formula="R_i = sum_j x_i W_ji R_j / z_j",
    source=f"{ATTNLRP} eq. 8",
    conserves=Conserves.ALL,
)
LINEAR_NATIVE = Rule(
    name="linear",
    ops=dict.fromkeys((aten.einsum.default, aten.addmm.default, *sorted(GROUPED_MATMULS | TRANSFORMS, key=str))),
    when=on.one_carries,
    formula="R_i = sum_j x_i W_ji R_j / z_j",
    source=f"{ATTNLRP} eq. 8",
    conserves=Conserves.ALL_BUT_CONSTANTS,
)
SOLVE_LINEAR = Rule(
    name="linear",
    ops={aten.linalg_solve.default: None},
    when=on.only("B"),
    formula="A x = b with constant A: R_i = sum_j b_i (A^-1)_ji R_j / x_j",
    source=f"{ATTNLRP} eq. 8",
    conserves=Conserves.ALL,
)
SCALE = Rule(
    name="scale",
    ops={aten.mul.Tensor: None},
    when=on.one_carries,
    formula="y = c x: R_in = R_out",
    source=f"{ATTNLRP} eq. 8",
    conserves=Conserves.ALL,
)
SCALE_DIV = Rule(
    name="scale",
    ops={aten.div.Tensor: None},
    when=on.numerator_carries,
    formula="y = x / c: R_in = R_out",
    source=f"{ATTNLRP} eq. 8",
    conserves=Conserves.ALL,
)
BATCH_NORM = Rule(
    name="linear",
    ops={aten.batch_norm.default: None},
    when=on.all_of(on.in_evaluation, on.only("input")),
    formula="fixed statistics: y = a x + c, R_in = R_out less what c takes",
    source=f"{ATTNLRP} prop. 3.4",
    conserves=Conserves.ALL_BUT_CONSTANTS,
)
SUM = Rule(
    name="sum",
    ops=dict.fromkeys(sorted(SUMS, key=str)),
    formula="R_i = a_i / (a_1 + ... + a_n) R_out; a constant term takes its share",
    source=f"{ATTNLRP} eq. 8",
    conserves=Conserves.ALL_BUT_CONSTANTS,
)
MOVE = Rule(
    name="move",
    ops=dict.fromkeys(sorted(MOVES, key=str)),
    formula="R follows its element; constants (CLS, padding) absorb what reaches them",
    source="each output element is a copy",
    conserves=Conserves.ALL_BUT_CONSTANTS,
)
SELECT = Rule(
    name="select",
    ops=dict.fromkeys(sorted(SELECTIONS, key=str)),
    formula="R goes to the selected element",
    source="piecewise linear, native gradient",
    conserves=Conserves.SELECTED,
    epsilon=0.0,
)
SUM_BY_INDEX = Rule(
    name="sum",
    ops={aten.scatter_reduce.two: None},
    when=on.reduces_by("sum", "mean"),
    formula="R_i = a_i / (a_1 + ... + a_n) R_out; a constant term takes its share",
    source=f"{ATTNLRP} eq. 8",
    conserves=Conserves.ALL_BUT_CONSTANTS,
)
SELECT_BY_INDEX = Rule(
    name="select",
    ops={aten.scatter_reduce.two: None},
    when=on.reduces_by("amax", "amin"),
    formula="R goes to the selected element",
    source="piecewise linear, native gradient",
    conserves=Conserves.SELECTED,
    epsilon=0.0,
)
SAMPLE = Rule(
    name="sample",
    ops={aten.grid_sampler.default: None},
    holds=lambda site: ("grid",),
    formula="interpolation between input elements; where to look is constant",
    source=f"{ATTNLRP} eq. 8",
    conserves=Conserves.ALL,
)
ATTENTION_WEIGHTS_HELD = Rule(
    name="weights held",
    ops={aten.softmax.int: products.softmax},
    when=on.role_is(Role.WEIGHTS),
    holds=lambda site: ("self",),
    formula="attention weights constant: all relevance to v",
    source=CP_LRP,
    conserves=Conserves.ALL,
)
ATTENTION_HELD = Rule(
    name="weights held",
    ops={aten.scaled_dot_product_attention.default: products.sdpa_held},
    holds=lambda site: ("query", "key", "attn_mask"),
    formula="attention weights constant: all relevance to v",
    source=CP_LRP,
    conserves=Conserves.ALL,
)
GATE_HELD = Rule(
    name="gate held",
    ops={aten.mul.Tensor: None},
    when=on.one_gate,
    holds=on.gate,
    formula="y = a x with the gate a constant: R_x = R_out",
    source=CP_LRP,
    conserves=Conserves.ALL,
)
PARAMETER_HELD = Rule(
    name="parameter held",
    ops={
        aten.mul.Tensor: None,
        aten.div.Tensor: None,
        aten.einsum.default: None,
        aten.matmul.default: products.matmul_held,
    },
    when=on.one_parameter,
    holds=on.parameters,
    formula="h = a h + B x, y = C h with a, B, C and gates constant: all relevance to x and h",
    source="MambaLRP (Rezaei Jafari et al. 2024) sec. 4",
    conserves=Conserves.ALL,
)
GATED_RECURRENCE = Rule(
    name="gated recurrence",
    ops=dict(recurrences.OF),
    when=on.only_values_carry,
    formula="gate * signal with the gate a constant: all relevance to the signal; tanh: R_in = R_out; sums by eq. 8",
    source="Arras et al. 2017 sec. 3 (LRP-all in Arras et al. 2019)",
    conserves=Conserves.ALL_BUT_CONSTANTS,
)
SOLVE = Rule(
    name="matrix held",
    ops={aten.linalg_solve_triangular.default: None},
    when=on.right_side_carries,
    holds=lambda site: ("self",),
    formula="y = A^-1 b, a linear recurrence in one op, with A a constant: all relevance to b",
    source="MambaLRP (Rezaei Jafari et al. 2024) sec. 4",
    conserves=Conserves.ALL,
)
RECURRENCE_HELD = replace(PARAMETER_HELD, when=on.all_of(on.role_is(Role.RECURRENCE), on.one_parameter))
SOFT_CAP_NATIVE = Rule(
    name="native soft cap",
    ops={aten.tanh.default: None},
    when=on.soft_cap,
    formula="g_in = g_out (1 - tanh(x)^2)",
    source="what LXT does",
    conserves=Conserves.NATIVE,
)
ROUTER_NATIVE = Rule(
    name="native router",
    ops={aten.div.Tensor: None},
    when=on.all_of(on.role_is(Role.ROUTER), on.two_carry),
    formula="native gradient of w / sum(w), which nets to nothing",
    source="what LXT does",
    conserves=Conserves.NATIVE,
)
OWN_BACKWARD = Rule(
    name="own backward",
    ops=dict.fromkeys(sorted(OWN_BACKWARD_OPS, key=str)),
    formula="g_in = what the Function's own backward makes of g",
    source="the model's own autograd.Function",
    conserves=Conserves.NATIVE,
)
SOURCE = Rule(
    name="source",
    ops=dict.fromkeys(sorted(SOURCES, key=str)),
    formula="R_in = 0: what arrives is the relevance of the value itself",
    source="Sparse Feature Circuits (Marks et al. 2024) eq. 1",
    conserves=Conserves.ALL_BUT_CONSTANTS,
)
LOSS = Rule(
    name="loss",
    ops=dict.fromkeys(sorted(LOSSES, key=str)),
    formula="g_in = native gradient: relevance is that of the logits, and a loss is one target more, which is not linear",
    source="input * gradient",
    conserves=Conserves.NATIVE,
)
POSITION = Rule(
    name="position",
    ops={aten.mul.Tensor: products.mul},
    when=on.all_of(on.role_is(Role.ROTATION), on.one_carries),
    formula="q cos + rot(q) sin: R_q = R_out / 2 of each product, R_position = R_out / 2",
    source="position-aware LRP (Bakish et al. 2025), the uniform rule of AttnLRP prop. 3.2",
    conserves=Conserves.ALL_BUT_POSITIONS,
)
NATIVE = Rule(
    name="native",
    ops={},
    formula="g_in = native gradient",
    source="input * gradient",
    conserves=Conserves.NATIVE,
)
