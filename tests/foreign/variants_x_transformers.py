"""x-transformers: one feature of its attention layers each."""

from __future__ import annotations

from typing import Any

import torch
from variant import Variant, floats, ids, image
from x_transformers import (
    AttentionPool,
    ContinuousTransformerWrapper,
    CrossAttender,
    Decoder,
    Encoder,
    PrefixDecoder,
    TransformerWrapper,
    ViTransformerWrapper,
    XTransformer,
    XValTransformerWrapper,
)

SIZES = {"dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 8}

DECODERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rotary": {"rotary_pos_emb": True},
    "rotary xpos": {"rotary_pos_emb": True, "rotary_xpos": True},
    "polar": {"polar_pos_emb": True},
    "alibi": {"alibi_pos_bias": True},
    "t5 bias": {"rel_pos_bias": True},
    "dynamic bias": {"dynamic_pos_bias": True},
    "data-dependent alibi": {"attn_data_dependent_alibi": True},
    "cope": {"attn_use_cope": True},
    "relative projection bias": {"attn_use_rel_proj_pos_bias": True},
    "rmsnorm": {"use_rmsnorm": True},
    "simple rmsnorm": {"use_simple_rmsnorm": True},
    "scalenorm": {"use_scalenorm": True},
    "dynamic tanh": {"use_dynamic_tanh": True},
    "derf": {"use_derf": True},
    "sandwich norm": {"sandwich_norm": True},
    "post norm": {"pre_norm": False},
    "pre and post norm": {"pre_and_post_norm": True},
    "qk norm": {"attn_qk_norm": True},
    "qk norm dim scale": {"attn_qk_norm": True, "attn_qk_norm_dim_scale": True},
    "qk rmsnorm": {"attn_qk_rmsnorm": True},
    "value rmsnorm": {"attn_value_rmsnorm": True},
    "l2 distance": {"attn_l2_distance": True},
    "sigmoid": {"attn_sigmoid": True},
    "softclamp logits": {"attn_softclamp_logits": True},
    "softclamp output": {"softclamp_output": True},
    "sparse topk": {"attn_sparse_topk": 3},
    "hard": {"attn_hard": True},
    "selective": {"attn_selective": True},
    "cog signed": {"attn_cog_signed": True},
    "talking heads": {"attn_pre_talking_heads": True, "attn_post_talking_heads": True},
    "head scale": {"attn_head_scale": True},
    "memory keys": {"attn_num_mem_kv": 3},
    "learned sink": {"attn_head_learned_sink": True},
    "zero key": {"attn_add_zero_kv": True},
    "one key head": {"attn_one_kv_head": True},
    "grouped keys": {"attn_kv_heads": 2},
    "gated values": {"attn_gate_values": True},
    "gated value heads": {"attn_gate_value_heads": True},
    "swiglu values": {"attn_swiglu_values": True},
    "attention on attention": {"attn_on_attn": True},
    "laser": {"attn_laser": True},
    "latent queries and keys": {
        "attn_use_latent_q": True, "attn_dim_latent_q": 16, "attn_use_latent_kv": True, "attn_dim_latent_kv": 16,
    },
    "window": {"attn_max_attend_past": 4},
    "flash": {"attn_flash": True},
    "orthogonal values": {"attn_orthog_projected_values": True},
    "glu": {"ff_glu": True},
    "swiglu": {"ff_glu": True, "ff_swish": True},
    "relu squared": {"ff_relu_squared": True},
    "solu": {"ff_solu": True},
    "feedforward norm": {"ff_post_act_ln": True},
    "glu softclamp": {"ff_glu": True, "ff_glu_softclamp": True},
    "macaron": {"macaron": True},
    "parallel ratio": {"par_ratio": 2, "depth": 3},
    "sandwich coefficient": {"sandwich_coef": 1},
    "residual attention": {"residual_attn": True},
    "gate residual": {"gate_residual": True},
    "scale residual": {"scale_residual": True},
    "deepnorm": {"scale_residual": True, "scale_residual_constant": 2.0, "pre_norm": False},
    "orthogonal residual": {"orthog_residual": True},
    "hyper connections": {"num_residual_streams": 2},
    "hyper connections, differential": {"num_residual_streams": 2, "qkv_receive_diff_residuals": True},
    "aggregated residuals": {"attn_aggregated_residuals": True, "attn_aggregated_residual_kwargs": {"lora_rank": 8}},
    "integrated layers": {"integrate_layers": True},
    "layerscale": {"use_layerscale": True},
    "unet skips": {"unet_skips": True},
    "shift tokens": {"shift_tokens": 1},
    "tied layers": {"weight_tie_layers": True},
    "value residual": {"add_value_residual": True},
    "reinjected input": {"reinject_input": True, "learned_reinject_input_gate": True},
}  # fmt: skip

