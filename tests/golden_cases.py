"""Loads the golden cases: a tiny model, its inputs and the relevance that LXT gave."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torchvision_vit import VisionTransformer
from transformers import AutoConfig

FOLDER = Path(__file__).parent / "golden"
TIED = ("lm_head.weight", "cls.predictions.decoder")
TEXT_CASES = sorted(path.stem for path in FOLDER.glob("*.safetensors") if not path.stem.startswith(("vit", "functional")))


@dataclass(frozen=True)
class Golden:
    """A model in eval mode, what LXT was run on and what it gave."""

    model: nn.Module
    case: dict[str, Tensor]

    def explained_value(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The sum of the explained logits, one a row; position -1 means a classifier's logit."""
        rows = [logits[row, token] if position < 0 else logits[row, position, token]
                for row, (position, token) in enumerate(targets.tolist())]  # fmt: skip
        return torch.stack(rows).sum()


def load_golden(name: str, dtype: torch.dtype, attention: str = "sdpa") -> Golden:
    """The case of that name, its model in `dtype` with this attention implementation."""
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    settings = json.loads(metadata["config"])
    config = AutoConfig.for_model(**settings)
    config._attn_implementation = attention
    model = getattr(importlib.import_module(metadata["module"]), metadata["model_class"])(config)
    weights = {key.removeprefix("weights."): value for key, value in tensors.items() if key.startswith("weights.")}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and all(name.startswith(TIED) for name in missing), (missing, unexpected)
    model.tie_weights()
    model = model.to(dtype).eval()
    if dtype is torch.float64 and name.startswith("qwen3_moe"):
        model.set_experts_implementation("eager")  # the default has no float64 kernel
    case = {key.removeprefix("case."): value for key, value in tensors.items() if key.startswith("case.")}
    return Golden(model, case)


def load_golden_vit(dtype: torch.dtype) -> Golden:
    """The case of torchvision's vision transformer; its `image` is in `dtype` too."""
    with safe_open(FOLDER / "vit-cp.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        model = VisionTransformer(json.loads(file.metadata()["config"]))
    model.load_state_dict({k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")})
    case = {key.removeprefix("case."): value for key, value in tensors.items() if key.startswith("case.")}
    return Golden(model.to(dtype).eval(), case | {"image": case["image"].to(dtype)})


def relative(actual: Tensor, expected: Tensor) -> float:
    """The largest difference relative to the largest expected value."""
    return float((actual.double() - expected.double()).abs().max() / expected.double().abs().max())
