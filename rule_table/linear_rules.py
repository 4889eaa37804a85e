"""Rules for linear maps with constant weights, by parameter: linear, convolutions, a matmul with one constant operand.

Each function returns a rule for `RuleTable.override` or `with_rules`. c_ij = x_i w_ij is a contribution, c+ and c- its
parts above and below 0; the bias of output j is one more contribution. `epsilon` is added, with the sign of the sum, to
what the rule divides by; None takes that of `transform`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.base.nodes import shape, value
from lxt_fx.base.torch_internals import aten
from lxt_fx.ops import contributions, products
from lxt_fx.ops.aten_kinds import CONVOLUTIONS, TRANSPOSED
from lxt_fx.ops.contributions import RuleOps
from lxt_fx.ops.packed import packed_linear
from lxt_fx.rule_table import conditions as on
from lxt_fx.rule_table.rule import Condition, Conserves, Refusal, Rule, Site

Bound = float | Tensor


def epsilon(epsilon: float = 1e-6) -> Rule:
    """Contributions as they are, with a stable division: LRP-epsilon, and LRP-0 for 0.

    Raises InputError for an epsilon below 0.
    """
    _check_number("epsilon", "epsilon", epsilon)
    return Rule(
        name="epsilon",
        ops={
            aten.linear.default: products.linear,
            aten.matmul.default: products.matmul_held,
            packed_linear: None,
            **dict.fromkeys(sorted(CONVOLUTIONS, key=str)),
        },
        when=constant_weights,
        formula=f"R_i = sum_j c_ij R_j / (z_j + {epsilon:g} sign z_j)",
        source="LRP-epsilon (Bach et al. 2015, eq. 58)",
        conserves=Conserves.ALL_BUT_CONSTANTS,
        epsilon=float(epsilon),
    )


def gamma(gamma: float = 0.25, *, epsilon: float | None = None) -> Rule:
    """Contributions that have the sign of the output count 1 + gamma times. For inputs and weights of both signs.

    Raises InputError for a gamma below 0.
    """
    _check_number("gamma", "gamma", gamma)
    return _rule(
        "gamma",
        contributions.GAMMA,
        {"gamma": float(gamma)},
        f"R_i = sum_j (c + {gamma:g} c+)_ij R_j / sum_i (c + {gamma:g} c+)_ij, with c- where z_j < 0",
        "LRP-gamma (Montavon et al. 2019, sec. 10.2.1), both signs (Andeol et al. 2021)",
        Conserves.ALL_BUT_CONSTANTS,
        epsilon,
    )


def z_plus(*, epsilon: float | None = None) -> Rule:
    """Relevance goes to positive contributions only: alpha-beta with alpha 1 and beta 0. An output without positive
    contributions passes nothing on."""
    return _rule(
        "z-plus",
        contributions.Z_PLUS,
        {},
        "R_i = sum_j c+_ij R_j / sum_i c+_ij",
        "z+ rule of deep Taylor decomposition (Montavon et al. 2017)",
        Conserves.ALL_BUT_ONE_SIDED,
        epsilon,
    )


def excitation(*, epsilon: float | None = None) -> Rule:
    """z_plus with a bias that absorbs nothing: excitation backprop. An output without positive contributions passes nothing
    on."""
    return _rule(
        "excitation",
        contributions.EXCITATION,
        {},
        "R_i = sum_j c+_ij R_j / sum_i c+_ij, the bias not among the c",
        "excitation backprop (Zhang et al. 2016)",
        Conserves.ALL_BUT_ONE_SIDED,
        epsilon,
    )


def alpha_beta(alpha: float = 2.0, beta: float = 1.0, *, epsilon: float | None = None) -> Rule:
    """alpha times the relevance goes to positive contributions, -beta times to negative ones.

    An output without negative contributions passes on alpha times its relevance, one without positive ones -beta times.

    Raises InputError unless alpha - beta is 1 and beta at least 0.
    """
    _check_number("alpha_beta", "beta", beta)
    if not math.isclose(alpha - beta, 1.0, rel_tol=0, abs_tol=1e-12):
        raise InputError(
            f"alpha_beta: alpha - beta must be 1, so that relevance adds up; got alpha {alpha} and beta {beta}, which give "
            f"{alpha - beta:g}; take alpha_beta({beta + 1:g}, {beta:g})"
        )
    return _rule(
        "alpha-beta",
        contributions.ALPHA_BETA,
        {"alpha": float(alpha), "beta": float(beta)},
        f"R_i = sum_j ({alpha:g} c+_ij / sum_i c+_ij - {beta:g} c-_ij / sum_i c-_ij) R_j",
        "LRP-alpha-beta (Bach et al. 2015, eq. 60)",
        Conserves.ALL_BUT_ONE_SIDED,
        epsilon,
    )


def z_box(low: Bound | None = None, high: Bound | None = None, *, epsilon: float | None = None) -> Rule:
    """For inputs with low <= x <= high: pixels, also normalised ones. Bounds are numbers, or tensors that broadcast to x
    ([channels, 1, 1] for an image). Inputs are not checked against them.

    Raises InputError where a bound is missing or NaN, or low is above high.
    """
    lowest, highest = _bound("low", low), _bound("high", high)
    try:
        ordered = bool((lowest <= highest).all())
    except RuntimeError as error:
        raise InputError(f"z_box: low {list(lowest.shape)} and high {list(highest.shape)} do not broadcast") from error
    if not ordered:
        raise InputError(f"z_box: low must not be above high, got low {low} and high {high}")
    return _rule(
        "z-box",
        contributions.Z_BOX,
        {"low": lowest, "high": highest},
        "R_i = sum_j d_ij R_j / sum_i d_ij, d_ij = x_i w_ij - low_i w+_ij - high_i w-_ij",
        "zB rule of deep Taylor decomposition (Montavon et al. 2017)",
        Conserves.ALL_BUT_ZEROS,
        epsilon,
        when=on.all_of(constant_weights, _bounded_by(lowest, highest)),
    )


def w_square(*, epsilon: float | None = None) -> Rule:
    """Relevance in proportion to the squared weights, whatever the inputs are; b^2 absorbs its share."""
    return _rule(
        "w-square",
        contributions.W_SQUARE,
        {},
        "R_i = sum_j w_ij^2 R_j / (sum_i w_ij^2 + b_j^2)",
        "w2 rule of deep Taylor decomposition (Montavon et al. 2017)",
        Conserves.ALL_BUT_ZEROS,
        epsilon,
    )


def flat(*, epsilon: float | None = None) -> Rule:
    """Relevance in equal parts to all inputs that an output reads."""
    return _rule(
        "flat",
        contributions.FLAT,
        {},
        "R_i = sum_j R_j / n_j, n_j the number of inputs that z_j reads",
        "Unmasking Clever Hans (Lapuschkin et al. 2019)",
        Conserves.ALL_BUT_ZEROS,
        epsilon,
    )


def constant_weights(site: Site) -> Refusal:
    """Only the input carries: weights, bias and the other operand of a product are constant."""
    if len(site.carrying) != 1 or not {*site.carrying} <= {"input", "self", "other"}:
        return f"{', '.join(sorted(set(site.carrying) - {'input'}))} carries too"
    weight, x = shape(site.arguments[_held(site)]), shape(site.arguments[site.carrying[0]])
    if value(site.node).is_complex():
        return "its values are complex"
    if weight is None or x is None or len(weight) < 2 or (site.kind is aten.matmul.default and len(x) < 2 < len(weight)):
        return "its constant operand is no matrix"
    return None


def _bounded_by(low: Tensor, high: Tensor) -> Condition:
    def refuses(site: Site) -> Refusal:
        """The bounds broadcast to the input."""
        x = shape(site.arguments[site.carrying[0]]) or ()
        for name, bound in (("low", low), ("high", high)):
            pairs = zip(map(str, reversed(bound.shape)), map(str, reversed(x)), strict=False)
            fixed = [(size, wanted) for size, wanted in pairs if wanted.isdigit()]  # not a symbol for any size
            if bound.dim() > len(x) or any(size not in ("1", wanted) for size, wanted in fixed):
                return f"{name} {list(bound.shape)} does not broadcast to its input [{', '.join(map(str, x))}]"
        return None

    return refuses


def _held(site: Site) -> str:
    if site.kind is aten.matmul.default:
        return "self" if site.carries("other") else "other"
    return "weight"


def _rule(
    name: str,
    ops: RuleOps,
    settings: Mapping[str, Any],
    formula: str,
    source: str,
    conserves: Conserves,
    epsilon: float | None,
    when: Condition = constant_weights,
) -> Rule:
    if epsilon is not None:
        _check_number(name, "epsilon", epsilon)
    return Rule(
        name=name,
        ops={
            aten.linear.default: ops.linear,
            aten.matmul.default: ops.matmul,
            packed_linear: ops.packed,
            **dict.fromkeys(sorted(CONVOLUTIONS, key=str), ops.convolution),
        },
        when=when,
        settings=_map_settings,
        numbers=settings,
        formula=formula,
        source=source,
        conserves=conserves,
        epsilon=epsilon,
    )


def _map_settings(site: Site) -> Mapping[str, Any]:
    """Arguments of our op for the map that the ATen op does not have, or has in another form."""
    if site.kind is aten.matmul.default:
        return {"held": _held(site)}
    if site.kind in TRANSPOSED:
        return {"transposed": True}
    padding = site.arguments.get("padding")
    return {"padding": _padding(site, padding)} if isinstance(padding, str) else {}


def _padding(site: Site, word: str) -> list[int]:
    """The paddings "same" and "valid" as numbers; (before, after) for each dim where "same" is uneven."""
    kernel = (shape(site.arguments["weight"]) or ())[2:]
    dilation = site.arguments.get("dilation", [1] * len(kernel))
    if word == "valid":
        return [0] * len(kernel)
    totals = [d * (size - 1) for d, size in zip(dilation, kernel, strict=True)]
    if all(total % 2 == 0 for total in totals):
        return [total // 2 for total in totals]
    return [part for total in totals for part in (total // 2, total - total // 2)]


def _check_number(rule: str, name: str, number: float) -> None:
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 <= number < math.inf:
        raise InputError(f"{rule}: {name} must be a number of at least 0, got {number!r}")


def _bound(name: str, bound: Bound | None) -> Tensor:
    if isinstance(bound, bool) or not isinstance(bound, (int, float, Tensor)):
        raise InputError(
            f"z_box: {name} must be a number or a tensor that broadcasts to the input, got {bound!r}; it is the "
            f"{name}est value that an input can have"
        )
    found = bound.detach().clone() if isinstance(bound, Tensor) else torch.tensor(float(bound), dtype=torch.float64)
    if found.is_complex() or bool(found.isnan().any()):
        raise InputError(f"z_box: {name} must be a real number, got {bound}")
    return found
