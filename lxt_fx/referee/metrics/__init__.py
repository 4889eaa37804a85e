"""The metrics that the bench knows by name."""

from __future__ import annotations

from lxt_fx.referee.contest import Metric
from lxt_fx.referee.metrics.gold import GoldMass, GoldRank, GoldRecall, Pointing
from lxt_fx.referee.metrics.removal import Area, Deletion, LeaveOneOutCorrelation, MagnitudeAligned
from lxt_fx.referee.metrics.sanity import RandomisedWeights
from lxt_fx.referee.metrics.shapley import ShapleyCorrelation
from lxt_fx.referee.metrics.soft import SoftRemoval

_METRICS: tuple[Metric, ...] = (
    Area(),
    Area("area_zero", "zero"),
    Area("area_mean", "mean"),
    LeaveOneOutCorrelation(),
    ShapleyCorrelation(),
    SoftRemoval("soft_comprehensiveness", "comprehensiveness"),
    SoftRemoval("soft_sufficiency", "sufficiency"),
    GoldRecall(),
    GoldMass(),
    GoldRank(),
    Pointing(),
    Deletion(),
    MagnitudeAligned(),
    RandomisedWeights(),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in _METRICS}
"""By name."""
