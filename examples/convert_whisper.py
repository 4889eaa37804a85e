"""Whisper tiny.en, a speech recogniser, out of a CTranslate2 file with float16 weights."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

Tensors = dict[str, torch.Tensor]
# CTranslate2's numbers for what a tensor holds. The weights of this file are float16.
TYPES: dict[int, np.dtype[Any]] = {kind: np.dtype(name) for kind, name in enumerate(("<f4", "i1", "<i2", "<i4", "<f2"))}
END, START, NO_TIMESTAMPS = 50256, 50257, 50362  # <|endoftext|>, <|startoftranscript|>, <|notimestamps|>


def convert_whisper(source: Path, folder: Path) -> None:
    """Write model.bin, tokenizer.json and config.json of `source` as a transformers model with its audio front end."""
    config = WhisperConfig(
        vocab_size=51864,
        d_model=384,
        encoder_layers=4,
        decoder_layers=4,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        encoder_ffn_dim=1536,
        decoder_ffn_dim=1536,
        num_mel_bins=80,
        decoder_start_token_id=START,
        bos_token_id=END,
        eos_token_id=END,
        pad_token_id=END,
    )
    model = WhisperForConditionalGeneration(config)
    missing = model.load_state_dict(named_for_transformers(read_weights(source / "model.bin")), strict=False)
    if missing.unexpected_keys or missing.missing_keys != ["proj_out.weight"]:
        raise ValueError(f"the weights do not fit Whisper tiny.en: {missing}")
    model.tie_weights()  # proj_out is the token embedding
    model.generation_config = generation_config(source)
    model.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_file=str(source / "tokenizer.json"),
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
    ).save_pretrained(folder)


def generation_config(source: Path) -> GenerationConfig:
    """How to transcribe: no language token (English only), no timestamps, and the tokens that Whisper never says."""
    silent = json.loads((source / "config.json").read_text())
    return GenerationConfig(
        decoder_start_token_id=START,
        bos_token_id=END,
        eos_token_id=END,
        pad_token_id=END,
        no_timestamps_token_id=NO_TIMESTAMPS,
        suppress_tokens=silent["suppress_ids"],
        begin_suppress_tokens=silent["suppress_ids_begin"],
        is_multilingual=False,
        return_timestamps=False,
        max_length=448,
    )


class Reader:
    """Reads little-endian fields off the front of CTranslate2's file."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.position = 0

    def take(self, size: int) -> bytes:
        self.position += size
        return self.content[self.position - size : self.position]

    def number(self, kind: str) -> int:
        return int(struct.unpack("<" + kind, self.take(struct.calcsize(kind)))[0])

    def text(self) -> str:
        return self.take(self.number("H")).rstrip(b"\0").decode()


def read_weights(path: Path) -> Tensors:
    """CTranslate2's name, such as `decoder/layer_0/ffn/linear_0/weight`, -> float32 tensor."""
    reader = Reader(path.read_bytes())
    reader.number("I")  # version of the file format
    reader.text()  # name of the model class
    reader.number("I")  # revision of the model class
    weights = dict(read_weight(reader) for _ in range(reader.number("I")))
    for _ in range(reader.number("I")):
        alias, name = reader.text(), reader.text()
        weights[alias] = weights[name]
    return weights


def read_weight(reader: Reader) -> tuple[str, torch.Tensor]:
    name = reader.text()
    shape = [reader.number("I") for _ in range(reader.number("B"))]
    kind = TYPES[reader.number("B")]
    array = np.frombuffer(reader.take(reader.number("I")), kind).reshape(shape)
    return name, torch.from_numpy(array.astype(np.float32))


def named_for_transformers(weights: Tensors) -> Tensors:
    """The same tensors under the names of WhisperForConditionalGeneration."""
    state = {"model.decoder.embed_tokens.weight": weights["decoder/embeddings/weight"]}
    for conv in ("conv1", "conv2"):
        state.update(linear(weights, f"encoder/{conv}", f"model.encoder.{conv}"))
    for side in ("encoder", "decoder"):
        state[f"model.{side}.embed_positions.weight"] = weights[f"{side}/position_encodings/encodings"]
        state.update(norm(weights, f"{side}/layer_norm", f"model.{side}.layer_norm"))
        for layer in range(4):
            state.update(layer_weights(weights, f"{side}/layer_{layer}", f"model.{side}.layers.{layer}"))
    return state


def layer_weights(weights: Tensors, source: str, target: str) -> Tensors:
    """One encoder or decoder layer; only a decoder layer attends to the encoder."""
    state = {
        **norm(weights, f"{source}/self_attention/layer_norm", f"{target}.self_attn_layer_norm"),
        **fused(weights, f"{source}/self_attention/linear_0", f"{target}.self_attn", "qkv"),
        **linear(weights, f"{source}/self_attention/linear_1", f"{target}.self_attn.out_proj"),
        **norm(weights, f"{source}/ffn/layer_norm", f"{target}.final_layer_norm"),
        **linear(weights, f"{source}/ffn/linear_0", f"{target}.fc1"),
        **linear(weights, f"{source}/ffn/linear_1", f"{target}.fc2"),
    }
    if source.startswith("decoder"):
        state |= norm(weights, f"{source}/attention/layer_norm", f"{target}.encoder_attn_layer_norm")
        state |= linear(weights, f"{source}/attention/linear_0", f"{target}.encoder_attn.q_proj")
        state |= fused(weights, f"{source}/attention/linear_1", f"{target}.encoder_attn", "kv")
        state |= linear(weights, f"{source}/attention/linear_2", f"{target}.encoder_attn.out_proj")
    return state


def norm(weights: Tensors, source: str, target: str) -> Tensors:
    return {f"{target}.weight": weights[f"{source}/gamma"], f"{target}.bias": weights[f"{source}/beta"]}


def linear(weights: Tensors, source: str, target: str) -> Tensors:
    return {f"{target}.weight": weights[f"{source}/weight"], f"{target}.bias": weights[f"{source}/bias"]}


def fused(weights: Tensors, source: str, target: str, parts: str) -> Tensors:
    """CTranslate2 stacks the projections of query, key and value; Whisper's key has no bias (zeros in the stack)."""
    return {
        f"{target}.{part}_proj.{kind}": tensor.contiguous()
        for kind in ("weight", "bias")
        for part, tensor in zip(parts, weights[f"{source}/{kind}"].chunk(len(parts)), strict=True)
        if (part, kind) != ("k", "bias")
    }
