"""Cases that scale what they look up: those of the zoo whose config has such a switch, switched on, and small models of
further architectures that scale by default or by a switch. They are for the calls by ids."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import zoo_models as models

SWITCHES: dict[str, Any] = {"scale_embedding": True, "rescale_embeddings": True, "embedding_multiplier": 12.0}

_SIZES = {"vocab_size": 99, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "max_position_embeddings": 64}
_DECODER = _SIZES | {
    "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip
_SEQ2SEQ = _SIZES | {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 37, "decoder_ffn_dim": 37, "decoder_start_token_id": 1, "scale_embedding": True,
}  # fmt: skip
_T5GEMMA = {key: value for key, value in _DECODER.items() if key != "bos_token_id"} | {"sliding_window": 8}

MORE: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "marian": ("marian", "MarianMTModel", "MarianConfig", _SEQ2SEQ | {"decoder_vocab_size": 99}),
    "m2m_100": ("m2m_100", "M2M100ForConditionalGeneration", "M2M100Config", _SEQ2SEQ),
    "plbart": ("plbart", "PLBartForConditionalGeneration", "PLBartConfig", _SEQ2SEQ),
    "blenderbot_small": (
        "blenderbot_small", "BlenderbotSmallForConditionalGeneration", "BlenderbotSmallConfig", _SEQ2SEQ,
    ),
    "xglm": (
        "xglm", "XGLMForCausalLM", "XGLMConfig",
        _SIZES | {"d_model": 32, "ffn_dim": 37, "num_layers": 2, "attention_heads": 4, "scale_embedding": True},
    ),
    "trocr": (
        "trocr", "TrOCRForCausalLM", "TrOCRConfig",
        _SIZES | {
            "d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 37,
            "scale_embedding": True,
        },
    ),
    "gemma": ("gemma", "GemmaForCausalLM", "GemmaConfig", _DECODER),
    "gemma2": ("gemma2", "Gemma2ForCausalLM", "Gemma2Config", _DECODER | {"sliding_window": 4}),
    "gemma3": ("gemma3", "Gemma3ForCausalLM", "Gemma3TextConfig", _DECODER | {"sliding_window": 4}),
    "gemma2 for classification": ("gemma2", "Gemma2ForSequenceClassification", "Gemma2Config", _DECODER),
    "t5gemma": (
        "t5gemma", "T5GemmaForConditionalGeneration", "T5GemmaConfig",
        {"encoder": _T5GEMMA, "decoder": _T5GEMMA, "vocab_size": 99},
    ),
    "minicpm3": (
        "minicpm3", "MiniCPM3ForCausalLM", "MiniCPM3Config",
        {key: value for key, value in _DECODER.items() if key != "head_dim"} | {
            "num_key_value_heads": 4, "scale_emb": 12.0,
            "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
            "v_head_dim": 8,
        },
    ),
}  # fmt: skip
"""By name: module of transformers, class, class of the config, and the config."""


@cache
def scaled_cases() -> dict[str, models.Case]:
    """All of them by entry, `bart/BartModelTest, scaled`."""
    found: dict[str, models.Case] = {}
    for entry, case in models.cases().items():
        config = _switched_on(case["config"])
        if config != case["config"]:
            found[f"{entry}, scaled"] = {**case, "entry": f"{entry}, scaled", "config": config}
    for name, (directory, model_class, config_class, config) in MORE.items():
        module = f"transformers.models.{directory}"
        found[f"{name}, scaled"] = {
            "entry": f"{name}, scaled", "family": "scaled", "model_class": model_class,
            "module": f"{module}.modeling_{directory}", "config_class": config_class,
            "config_module": f"{module}.configuration_{directory}", "config": config, "attn": "eager", "sub_attn": {},
            "seed": 3, "gain": 1.0, "inputs": {}, "const": {},
        }  # fmt: skip
    return found


def _switched_on(config: Any) -> Any:
    if isinstance(config, Mapping):
        return {name: SWITCHES.get(name, _switched_on(value)) for name, value in config.items()}
    return config
