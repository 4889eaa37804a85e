"""Packed layers of which no linear map is known, and what to do instead."""

from __future__ import annotations

_EXPERTS = "its experts are packed together, and no rule is known for their kernel"
_TRANSFORMERS = "transformers.integrations."

REFUSED: dict[str, tuple[str, str]] = {
    f"{_TRANSFORMERS}mxfp4.Mxfp4GptOssExperts": (_EXPERTS, "quantization_config=Mxfp4Config(dequantize=True)"),
    f"{_TRANSFORMERS}mxfp4.Mxfp4GptOssMLP": (_EXPERTS, "quantization_config=Mxfp4Config(dequantize=True)"),
    f"{_TRANSFORMERS}finegrained_fp8.FP8Experts": (
        _EXPERTS, "quantization_config=FineGrainedFP8Config(dequantize=True)",
    ),
    f"{_TRANSFORMERS}finegrained_fp8.FP8GroupedLinear": (
        "it is a block-diagonal map", "quantization_config=FineGrainedFP8Config(dequantize=True)",
    ),
    f"{_TRANSFORMERS}fbgemm_fp8.FbgemmFp8Llama4TextExperts": (_EXPERTS, "dtype=torch.bfloat16 and no quantization_config"),
    f"{_TRANSFORMERS}nvfp4.NVFP4Linear": (
        "its kernel rounds its input to 4 bits or not, by how many positions there are",
        "dtype=torch.bfloat16 and no quantization_config",
    ),
    "fp_quant.module.linear.FPQuantLinear": (
        "its kernel turns and rounds its input", "quantization_config=FPQuantConfig(pseudoquantization=True)",
    ),
}  # fmt: skip
"""By class: why, and how from_pretrained loads the model so that it can be explained."""
