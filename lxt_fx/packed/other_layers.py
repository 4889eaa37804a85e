"""HQQ, optimum-quanto, GPTQ, AWQ, AQLM, SpQR and VPTQ, and the packed layers that transformers has itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.base.transformers_internals import gemma_weight
from lxt_fx.packed.scheme import Scheme, by_identity


def _called(name: str) -> Callable[[Any], str]:
    return lambda layer: name


def _of_bits(name: str, attribute: str) -> Callable[[Any], str]:
    """`GPTQ 4 bits`, by an attribute of the layer."""
    return lambda layer: f"{name} {getattr(layer, attribute)} bits"


# --- packages -------------------------------------------------------------------------------------------------------------


def _hqq(layer: Any) -> tuple[Tensor, Tensor | None]:
    return layer.dequantize(), layer.bias


def _quanto(layer: Any) -> tuple[Tensor, Tensor | None]:
    return layer.qweight.dequantize(), layer.bias


def _quanto_holds(layer: Any) -> str | None:
    if layer.activation_qtype is not None:
        return "its activations are quantised tensors, which no graph can hold; quantise the weights only"
    return None


def _gptq(layer: Any) -> tuple[Tensor, Tensor | None]:
    """The weights of these layers are [in, out]. An adapter and a rotation of the input are linear maps beside them."""
    if layer.adapter or layer.online_full_had or layer.online_partial_had:
        return by_identity(layer)
    return layer.dequantize_weight().T, layer.bias


def _awq(layer: Any) -> tuple[Tensor, Tensor | None]:
    from awq.utils.packing_utils import dequantize_gemm

    return dequantize_gemm(layer.qweight, layer.qzeros, layer.scales, layer.w_bit, layer.group_size).T, layer.bias


def _aqlm(layer: Any) -> tuple[Tensor, Tensor | None]:
    """The first call chooses a kernel, and on a CPU it may write the codes in another order, which is done once."""
    if layer.gemv_op is None:
        raise InputError(
            "transform: a layer of AQLM has not chosen its kernel yet, which it does in its first call; call the model once"
        )
    return by_identity(layer)


def _spqr(layer: Any) -> tuple[Tensor, None]:
    """Its kernel takes one text, [1, positions, in], and has no bias."""
    units = torch.eye(layer.n, dtype=torch.float16, device=layer.dense_weights.device)[None]
    return type(layer).forward(layer, units)[0].T, None


# --- transformers ---------------------------------------------------------------------------------------------------------


def _gemma(layer: Any) -> tuple[Tensor, Tensor | None]:
    return gemma_weight(layer), layer.bias


def _gemma_rounds(layer: Any) -> str:
    scales = layer.input_activation_scale, layer.output_activation_scale
    return "its input and output, by fixed scales" if any(bool(scale != 0) for scale in scales) else ""


def _fp8(layer: Any) -> tuple[Tensor, Tensor | None]:
    """One scale for the whole weight, or one for each block of `block_size`; a weight in 16 bits is not packed."""
    weight, scales = layer.weight, layer.weight_scale_inv.float()
    if weight.element_size() > 1:
        return weight, layer.bias
    if layer.block_size is not None:
        for dim, size in enumerate(layer.block_size):
            scales = scales.repeat_interleave(size, dim).narrow(dim, 0, weight.shape[dim])
    return weight.float().mul_(scales), layer.bias


def _fp8_holds(layer: Any) -> str | None:
    return None if layer.weight.is_floating_point() else "its weights are packed in 4 bits, which have no backward"


def _fp8_by_output(layer: Any) -> tuple[Tensor, Tensor | None]:
    return layer.weight.float().mul_(layer.weight_scale.float().reshape(-1, 1)), layer.bias


def _eetq(layer: Any) -> tuple[Tensor, Tensor | None]:
    return by_identity(layer, size=len(layer.weight))


def _higgs(layer: Any) -> tuple[Tensor, None]:
    """Its forward leaves its bias out."""
    return by_identity(layer)[0], None


def _bits_of_one(layer: Any) -> tuple[Tensor, Tensor | None]:
    """BitNet's -1, 0, 1 over their one scale."""
    from transformers.integrations.bitnet import unpack_weights

    return unpack_weights(layer.weight, dtype=layer.dtype) / layer.weight_scale, layer.bias


