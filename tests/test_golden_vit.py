"""Parity with LXT on torchvision's ViT (hand-written attention by nn.MultiheadAttention, CP-LRP)."""

from __future__ import annotations

import pytest
import torch
from golden_cases import load_golden_vit, relative
from shared_captures import explained, one_worker

import lxt_fx


@one_worker("vit-cp")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4), (torch.bfloat16, 6e-2)])
def test_pixel_relevance_of_a_vit_equals_that_of_lxt(dtype: torch.dtype, tolerance: float) -> None:
    module, case = explained("vit-cp", dtype, rules="lxt_cp"), load_golden_vit(dtype).case
    image = case["image"].requires_grad_()
    with lxt_fx.watch(module, "encoder.layers.*") as layers:
        module(image)[0, case["target"][0]].backward()
    assert image.grad is not None
    assert relative(image * image.grad, case["rel_f64strict"]) <= tolerance
    assert len(layers) >= 2
    for index, layer in enumerate(layers):
        assert relative(layers[layer].relevance, case[f"rel_layer{index}_f64strict"]) <= tolerance
