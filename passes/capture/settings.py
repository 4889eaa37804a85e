"""Settings: arguments of a model that hold no tensor. A graph has them as constants, and a call that leaves one out means
what the model means by that: the default of its signature."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Container, Mapping
from typing import Any

from torch import nn

SWITCHES: dict[str, Any] = {"use_cache": False, "return_dict": True}
"""The settings that a transformers model is captured with."""

MAY_BE_REPEATED: dict[str, Any] = {
    **SWITCHES,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_router_logits": False,
}
"""Settings that a call may repeat, as every graph of a transformers model has them."""


def is_transformers(model: nn.Module) -> bool:
    """Whether the model describes its own inputs: a `transformers` model with a config."""
    return hasattr(model, "config") and hasattr(model, "main_input_name")


class Omitted(enum.Enum):
    """What a call has in the place of a setting that it leaves out."""

    OMITTED = "left out"


OMITTED = Omitted.OMITTED


def same_setting(one: Any, other: Any) -> bool:
    """Whether a model cannot tell these values apart. 1, 1.0 and True are three values: Python code and dtypes differ."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    try:
        return bool(one == other) or bool(one != one and other != other)
    except (ValueError, RuntimeError, TypeError):  # of values that cannot be compared as a whole, such as arrays
        return False


def defaults_of(model: nn.Module, names: Container[str] = ()) -> dict[str, Any]:
    """The values that the model's own signature has for settings, but for those that are None and for these names."""
    plain = (bool, int, float, str)
    found = {name: each.default for name, each in inspect.signature(model.forward).parameters.items()}
    return {name: value for name, value in found.items() if isinstance(value, plain) and name not in names}


def settings_to_repeat(model: nn.Module, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The settings of an example that a call must repeat to get its graph: without one of them the model takes another
    value, or none, where it passes its `**kwargs` or `*args` on. A setting without a default need not be repeated: the
    model has no answer without it. A cache never counts, since no graph has one."""
    return tuple(name for name, value in settings.items() if name != "use_cache" and not _goes_without(model, name, value))


def _goes_without(model: nn.Module, name: str, value: Any) -> bool:
    if is_transformers(model) and name in MAY_BE_REPEATED:  # the config decides, which capture does not change for these
        return same_setting(value, SWITCHES.get(name, bool(getattr(model.config, name, False))))
    parameter = inspect.signature(model.forward).parameters.get(name)
    if parameter is None:
        return False
    return parameter.default is parameter.empty or same_setting(value, parameter.default)