WRAPPED: dict[str, dict[str, Any]] = {
    "no positions": {"use_abs_pos_emb": False},
    "sinusoidal": {"scaled_sinu_pos_emb": True},
    "l2 embeddings": {"l2norm_embed": True},
    "post embedding norm": {"post_emb_norm": True},
    "factorised embeddings": {"emb_dim": 16},
    "memory tokens": {"num_memory_tokens": 3},
    "tied": {"tie_embedding": True},
    "mixture of softmax": {"mixture_of_softmax": True},
    "sigsoftmax": {"sigsoftmax_logits": True},
}
POOLED: dict[str, dict[str, Any]] = {
    "average pool": {"average_pool_embed": True, "num_output_heads": 2, "logits_dim": 3},
    "cls": {"use_cls_token": True, "logits_dim": 3},
    "attention pool": {"attn_pool": True, "logits_dim": 3},
}


def _text(layers: Any, options: dict[str, Any], **wrapper: Any) -> TransformerWrapper:
    attention = layers(**SIZES | {"verbose": False} | options)
    return TransformerWrapper(**{"num_tokens": 50, "max_seq_len": 32} | wrapper, attn_layers=attention)


def variants() -> dict[str, Variant]:
    """By name."""
    text = {"x": ids()}
    found = {f"decoder, {name}": Variant(lambda o=o: _text(Decoder, o), text) for name, o in DECODERS.items()}
    found |= {f"decoder, {name}": Variant(lambda o=o: _text(Decoder, {}, **o), text) for name, o in WRAPPED.items()}
    found |= {f"encoder, {name}": Variant(lambda o=o: _text(Encoder, {}, **o), text) for name, o in POOLED.items()}
    masked = {"x": ids(), "mask": torch.arange(12)[None] < torch.tensor([[12], [9]])}
    ends = {"num_tokens": 50, "max_seq_len": 32, "depth": 2, "heads": 4, "attn_dim_head": 8}
    both = {f"{side}_{name}": value for side in ("enc", "dec") for name, value in ends.items()}
    return found | {
        "encoder": Variant(lambda: _text(Encoder, {}), text),
        "encoder, masked": Variant(lambda: _text(Encoder, {}), masked),
        "prefix decoder": Variant(lambda: _text(PrefixDecoder, {}), {"x": ids(), "prefix_attn_len": 4}),
        "encoder-decoder": Variant(lambda: XTransformer(dim=32, **both), {"src": ids(), "tgt": ids(8)}),
        "cross attender": Variant(
            lambda: CrossAttender(**SIZES), {"x": floats(2, 6, 32), "context": floats(2, 9, 32, seed=5)}
        ),
        "adaptive layernorm": Variant(
            lambda: Encoder(**SIZES, use_adaptive_layernorm=True, dim_condition=16),
            {"x": floats(2, 6, 32), "condition": floats(2, 16, seed=5)},
        ),
        "adaptive rmsnorm and layerscale": Variant(
            lambda: Encoder(**SIZES, use_adaptive_rmsnorm=True, use_adaptive_layerscale=True, dim_condition=16),
            {"x": floats(2, 6, 32), "condition": floats(2, 16, seed=5)},
        ),
        "continuous": Variant(
            lambda: ContinuousTransformerWrapper(dim_in=8, dim_out=4, max_seq_len=32, attn_layers=Encoder(**SIZES)),
            {"x": floats(2, 9, 8)},
        ),
        "vit": Variant(
            lambda: ViTransformerWrapper(
                image_size=32, patch_size=8, num_classes=5, num_register_tokens=2, attn_layers=Encoder(**SIZES)
            ),
            {"img": image()},
        ),
        "xval": Variant(
            lambda: XValTransformerWrapper(
                num_tokens=50, numerical_token_id=3, max_seq_len=32, attn_layers=Decoder(**SIZES)
            ),
            {"x": torch.where(torch.arange(12) % 3 == 0, 3, ids()), "x_num": floats(2, 12)},
        ),
        "attention pooling": Variant(
            lambda: AttentionPool(dim=32, num_pooled_tokens=2, heads=4, dim_head=8), {"context": floats(2, 9, 32)}
        ),
    }
