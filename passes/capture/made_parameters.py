"""Parameters that a model has only after its first call."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn.parameter import is_lazy

from lxt_fx.base.errors import InputError


def refuse_made_parameters(model: nn.Module, made: Sequence[str] = ()) -> None:
    """Analysis: raises InputError for a model with parameters that its first call makes (`nn.LazyLinear`), or whose forward
    `made` some of these names. They would not be those that the user's own first call draws."""
    names = [*(name for name, x in model.named_parameters() if is_lazy(x)), *made]
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise InputError(
            f"transform: {type(model).__name__} makes its parameters {names[0]}{more} in its first call, and no run of "
            "transform changes the model; call the model once on your inputs, so that it has them, and transform it then"
        )
