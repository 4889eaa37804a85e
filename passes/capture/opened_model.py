"""The model inside of what people wrap around it: every public function that takes a model opens it here."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lxt_fx.base.errors import InputError
from lxt_fx.base.torch_internals import compiled_from
from lxt_fx.passes.capture.refused_models import refuse_model


def opened(model: object, function: str) -> nn.Module:
    """The module that computes what `model` computes, without its wrappers: DataParallel, DistributedDataParallel, what
    `torch.compile` returns, a PEFT model whose adapters sit inside of the base model, in any nesting. A module
    without a wrapper is returned as it is.

    A PEFT model that adds virtual tokens or computes more around its base model is no mere wrapper, and stays as it is.
    Raises InputError, in the name of `function`, for what is no module, for a TorchScript module, and for a
    model that is divided over ranks (`refuse_model`).
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"{function}: model must be a torch.nn.Module, got {type(model).__name__}")
    found = model
    while (inner := _inside(found)) is not None:
        found = inner
    if isinstance(found, torch.jit.ScriptModule):
        raise InputError(
            f"{function}: {type(found).__name__} is a TorchScript module, whose forward is no Python code any more; give "
            "the model that it was made from, or call it in the forward of an nn.Module of your own and give that (its "
            "graph then has the sizes of the example)"
        )
    refuse_model(found, function)
    return found


def _inside(model: nn.Module) -> nn.Module | None:
    """The model inside of this wrapper, None if it is none. Wrappers are known by name, so that no package is imported."""
    inner: Any = None
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        inner = model.module
    elif (compiled := compiled_from(model)) is not None:
        inner = compiled
    elif _class_from(model, "peft", "PeftModel") or _class_from(model, "peft", "PeftMixedModel"):
        inner = _base_model(model)
    return inner if isinstance(inner, nn.Module) else None


_PLAIN_TUNERS = ("BaseTuner", "AdaLoraModel")
"""Classes of PEFT whose forward calls the base model and changes no output but a training loss."""


def _base_model(model: Any) -> Any:
    """The model with its adapters inside, if a call of the PEFT model is a call of that and nothing else."""
    configs = list(getattr(model, "peft_config", {}).values())
    if any(getattr(config, "is_prompt_learning", False) for config in configs):
        return None
    if any(getattr(config, "alora_invocation_tokens", None) for config in configs):
        return None  # activated LoRA: the PEFT model finds where in the ids its adapter begins
    tuner = model.base_model
    defining = next(cls for cls in type(tuner).__mro__ if "forward" in vars(cls))
    return getattr(tuner, "model", None) if defining.__name__ in _PLAIN_TUNERS else None


def _class_from(model: nn.Module, package: str, name: str) -> bool:
    return any(cls.__name__ == name and cls.__module__.partition(".")[0] == package for cls in type(model).__mro__)


