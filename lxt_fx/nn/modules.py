"""Layers that follow rules, with the names, arguments and state dicts of torch's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import lxt_fx.functional as F
from lxt_fx.base.errors import InputError
from lxt_fx.base.torch_internals import BatchNormNd, ConvNd, check_convolution_hook, check_input_dim
from lxt_fx.ops.forms import Form, epsilon_of


class RuleModule:
    """What all modules here have: the form that they run in, and their epsilon (None: that of the form)."""

    form: Form = "gradient"
    epsilon: float | None = None


def use(model: nn.Module, *, form: Form = "gradient", epsilon: float | None = None) -> nn.Module:
    """Sets form and epsilon of every rule module in `model`, which is changed in place and returned.

    Raises InputError for a form that does not exist, an epsilon below 0, or a model without rule modules.
    """
    epsilon_of(form, epsilon, "use")
    found = [module for module in model.modules() if isinstance(module, RuleModule)]
    if not found:
        raise InputError(f"use: {type(model).__name__} has no module of lxt_fx.nn; build it with lxt_fx.nn.Linear, ...")
    for module in found:
        module.form, module.epsilon = form, epsilon
    return model


class Linear(RuleModule, nn.Linear):
    """torch.nn.Linear by `functional.linear` (AttnLRP eq. 8)."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, self.bias, epsilon=self.epsilon, form=self.form)


class Softmax(RuleModule, nn.Softmax):
    """torch.nn.Softmax by `functional.softmax` (AttnLRP prop. 3.1); `dim` must be given."""

    def forward(self, input: Tensor) -> Tensor:
        if self.dim is None:
            raise InputError("Softmax: give dim; without it torch guesses one")
        return F.softmax(input, self.dim, form=self.form)


class RMSNorm(RuleModule, nn.RMSNorm):
    """torch.nn.RMSNorm by `functional.rms_norm` (AttnLRP prop. 3.4)."""

    def forward(self, x: Tensor) -> Tensor:
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        dims = tuple(range(-len(self.normalized_shape), 0))
        return F.rms_norm(x, self.weight, eps, dims, form=self.form)


class LayerNorm(RuleModule, nn.LayerNorm):
    """torch.nn.LayerNorm by `functional.layer_norm` (AttnLRP prop. 3.4)."""

    def forward(self, input: Tensor) -> Tensor:
        given = (self.normalized_shape, self.weight, self.bias, self.eps)
        return F.layer_norm(input, *given, epsilon=self.epsilon, form=self.form)


class GroupNorm(RuleModule, nn.GroupNorm):
    """torch.nn.GroupNorm by `functional.group_norm` (AttnLRP prop. 3.4)."""

    def forward(self, input: Tensor) -> Tensor:
        given = (self.num_groups, self.weight, self.bias, self.eps)
        return F.group_norm(input, *given, epsilon=self.epsilon, form=self.form)


class _Activation(RuleModule, nn.Module):
    """The function of `lxt_fx.functional` that the class names, with those attributes of the module that are its settings;
    never in place."""

    function: Callable[..., Tensor]
    settings: tuple[str, ...]

    def __init_subclass__(cls, function: Callable[..., Tensor], **given: Any) -> None:
        super().__init_subclass__(**given)
        cls.function = staticmethod(function)
        cls.settings = tuple(name for name in inspect.signature(function).parameters if name not in ("x", "form"))

    def forward(self, input: Tensor) -> Tensor:
        return self.function(input, form=self.form, **{name: getattr(self, name) for name in self.settings})


class SiLU(_Activation, nn.SiLU, function=F.silu):
    """torch.nn.SiLU by the identity rule (AttnLRP eq. 9)."""


class GELU(_Activation, nn.GELU, function=F.gelu):
    """torch.nn.GELU by the identity rule (AttnLRP eq. 9)."""


class ReLU(_Activation, nn.ReLU, function=F.relu):
    """torch.nn.ReLU by the identity rule (AttnLRP eq. 9)."""


