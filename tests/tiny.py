"""Tiny random models of the families that the README names, one function each."""

from __future__ import annotations

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    ViTConfig,
    ViTForImageClassification,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def _made(kind: type[nn.Module], config: object, attention: str) -> nn.Module:
    config._attn_implementation = attention  # type: ignore[attr-defined]
    torch.manual_seed(0)
    model = kind(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def llama(attention: str = "sdpa", layers: int = 2) -> nn.Module:
    """Of one layer where a test is about the call and not about what is between layers."""
    return _made(LlamaForCausalLM, LlamaConfig(**SIZES | {"num_hidden_layers": layers}, num_key_value_heads=2), attention)


def qwen2(attention: str = "sdpa") -> nn.Module:
    return _made(Qwen2ForCausalLM, Qwen2Config(**SIZES, num_key_value_heads=2), attention)


def gemma3(attention: str = "sdpa") -> nn.Module:
    settings = {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4}
    return _made(Gemma3ForCausalLM, Gemma3TextConfig(**settings, final_logit_softcapping=5.0), attention)


def gpt2(attention: str = "sdpa") -> nn.Module:
    return _made(GPT2LMHeadModel, GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64), attention)


def bert(attention: str = "sdpa") -> nn.Module:
    return _made(BertForSequenceClassification, BertConfig(**SIZES, max_position_embeddings=64), attention)


def vit(attention: str = "sdpa") -> nn.Module:
    sizes = {name: size for name, size in SIZES.items() if name != "vocab_size"}
    config = ViTConfig(**sizes, image_size=8, patch_size=4, num_channels=1, num_labels=5)
    return _made(ViTForImageClassification, config, attention)


def whisper(attention: str = "sdpa") -> nn.Module:
    config = WhisperConfig(
        vocab_size=64, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=48, decoder_ffn_dim=48, num_mel_bins=8, max_source_positions=10, max_target_positions=16,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    return _made(WhisperForConditionalGeneration, config, attention)


MODELS = {"llama": llama, "qwen2": qwen2, "gemma3": gemma3, "gpt2": gpt2, "bert": bert, "vit": vit, "whisper": whisper}
TEXT = ("llama", "qwen2", "gemma3", "gpt2", "bert")


class Mlp(nn.Module):
    """A net of plain PyTorch: linear, GELU, linear."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(nn.functional.gelu(self.first(x)))
