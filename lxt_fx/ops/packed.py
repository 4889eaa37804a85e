"""Linear maps of packed weights: the layer's own kernel forward, the unpacked weight backward.

A quantised layer computes z = x W^T + b with weights that are stored in 4 or 8 bits. It is one node of the graph,
`lxt_fx::packed_linear`. Its value is what the layer's own code computes, bit for bit. Relevance passes by W, which is
unpacked when the backward needs it and not saved.

A kernel may round its input too (LLM.int8), so that z is not x W^T + b. What passes is x W^T g, as the quantised model's
own gradient has it; the ledger books the difference.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from lxt_fx.base.errors import CallError
from lxt_fx.base.torch_internals import any_autocast
from lxt_fx.ops.library import RuleFunction, define, define_opaque
from lxt_fx.ops.own_backward import running

Unpack = Callable[[Any], tuple[Tensor, Tensor | None]]
"""Takes a packed layer to its weight [out, in] and bias [out] or None, in a floating-point dtype."""


@dataclass(slots=True, eq=False, weakref_slot=True)
class PackedLayer:
    """A layer of the model whose weights are packed. `layer` is a shallow copy of the user's module, with the same tensors,
    so that nothing that is done to the module while it is captured reaches it. `forward` is the forward of its class.
    `rounds` says what its kernel rounds besides the weights, empty where it rounds nothing. `difference` is the largest
    seen between the kernel's values and those of the unpacked weights (relative L2), NaN before it was compared.
    `has_backward` says whether the kernel passes the gradient of these weights to its input itself."""

    layer: nn.Module
    forward: Callable[..., Tensor]
    unpack: Unpack
    scheme: str
    rounds: str
    difference: float = math.nan
    has_backward: bool = True

    def __call__(self, x: Tensor) -> Tensor:
        """What the layer computes. Its code is told that x asks for a gradient: some layers write their weights anew, in a
        form without a backward, where it does not."""
        with torch.enable_grad(), running():
            return self.forward(self.layer, x.detach().requires_grad_()).detach()

    def unpacked(self) -> tuple[Tensor, Tensor | None]:
        """The weight [out, in] and the bias, in the dtype of the scheme."""
        with torch.no_grad(), running():
            return self.unpack(self.layer)

    def tensors(self) -> list[Tensor]:
        """The parameters and buffers of the layer: the user's own."""
        return [*self.layer.parameters(), *self.layer.buffers()]

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedLayer:
        twin = copy.copy(self)
        twin.layer = copy.deepcopy(self.layer, memo)
        return twin


_LAYER = "_lxt_fx_packed_layer"

_BY_MEMORY: WeakValueDictionary[int, PackedLayer] = WeakValueDictionary()
"""The layers by the address of their weight's one element: the backward of a compiled graph gets another tensor of it."""


def weight_of(packed: PackedLayer, like: Tensor) -> Tensor:
    """What stands for the weight of a packed layer in a graph: a tensor with the shape [out, in], dtype and device of
    `like` that has the memory of one element, and knows the layer, as copies of it do. Its values mean nothing."""
    found = torch.zeros((), dtype=like.dtype, device=like.device).expand(like.shape)
    setattr(found, _LAYER, packed)
    return found


def packed_layer_of(tensor: Any) -> PackedLayer | None:
    """The layer that a packed weight stands for; None for anything else."""
    found: PackedLayer | None = getattr(tensor, _LAYER, None)
    return found


def _layer(weight: Tensor) -> PackedLayer:
    own, address = packed_layer_of(weight), weight.untyped_storage().data_ptr()
    found = _BY_MEMORY.get(address) if own is None else own
    if own is not None:
        _BY_MEMORY[address] = own
    if found is None:
        raise CallError(
            "a packed linear map got a plain tensor in the place of its packed layer, which was lost when the graph was "
            "copied or compiled; transform the quantised model again"
        )
    return found


def _no_value(input: Tensor, weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return input.new_empty((*input.shape[:-1], weight.shape[0]), dtype=dtype or input.dtype)


@define_opaque("packed_value(Tensor input, Tensor weight, ScalarType? dtype=None) -> Tensor", _no_value)
def packed_value(input: Tensor, weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """What the layer's kernel computes for x [..., in]: z [..., out], in the given dtype, or that of x. Raises CallError
    where the kernel gives another dtype or shape."""
    packed = _layer(weight)
    found = packed(input)
    wanted = torch.Size((*input.shape[:-1], weight.shape[0]))
    other = found.dtype is not (dtype or input.dtype) and not any_autocast()
    if other or found.shape != wanted:
        raise CallError(
            f"a packed layer ({packed.scheme}) was captured with an output of {dtype or input.dtype} {list(wanted)}, and "
            f"its kernel gives {found.dtype} {list(found.shape)} here; transform the model on an example of the dtype of "
            "your calls"
        )
    return found


def _no_weight(weight: Tensor, like: Tensor) -> Tensor:
    return like.new_empty(weight.shape)


@define_opaque("unpacked_weight(Tensor weight, Tensor like) -> Tensor", _no_weight)
def unpacked_weight(weight: Tensor, like: Tensor) -> Tensor:
    """W [out, in] in the dtype of `like`. A backward gives its gradient as `like`, so that no compiler unpacks earlier."""
    return _layer(weight).unpacked()[0].detach().to(like.dtype)


def _no_bias(weight: Tensor, like: Tensor) -> Tensor:
    return like.new_empty(weight.shape[:1])


@define_opaque("unpacked_bias(Tensor weight, Tensor like) -> Tensor", _no_bias)
def unpacked_bias(weight: Tensor, like: Tensor) -> Tensor:
    """b [out] in the dtype of `like`; zeros for a layer without a bias."""
    bias = _layer(weight).unpacked()[1]
    return like.new_zeros(weight.shape[:1]) if bias is None else bias.detach().to(like.dtype)


class PackedLinear(RuleFunction):
    """z = kernel(x); the gradient of x is g W. Saves nothing."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, dtype: torch.dtype | None) -> Tensor:
        value: Tensor = packed_value(x, weight, dtype)
        return value

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, torch.dtype | None], output: Tensor) -> None:
        ctx.dtype, ctx.weight = inputs[0].dtype, inputs[1]  # not among the saved tensors, whose hooks may copy them

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return torch.matmul(gradients[0], unpacked_weight(ctx.weight, gradients[0])).to(ctx.dtype), None, None


PACKED = "Tensor input, Tensor weight, str scheme, ScalarType? dtype=None"
"""The arguments of an op for packed weights. `scheme` is there to be read by people; `dtype` is that of the value where it
is another than that of x."""


@define(f"packed_linear({PACKED}) -> Tensor")
def packed_linear(input: Tensor, weight: Tensor, scheme: str, dtype: torch.dtype | None = None) -> Tensor:
    """z = x W^T + b with constant packed W, b; R_i = sum_j x_i W_ji R_j / z_j (AttnLRP eq. 8); the bias absorbs its share,
    and what the kernel rounds absorbs its own."""
    value: Tensor = PackedLinear.apply(input, weight, dtype)  # type: ignore[no-untyped-call]
    return value


HOLDS = {packed_linear: frozenset({"weight"})}
"""The argument of the op that gets no gradient."""
