"""The packages whose models are tried, and all variants of those that are installed."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from functools import cache

import placeholders
from variant import Variant

PACKAGES: dict[str, tuple[str, str]] = {
    "x_transformers": ("x-transformers", "variants_x_transformers.variants"),
    "vit_pytorch": ("vit-pytorch", "variants_vit_pytorch.variants"),
    "timm": ("timm", "variants_timm.variants"),
    "open_clip": ("open_clip_torch", "variants_images.open_clip"),
    "litgpt": ("litgpt", "variants_text.litgpt"),
    "torchtune": ("torchtune", "variants_text.torchtune"),
    "monai": ("monai", "variants_images.monai"),
    "diffusers": ("diffusers", "variants_images.diffusers"),
    "chronos": ("chronos-forecasting", "variants_numbers.chronos"),
    "torch_geometric": ("torch_geometric", "variants_numbers.torch_geometric"),
    "performer_pytorch": ("performer-pytorch", "variants_text.performer"),
    "linear_attention_transformer": ("linear-attention-transformer", "variants_text.linear_attention"),
    "local_attention": ("local-attention", "variants_text.local_attention"),
    "pytorch_tabnet": ("pytorch-tabnet", "variants_numbers.tabnet"),
    "rtdl_revisiting_models": ("rtdl-revisiting-models", "variants_numbers.rtdl"),
    "segmentation_models_pytorch": ("segmentation-models-pytorch", "variants_images.segmentation"),
    "esm": ("fair-esm", "variants_text.esm"),
    "mambapy": ("mambapy", "variants_text.mambapy"),
}
"""By module: the name to install it by, and the module and function with its variants."""


@cache
def versions() -> dict[str, str | None]:
    """By the name to install it by, the version that is installed; None where it is not."""
    found = {
        name: importlib.metadata.version(name) if importlib.util.find_spec(module) else None
        for module, (name, _) in PACKAGES.items()
    }
    return found


@cache
def cases() -> dict[str, Variant]:
    """By entry, `package/variant`."""
    placeholders.install()
    found: dict[str, Variant] = {}
    for module, (name, variants) in PACKAGES.items():
        if versions()[name] is not None:
            file, function = variants.split(".")
            made = getattr(importlib.import_module(file), function)()
            found |= {f"{module}/{variant}": case for variant, case in made.items()}
    return found
