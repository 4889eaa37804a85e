"""The layers of bitsandbytes: 4 bits (NF4 and FP4, with double quantisation) and 8 bits (LLM.int8)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.packed.scheme import Scheme, by_identity

_NOT_PACKED = (
    "a {name} of this model has not packed its weights yet, which bitsandbytes does when the layer is moved to its device; "
    "call model.to(device) first"
)


def _unpacked_4bit(layer: Any) -> tuple[Tensor, Tensor | None]:
    import bitsandbytes.functional as own

    state = _state(layer)
    if getattr(state, "packing_format_for_cpu", False):
        return by_identity(layer, state.dtype)  # written anew, by a call without gradients on a CPU with AVX512-BF16
    found: Tensor = own.dequantize_4bit(layer.weight.data.view(-1, 1), state)
    if found.shape != (layer.out_features, layer.in_features):
        found = found.T
    return found, layer.bias


def _state(layer: Any) -> Any:
    state = getattr(layer.weight, "quant_state", None) or layer.quant_state
    if state is None:
        raise InputError(f"transform: {_NOT_PACKED.format(name=type(layer).__name__)}")
    return state


def _named_4bit(layer: Any) -> str:
    state = getattr(layer.weight, "quant_state", None) or layer.quant_state
    kind = state.quant_type if state is not None else layer.weight.quant_type
    nested = state is not None and getattr(state, "original_nested", state.nested)
    return f"bitsandbytes {kind}" + (", double quantised" if nested else "")


def _unpacked_8bit(layer: Any) -> tuple[Tensor, Tensor | None]:
    """W = CB SCB / 127: one scale for each output."""
    packed = layer.state.CB if layer.state.CB is not None else layer.weight.CB
    scales = layer.state.SCB if layer.state.SCB is not None else layer.weight.SCB
    if packed is None or scales is None:
        raise InputError(f"transform: {_NOT_PACKED.format(name=type(layer).__name__)}")
    return packed.float().mul_(scales.float()[:, None] / 127), layer.bias


def _rounds_8bit(layer: Any) -> str:
    threshold = float(layer.state.threshold)
    but = f", but for columns with values above {threshold:g}" if threshold > 0 else ""
    return f"its input to int8, each position by its largest value{but}"


def _weights_of_16_bits(layer: Any) -> str | None:
    return "it packs its weights anew in each call (has_fp16_weights)" if layer.state.has_fp16_weights else None


LAYERS = {
    "bitsandbytes.nn.modules.Linear4bit": Scheme(_unpacked_4bit, _named_4bit),
    "bitsandbytes.nn.modules.Linear8bitLt": Scheme(
        _unpacked_8bit, lambda layer: "bitsandbytes int8", _rounds_8bit, _weights_of_16_bits
    ),
}
