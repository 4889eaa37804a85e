"""What a model is, as text and identities, so that two moments can be compared. It shares no code with lxt_fx."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

PLAIN = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device)


def as_it_is(model: nn.Module) -> dict[str, Any]:
    """Everything that the model's modules and their configs hold, by path: plain values as text, other objects by identity,
    and the values of tensors by their sums."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        found[f"{path}!"] = (id(module), type(module), list(vars(module)))
        for name, value in vars(module).items():
            _add(found, f"{path}.{name}", value)
    return found


def changed(before: dict[str, Any], model: nn.Module) -> list[str]:
    """The paths at which the model is not what it was before, the order of attributes and of submodules included."""
    now = as_it_is(model)
    return sorted(path for path in {*before, *now} if path not in now or path not in before or before[path] != now[path])


def _add(found: dict[str, Any], path: str, value: Any, depth: int = 6) -> None:
    if isinstance(value, PLAIN):
        found[path] = repr(value)
    elif isinstance(value, Tensor):
        known = () if value.is_meta or is_lazy(value) else (value.shape, str(float(value.detach().double().abs().sum())))
        found[path] = (id(value), type(value), value.dtype, value.requires_grad, known)
    elif isinstance(value, nn.Module) or not depth:
        found[path] = id(value)
    elif isinstance(value, dict):
        found[path] = (id(value), list(map(repr, value)))
        for key, item in value.items():
            _add(found, f"{path}[{key!r}]", item, depth - 1)
    elif isinstance(value, (list, tuple)):
        found[path] = (id(value) if isinstance(value, list) else "tuple", len(value))
        for index, item in enumerate(value):
            _add(found, f"{path}[{index}]", item, depth - 1)
    elif isinstance(value, set):
        found[path] = sorted(map(repr, value))
    elif "config" in type(value).__name__.lower() or type(value).__module__ == "types":
        found[path] = id(value)
        for name, item in list(getattr(value, "__dict__", {}).items()):
            _add(found, f"{path}.{name}", item, depth - 1)
    else:
        found[path] = id(value)
