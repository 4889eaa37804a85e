"""Loads the golden cases: a tiny model, its inputs and the relevance that LXT gave."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
        """The sum of the explained logits, one for each example; position -1 means a classifier's logit."""
        explained = [logits[example, token] if position < 0 else logits[example, position, token]
                     for example, (position, token) in enumerate(targets.tolist())]  # fmt: skip
        return torch.stack(explained).sum()


def load_golden(name: str, dtype: torch.dtype, attention: str = "sdpa") -> Golden:
    """The case of that name, its model in `dtype` with this attention implementation."""
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    settings = json.loads(metadata["config"])
    config = AutoConfig.for_model(**settings)
    config._attn_implementation = attention
    name_as_before(config, settings)
    model = getattr(importlib.import_module(metadata["module"]), metadata["model_class"])(config)
    weights = {key.removeprefix("weights."): value for key, value in tensors.items() if key.startswith("weights.")}
    if not any(key.endswith("experts.down_proj") for key in model.state_dict()):
        weights = by_expert(weights)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and all(name.startswith(TIED) for name in missing), (missing, unexpected)
    model.tie_weights()
    model = model.to(dtype).eval()
    if dtype is torch.float64 and hasattr(model, "set_experts_implementation") and name.startswith("qwen3_moe"):
        model.set_experts_implementation("eager")  # the default has no float64 kernel
    case = {key.removeprefix("case."): value for key, value in tensors.items() if key.startswith("case.")}
    return Golden(model, case)


def name_as_before(config: Any, settings: dict[str, Any]) -> None:
    """What transformers 5 writes into a config, by the names of transformers 4, where they are this version's."""
    if hasattr(config, "num_experts") and "num_local_experts" in settings:
        config.num_experts = settings["num_local_experts"]
    if hasattr(config, "sliding_window_pattern") and "layer_types" in settings:
        full = settings["layer_types"].index("full_attention") + 1 if "full_attention" in settings["layer_types"] else None
        config.sliding_window_pattern = full or len(settings["layer_types"]) + 1


def by_expert(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of experts that transformers 5 stacks, as transformers 4 has them: modules of their own for each expert."""
    found = {}
    for key, value in weights.items():
        path, _, last = key.rpartition(".experts.")
        for number, one in enumerate(value if path else ()):
            parts = zip(("gate_proj", "up_proj"), one.chunk(2), strict=True) if last == "gate_up_proj" else [(last, one)]
            found |= {f"{path}.experts.{number}.{name}.weight": part for name, part in parts}
        if not path:
            found[key] = value
    return found


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
