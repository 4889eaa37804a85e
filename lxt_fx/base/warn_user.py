"""Warnings that point to the line of the user's code."""

from __future__ import annotations

import inspect
import warnings

from lxt_fx.base.progress import hidden

_BETWEEN = ("lxt_fx", "passes", "rule_table", "contextlib", "torch")
"""Packages whose frames stand between the user's line and a warning: ours, and what decorators add."""


def warn_user(text: str) -> None:
    """Warns in the name of the first caller outside of this package."""
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in _BETWEEN:
        level, frame = level + 1, frame.f_back
    with hidden():
        warnings.warn(text, stacklevel=level)