def _bits_of_one_trained(layer: Any) -> tuple[Tensor, Tensor | None]:
    from transformers.integrations.bitnet import WeightQuant

    if layer.online_quant:
        return WeightQuant.apply(layer.weight), layer.bias  # type: ignore[no-untyped-call]
    bias = layer.bias if layer.bias is None else layer.bias * layer.weight_scale
    return layer.weight * layer.weight_scale, bias


def _without_norm(layer: Any) -> str | None:
    return None if layer.rms_norm is None else "it holds a norm before its linear map (use_rms_norm)"


_ROUNDS_INT8 = _called("its input to int8, each position by its largest value")
_ROUNDS_FP8 = _called("its input to float8")

_TRANSFORMERS = "transformers.integrations."
_GPTQ = "gptqmodel.nn_modules.qlinear."

LAYERS = {
    "hqq.core.quantize.HQQLinear": Scheme(_hqq, lambda layer: f"HQQ {layer.meta['nbits']} bits"),
    "optimum.quanto.nn.qlinear.QLinear": Scheme(
        _quanto, lambda layer: f"quanto {layer.weight_qtype.name}", holds=_quanto_holds
    ),
    f"{_GPTQ}torch.TorchLinear": Scheme(_gptq, _of_bits("GPTQ", "bits")),
    f"{_GPTQ}torch_awq.AwqTorchLinear": Scheme(by_identity, _of_bits("AWQ", "bits")),
    "awq.modules.linear.gemm.WQLinear_GEMM": Scheme(_awq, _of_bits("AWQ", "w_bit")),
    f"{_TRANSFORMERS}gemma_quant.QuantizedLinear": Scheme(_gemma, _of_bits("Gemma", "num_bits"), _gemma_rounds),
    f"{_TRANSFORMERS}finegrained_fp8.FP8Linear": Scheme(
        _fp8, _called("float8 by blocks"), _ROUNDS_FP8, _fp8_holds
    ),
    f"{_TRANSFORMERS}compressed_tensors.CompressedTensorsFP8Linear": Scheme(
        _fp8_by_output, _called("compressed-tensors float8"), _ROUNDS_FP8
    ),
    f"{_TRANSFORMERS}fbgemm_fp8.FbgemmFp8Linear": Scheme(_fp8_by_output, _called("FBGEMM float8"), _ROUNDS_FP8),
    f"{_TRANSFORMERS}bitnet.BitLinear": Scheme(_bits_of_one, _called("BitNet"), _ROUNDS_INT8, _without_norm),
    f"{_TRANSFORMERS}bitnet.AutoBitLinear": Scheme(
        _bits_of_one_trained, _called("BitNet, unpacked"), _ROUNDS_INT8, _without_norm
    ),
    f"{_TRANSFORMERS}eetq.EetqLinear": Scheme(_eetq, _called("EETQ int8")),
    f"{_TRANSFORMERS}higgs.HiggsLinear": Scheme(_higgs, _of_bits("HIGGS", "num_bits")),
    f"{_TRANSFORMERS}metal_quantization.MetalLinear": Scheme(by_identity, _of_bits("Metal", "bits")),
    "aqlm.inference.QuantizedLinear": Scheme(_aqlm, _called("AQLM")),
    "spqr_quant.inference.QuantizedLinear": Scheme(_spqr, _called("SpQR")),
    "vptq.layers.vqlinear.VQuantLinear": Scheme(by_identity, _called("VPTQ")),
}
