"""Parity with LXT on torchvision's ViT (hand-written attention by nn.MultiheadAttention, CP-LRP)."""

from __future__ import annotations

import json

import pytest
import torch
from golden_cases import FOLDER, relative
from safetensors import safe_open
from torchvision_vit import VisionTransformer

import lxt_fx


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4), (torch.bfloat16, 6e-2)])
def test_pixel_relevance_of_a_vit_equals_that_of_lxt(dtype: torch.dtype, tolerance: float) -> None:
    with safe_open(FOLDER / "vit-cp.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        config = json.loads(file.metadata()["config"])
    model = VisionTransformer(config)
    model.load_state_dict({k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")})
    image = tensors["case.image"].to(dtype)
    explained = lxt_fx.transform(model.to(dtype).eval(), (image,), rules="lxt_cp")
    image.requires_grad_()
    with lxt_fx.watch(explained, "encoder.layers.*") as layers:
        explained(image)[0, tensors["case.target"][0]].backward()
    assert image.grad is not None
    assert relative(image * image.grad, tensors["case.rel_f64strict"]) <= tolerance
    for index, layer in enumerate(layers):
        assert relative(layers[layer].relevance, tensors[f"case.rel_layer{index}_f64strict"]) <= tolerance
