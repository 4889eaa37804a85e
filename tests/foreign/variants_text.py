"""Language models of litgpt and torchtune, ESM of fair-esm, and other attentions: performer, linear, local, Mamba."""

from __future__ import annotations

from typing import Any

import torch
from variant import Variant, floats, ids


def litgpt() -> dict[str, Variant]:
    """The kinds of blocks of its configurations."""
    from litgpt import Config
    from litgpt.model import GPT

    size = {
        "block_size": 32, "n_layer": 2, "n_embd": 32, "n_head": 4, "vocab_size": 50, "padded_vocab_size": 50,
        "intermediate_size": 48,
    }  # fmt: skip
    llama = {
        "norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP", "bias": False, "parallel_residual": False,
        "rotary_percentage": 1.0,
    }  # fmt: skip
    gemma = llama | {"mlp_class_name": "GemmaMLP", "scale_embeddings": True, "gelu_approximate": "tanh"}
    kinds: dict[str, dict[str, Any]] = {
        "pythia": {},
        "llama": llama | {"n_query_groups": 2},
        "phi": {"shared_attention_norm": True, "lm_head_bias": True, "gelu_approximate": "tanh"},
        "gemma": gemma,
        "gemma 2": gemma | {
            "post_attention_norm": True, "post_mlp_norm": True, "attention_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0, "sliding_window_size": 4, "sliding_window_indices": [1, 0],
        },
        "falcon": {"shared_attention_norm": True, "n_query_groups": 1, "bias": False, "rotary_percentage": 1.0},
        "mixtral": llama | {"mlp_class_name": "LLaMAMoE", "n_expert": 4, "n_expert_per_token": 2},
        "olmo 2": llama | {
            "norm_qk": True, "norm_1": False, "norm_2": False, "post_attention_norm": True, "post_mlp_norm": True,
        },
        "qwen 3": llama | {"norm_qk": True, "n_query_groups": 2, "head_size": 16},
        "stablecode": llama | {"norm_class_name": "LayerNorm", "rotary_percentage": 0.25},
    }  # fmt: skip
    return {
        name: Variant(lambda o=options: GPT(Config(**size | o)), {"idx": ids()}) for name, options in kinds.items()
    }


def torchtune() -> dict[str, Variant]:
    """Its builders."""
    from torchtune.models.clip import clip_vision_encoder
    from torchtune.models.gemma import gemma
    from torchtune.models.gemma2 import gemma2
    from torchtune.models.llama2 import llama2, llama2_classifier
    from torchtune.models.llama3_1 import llama3_1
    from torchtune.models.mistral import mistral
    from torchtune.models.phi3 import phi3
    from torchtune.models.qwen2 import qwen2
    from torchtune.models.t5 import t5_encoder

    size = {
        "vocab_size": 50, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "embed_dim": 32, "max_seq_len": 32,
        "intermediate_dim": 48,
    }  # fmt: skip
    tokens = {"tokens": ids()}
    found = {
        builder.__name__: Variant(lambda b=builder: b(**size), tokens)
        for builder in (llama2, llama3_1, mistral, phi3, qwen2)
    }
    found |= {
        builder.__name__: Variant(lambda b=builder: b(**size, head_dim=8), tokens) for builder in (gemma, gemma2)
    }
    t5 = {"rel_pos_num_buckets": 8, "rel_pos_max_dist": 16, "vocab_size": 50, "norm_eps": 1e-6, "max_seq_len": 12}
    clip = {"tile_size": 16, "patch_size": 8, "embed_dim": 32, "num_layers": 2, "num_heads": 4, "max_num_tiles": 2}
    tiles = {"images": floats(1, 1, 2, 3, 16, 16), "aspect_ratio": torch.tensor([[[1, 2]]])}
    return found | {
        "llama2 classifier": Variant(lambda: llama2_classifier(num_classes=3, **size), tokens),
        "t5 encoder": Variant(
            lambda: t5_encoder(embed_dim=32, mlp_dim=48, num_heads=4, head_dim=8, num_layers=2, **t5), tokens
        ),
        "clip vision": Variant(lambda: clip_vision_encoder(**clip), tiles),
    }


def esm() -> dict[str, Variant]:
    """Protein language models."""
    from esm.model.esm2 import ESM2

    return {"esm2": Variant(lambda: ESM2(num_layers=2, embed_dim=32, attention_heads=4), {"tokens": ids(12, 24)})}


def performer() -> dict[str, Variant]:
    """Attention by random features."""
    from performer_pytorch import PerformerLM

    size = {
        "num_tokens": 50, "max_seq_len": 16, "dim": 32, "depth": 2, "heads": 4, "dim_head": 8, "nb_features": 16,
        "auto_check_redraw": False, "rotary_position_emb": False,
    }  # fmt: skip
    more = {
        "softmax features": {},
        "generalised": {"generalized_attention": True},
        "rezero, glu, scalenorm off": {"use_rezero": True, "ff_glu": True},
        "reversible": {"reversible": True},
        "shift tokens": {"shift_tokens": True, "use_scalenorm": True},
    }
    return {name: Variant(lambda o=o: PerformerLM(**size | o), {"x": ids(16)}) for name, o in more.items()}


def linear_attention() -> dict[str, Variant]:
    """Attention that is linear in the length."""
    from linear_attention_transformer import LinearAttentionTransformerLM as Model

    size = {"num_tokens": 50, "dim": 32, "depth": 2, "max_seq_len": 16, "heads": 4, "dim_head": 8}
    more: dict[str, dict[str, Any]] = {
        "bidirectional": {},
        "local heads": {"n_local_attn_heads": 2, "local_attn_window_size": 4},
        "causal": {"causal": True},
        "glu": {"ff_glu": True, "shift_tokens": True},
    }
    return {
        name: Variant(lambda o=o: Model(**size, use_axial_pos_emb=False, **o), {"x": ids(16)}) for name, o in more.items()
    }


def local_attention() -> dict[str, Variant]:
    """Attention in windows."""
    from local_attention import LocalTransformer

    size = {
        "num_tokens": 50, "max_seq_len": 16, "dim": 32, "depth": 2, "heads": 4, "dim_head": 8, "local_attn_window_size": 4,
    }  # fmt: skip
    more: dict[str, dict[str, Any]] = {
        "causal": {"num_residual_streams": 1},
        "xpos": {"use_xpos": True, "num_residual_streams": 1},
        "dynamic bias, hyper connections": {"use_dynamic_pos_bias": True, "num_residual_streams": 2},
    }
    return {name: Variant(lambda o=o: LocalTransformer(**size | o), {"x": ids(16)}) for name, o in more.items()}


def mambapy() -> dict[str, Variant]:
    """State spaces."""
    from mambapy.mamba import Mamba, MambaConfig

    size = {"d_model": 16, "n_layers": 2, "d_state": 4}
    return {
        "mamba, sequential": Variant(
            lambda: Mamba(MambaConfig(**size, pscan=False)), {"x": floats(2, 6, 16)}
        ),
        "mamba, parallel scan": Variant(lambda: Mamba(MambaConfig(**size)), {"x": floats(2, 6, 16)}),
        "mamba, inner norms": Variant(
            lambda: Mamba(MambaConfig(**size, pscan=False, inner_layernorms=True)), {"x": floats(2, 6, 16)}
        ),
    }