class Tanh(_Activation, nn.Tanh, function=F.tanh):
    """torch.nn.Tanh by the identity rule (AttnLRP eq. 9)."""


class Sigmoid(_Activation, nn.Sigmoid, function=F.sigmoid):
    """torch.nn.Sigmoid by the identity rule, less what f(0) absorbs (AttnLRP eq. 9)."""


class LeakyReLU(_Activation, nn.LeakyReLU, function=F.leaky_relu):
    """torch.nn.LeakyReLU by the identity rule (AttnLRP eq. 9)."""


class ELU(_Activation, nn.ELU, function=F.elu):
    """torch.nn.ELU by the identity rule (AttnLRP eq. 9)."""


class Mish(_Activation, nn.Mish, function=F.mish):
    """torch.nn.Mish by the identity rule (AttnLRP eq. 9)."""


class Hardswish(_Activation, nn.Hardswish, function=F.hardswish):
    """torch.nn.Hardswish by the identity rule (AttnLRP eq. 9)."""


class Hardsigmoid(_Activation, nn.Hardsigmoid, function=F.hardsigmoid):
    """torch.nn.Hardsigmoid by the identity rule, less what f(0) absorbs (AttnLRP eq. 9)."""


class LogSigmoid(_Activation, nn.LogSigmoid, function=F.log_sigmoid):
    """torch.nn.LogSigmoid by the identity rule, less what f(0) absorbs (AttnLRP eq. 9)."""


class Hardtanh(_Activation, nn.Hardtanh, function=F.hardtanh):
    """torch.nn.Hardtanh by the identity rule (AttnLRP eq. 9)."""


class ReLU6(_Activation, nn.ReLU6, function=F.relu6):
    """torch.nn.ReLU6 by the identity rule (AttnLRP eq. 9)."""


class Softplus(_Activation, nn.Softplus, function=F.softplus):
    """torch.nn.Softplus: R_in = R_out less what f(0) absorbs (AttnLRP eq. 9). Raises InputError for another `beta` or
    `threshold` than torch's own."""

    def forward(self, input: Tensor) -> Tensor:
        if (self.beta, self.threshold) != (1, 20):
            raise InputError(f"Softplus: beta {self.beta} and threshold {self.threshold} have no rule; take 1 and 20")
        return super().forward(input)


check_convolution_hook()


class _Convolution(RuleModule, ConvNd):
    """A convolution by eq. 8."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        plain, held = super()._conv_forward, None if bias is None else bias.detach()
        return F.linear_map(lambda x: plain(x, weight.detach(), held), input, epsilon=self.epsilon, form=self.form)


class Conv1d(_Convolution, nn.Conv1d):
    """torch.nn.Conv1d by AttnLRP eq. 8."""


class Conv2d(_Convolution, nn.Conv2d):
    """torch.nn.Conv2d by AttnLRP eq. 8."""


class Conv3d(_Convolution, nn.Conv3d):
    """torch.nn.Conv3d by AttnLRP eq. 8."""


class _InEvaluation(RuleModule, BatchNormNd):
    """Batch norm with fixed statistics, a linear map (AttnLRP prop. 3.4). Raises InputError where it would use those of
    the batch."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training or self.running_mean is None:
            raise InputError(f"{type(self).__name__}: it uses batch statistics, which have no rule; call eval()")
        check_input_dim(self, input)
        weight, bias = (None if given is None else given.detach() for given in (self.weight, self.bias))

        def plain(x: Tensor) -> Tensor:
            return nn.functional.batch_norm(x, self.running_mean, self.running_var, weight, bias, eps=self.eps)

        return F.linear_map(plain, input, epsilon=self.epsilon, form=self.form)


class BatchNorm1d(_InEvaluation, nn.BatchNorm1d):
    """torch.nn.BatchNorm1d in eval mode."""


class BatchNorm2d(_InEvaluation, nn.BatchNorm2d):
    """torch.nn.BatchNorm2d in eval mode."""


class BatchNorm3d(_InEvaluation, nn.BatchNorm3d):
    """torch.nn.BatchNorm3d in eval mode."""
