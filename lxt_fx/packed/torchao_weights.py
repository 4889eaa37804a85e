"""torchao: a plain `nn.Linear` whose weight is a tensor of a class of torchao's, most of which unpack themselves."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lxt_fx.packed.scheme import Scheme, by_identity

_ROUNDING = ("act_quant_kwargs", "activation_quantization", "input_quant_func")
"""Attributes of such a tensor that say how the input is rounded; None where it is not."""


def _unpacked(layer: Any) -> tuple[Tensor, Tensor | None]:
    if hasattr(type(layer.weight), "dequantize"):
        return layer.weight.dequantize(), layer.bias
    return by_identity(layer)  # int4 in the order of a kernel


def _named(layer: Any) -> str:
    return f"torchao {type(layer.weight).__name__}"


def _rounds(layer: Any) -> str:
    found = next((how for name in _ROUNDING if (how := getattr(layer.weight, name, None)) is not None), None)
    return "" if found is None else f"its input ({getattr(found, '__name__', None) or type(found).__name__})"


WEIGHTS = {"torchao.utils.TorchAOBaseTensor": Scheme(_unpacked, _named, _rounds)}
"""By the class that all of torchao's quantised tensors derive from."""
