"""Methods that compute nearly what a metric asks: that they do well under it is no finding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NEAR = frozenset({("LeaveOneOut", "LeaveOneOutCorrelation")})
"""Classes of a method and of a metric. Leave one out is the loss of each unit alone, with another replacement."""

NOTE = "near the definition"


def is_near(method: Mapping[str, Any], metric: Mapping[str, Any]) -> bool:
    """Whether a method, as the file declares it, computes nearly what a metric asks, under whatever names."""
    return (method.get("class"), metric.get("class")) in NEAR
