"""Zennit's rules, canonizers and composites without the rest of zennit: its package imports torchvision, which they do not
need."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

SPEC = importlib.util.find_spec("zennit")
"""None where zennit is not installed."""


def module(name: str) -> Any:
    """The module `zennit.<name>`."""
    assert SPEC is not None
    if "zennit" not in sys.modules:
        package = ModuleType("zennit")
        package.__path__, package.__spec__ = list(SPEC.submodule_search_locations or []), SPEC
        sys.modules["zennit"] = package
    return importlib.import_module(f"zennit.{name}")


def rules() -> Any:
    """The module `zennit.rules`."""
    return module("rules")


def relevance(rule: Any, layer: nn.Module, x: Tensor, of_output: Tensor) -> Tensor:
    """The relevance of x under a zennit rule, given that of the layer's output."""
    handle = rule.register(layer)
    leaf = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(layer(leaf), leaf, of_output)
    handle.remove()
    return found


def relevance_of_net(composite: Any, net: nn.Module, x: Tensor, of_output: Tensor) -> Tensor:
    """The relevance of x under a zennit composite, given that of the net's output. The net is put back as it was."""
    leaf = x.clone().requires_grad_()
    with composite.context(net) as modified:
        (found,) = torch.autograd.grad(modified(leaf), leaf, of_output)
    return found
