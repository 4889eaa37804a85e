"""Buffers that no checkpoint has (the frequencies of rotary embeddings, a scale of embeddings): a model on the meta device
has no values of them, so the model's own code makes them again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lxt_fx.base.errors import InputError
from lxt_fx.base.transformers_internals import is_of_transformers

_EMPTY = frozenset({torch.empty, torch.empty_strided, torch.rand, torch.randn, torch.normal})
"""What parameters are made by. Buffers are computed by others: arange, tensor, full, ones, tril."""


class _ParametersOnMeta(TorchFunctionMode):
    """New tensors without values of their own are made on the meta device."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func in _EMPTY:
            given["device"] = "meta"
        return func(*args, **given)


def not_in_checkpoints(model: nn.Module) -> dict[str, Tensor]:
    """The buffers of a model that its state dict leaves out, by every name that they have."""
    kept = model.state_dict().keys()
    return {name: found for name, found in model.named_buffers(remove_duplicate=False) if name not in kept}


def made_buffers(model: nn.Module, names: Collection[str]) -> dict[str, Tensor]:
    """These buffers, as the class of a model of transformers makes them from its config, on the CPU. No parameter gets
    memory. Raises InputError for another model, and where a buffer has no value or another shape then."""
    config = getattr(model, "config", None)
    if config is None or not is_of_transformers(model):
        raise InputError(
            f"pipeline: {type(model).__name__} has buffers that no checkpoint has ({_first(names)}) and is not a model of "
            "transformers, which could be made again from its config; give their values: buffers={name: tensor}"
        )
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), _ParametersOnMeta():
        again = type(model)(config)
    found, wanted = dict(again.named_buffers(remove_duplicate=False)), dict(model.named_buffers(remove_duplicate=False))
    bad = [name for name in names if name not in found or found[name].is_meta or found[name].shape != wanted[name].shape]
    if bad:
        raise InputError(
            f"pipeline: {type(model).__name__}(config) makes no value for the buffers {_first(bad)}, which no checkpoint "
            "has; give their values: buffers={name: tensor}"
        )
    return {name: found[name] for name in names}


def _first(names: Collection[str]) -> str:
    shown = sorted(names)[:5]
    return ", ".join(shown) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
