"""Models of which only the shape is needed: by the name of a published one, by a folder with a config, or by a config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lxt_fx.base.errors import InputError
from lxt_fx.base.transformers_internals import auto_classes


@dataclass(frozen=True, slots=True)
class Shape:
    """A published model as a config of transformers: the class of the config, what differs from its defaults, and where it
    is published."""

    config: str
    settings: Mapping[str, int]
    source: str


SHAPES: dict[str, Shape] = {
    "llama-7b": Shape("LlamaConfig", {}, "the defaults of transformers' LlamaConfig, which are those of Llama 7B"),
    "llama-8b": Shape(
        "LlamaConfig",
        {"intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 128256},
        "Llama 3 8B: Grattafiori et al. 2024, table 3",
    ),
    "llama-70b": Shape(
        "LlamaConfig",
        {
            "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
            "num_key_value_heads": 8, "vocab_size": 128256,
        },
        "Llama 3 70B: Grattafiori et al. 2024, table 3",
    ),
    "qwen3-moe-30b": Shape(
        "Qwen3MoeConfig",
        {"num_hidden_layers": 48, "head_dim": 128},
        "Qwen3-30B-A3B, 128 experts of which 8 are used: Yang et al. 2025, table 2; the other numbers are the defaults of "
        "transformers' Qwen3MoeConfig",
    ),
}  # fmt: skip
"""Shapes that a plan knows by name."""


def model_on_meta(model: Any, dtype: torch.dtype) -> nn.Module:
    """The model of a config, of a folder with a `config.json`, or of a name in `SHAPES`, on the meta device: shapes and no
    values. Raises InputError for anything else, and for a config whose class transformers does not build."""
    config = _config_of(model)
    names = list(getattr(config, "architectures", None) or ())
    auto = next((auto for known, auto in auto_classes() if names and names[0] in known), None)
    if auto is None:
        from transformers import AutoModelForCausalLM

        auto = AutoModelForCausalLM
    try:
        with torch.device("meta"):
            made: nn.Module = auto.from_config(config, dtype=dtype)
    except ValueError as error:
        raise InputError(
            f"plan: transformers builds no {auto.__name__} of a {type(config).__name__} ({str(error).splitlines()[0]}); "
            "build the model under torch.device('meta') and give lxt_fx.plan that"
        ) from error
    return made.eval()


def _config_of(model: Any) -> Any:
    import transformers

    if not isinstance(model, (str, Path)):
        return model
    shape = SHAPES.get(str(model))
    if shape is not None:
        made: Callable[..., Any] = getattr(transformers, shape.config)
        return made(**shape.settings)
    if not Path(model).expanduser().is_dir() or not (Path(model).expanduser() / "config.json").is_file():
        raise InputError(
            f"plan: {model} is neither a folder with a config.json nor a shape that is known by name "
            f"({', '.join(SHAPES)})"
        )
    return transformers.AutoConfig.from_pretrained(Path(model).expanduser(), local_files_only=True)
