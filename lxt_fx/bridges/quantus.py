"""Relevance as an `explain_func` of Quantus, whose metrics then measure it.

    from lxt_fx.bridges.quantus import explain_func
    scores = quantus.FaithfulnessCorrelation()(
        model=model, x_batch=x, y_batch=y, a_batch=None, explain_func=explain_func, explain_func_kwargs={"rules": "cp_lrp"}
    )

Quantus is at understandable-machine-intelligence-lab/Quantus (Hedström et al. 2023); the signature is that of version 0.6.
Nothing of it is imported.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lxt_fx.base.errors import InputError
from lxt_fx.bridges.example_targets import output_tensor
from lxt_fx.bridges.input_relevance import relevance_of_inputs
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.options import Rules


def explain_func(
    model: nn.Module,
    inputs: NDArray[Any],
    targets: NDArray[Any],
    *,
    rules: Rules | None = None,
    device: str | torch.device | None = None,
    sum_channels: bool = False,
) -> NDArray[np.float64]:
    """The relevance of `inputs` [batch, ...] for the class `targets` [batch] of each example, in the shape of the inputs,
    or with `sum_channels` [batch, 1, ...]. The arguments behind `targets` are given as `explain_func_kwargs`.

    `model` is the model that Quantus measures, which is transformed on the inputs (once, it is remembered), or an explained
    module. `rules` is a name in `lxt_fx.TABLES`, a table or a composite. `device` is what Quantus passes on; the inputs go
    where the model is.

    Raises InputError for targets or inputs that do not fit, and for a model on another device.
    """
    function = "quantus.explain_func"
    given = torch.as_tensor(inputs)
    first = next((each for each in (*model.parameters(), *model.buffers()) if each.is_floating_point()), torch.empty(0))
    if device is not None and torch.device(device).type != first.device.type:
        raise InputError(f"{function}: the model is on {first.device}, and Quantus was told device={device!r}")
    given = given.to(first.device, first.dtype if given.is_floating_point() else None)
    classes = torch.as_tensor(targets)
    if classes.dim() != 1 or len(classes) != len(given) or classes.is_floating_point():
        raise InputError(
            f"{function}: targets must be one class for each of the {len(given)} examples, got {list(classes.shape)} of "
            f"{classes.dtype}"
        )
    (relevance,) = relevance_of_inputs(model, (given,), (), classes, rules, function)
    found: NDArray[np.float64] = relevance.double().cpu().numpy()
    return found.sum(1, keepdims=True) if sum_channels else found


class Logits(nn.Module):
    """A model of transformers that returns its logits alone, as Quantus wants a tensor. It has the model's parameters."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if isinstance(model, Explained):
            raise InputError("quantus.Logits: give the model; explain_func transforms it")
        self.model, self.training = model, model.training  # Quantus asks for a model in eval mode

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, classes] of `x`, which is the model's first input."""
        return output_tensor(self.model(x), "quantus.Logits")


__all__ = ["Logits", "explain_func"]
