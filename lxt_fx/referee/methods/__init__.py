"""The methods that the bench knows by name: every rule table, and what others propose."""

from __future__ import annotations

from lxt_fx.referee.contest import Method
from lxt_fx.referee.methods.by_gradient import (
    AbsoluteGradient,
    Gradient,
    GradientNorm,
    IntegratedGradients,
    TableMethod,
)
from lxt_fx.referee.methods.by_removal import LeaveOneOut
from lxt_fx.referee.methods.controls import ByPosition, RandomOrder
from lxt_fx.referee.methods.of_captum import CaptumMethod
from lxt_fx.referee.methods.of_lxt import LxtMethod
from lxt_fx.referee.methods.rollout import AttentionRollout
from lxt_fx.rule_table.tables import TABLES

_OTHERS: tuple[Method, ...] = (
    Gradient(),
    AbsoluteGradient(),
    GradientNorm(),
    IntegratedGradients(),
    IntegratedGradients("integrated_gradients_mean", baseline="mean"),
    AttentionRollout(),
    LeaveOneOut(),
    RandomOrder(),
    ByPosition("first_tokens", "first"),
    ByPosition("last_tokens", "last"),
    ByPosition("centre", "centre"),
    LxtMethod(),
    CaptumMethod("captum_input_x_gradient", "InputXGradient"),
    CaptumMethod("captum_integrated_gradients", "IntegratedGradients", {"n_steps": 20, "internal_batch_size": 10}, True),
    CaptumMethod("captum_gradient_shap", "GradientShap", {"n_samples": 10}, True),
)

METHODS: dict[str, Method] = {
    **{name: TableMethod(name, name) for name in TABLES if name != "gradient"},
    **{method.name: method for method in _OTHERS},
}
"""By name. The table `gradient` is the model's own gradient, which is asked of the model itself."""
