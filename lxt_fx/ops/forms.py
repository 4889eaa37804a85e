"""The two forms in which rules run: modified gradients (fast), and relevance itself (the equations)."""

from __future__ import annotations

from typing import Literal

from lxt_fx.base.errors import InputError

Form = Literal["gradient", "explicit"]

EPSILONS = {"gradient": 0.0, "explicit": 1e-6}
"""The default epsilon of each form."""


def epsilon_of(form: str, epsilon: float | None, caller: str) -> float:
    """The epsilon to use: the one given, or that of the form.

    Raises InputError for a form that does not exist, or an epsilon below 0.
    """
    if form not in EPSILONS:
        raise InputError(f"{caller}: form must be one of {', '.join(EPSILONS)}, got {form!r}")
    if epsilon is not None and not epsilon >= 0:
        raise InputError(f"{caller}: epsilon must be at least 0, got {epsilon}")
    return EPSILONS[form] if epsilon is None else float(epsilon)
