"""vit-pytorch: one of its architectures each."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from variant import Variant, floats, image

SHAPE = {"image_size": 32, "patch_size": 8, "num_classes": 5}
VIT = SHAPE | {"dim": 32, "depth": 2, "heads": 4, "mlp_dim": 48}
HEAD = {"dim_head": 8}

IMAGES: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "ViT": ("vit", "ViT", VIT | HEAD, 32),
    "ViT, mean pooled": ("vit", "ViT", VIT | HEAD | {"pool": "mean"}, 32),
    "SimpleViT": ("simple_vit", "SimpleViT", VIT | HEAD, 32),
    "SimpleViT with FFT": ("simple_vit_with_fft", "SimpleViT", VIT | HEAD | {"freq_patch_size": 8}, 32),
    "SimpleViT with hyper connections": (
        "simple_vit_with_hyper_connections", "SimpleViT", VIT | HEAD | {"num_residual_streams": 2}, 32,
    ),
    "SimpleViT with patch dropout": ("simple_vit_with_patch_dropout", "SimpleViT", VIT | HEAD, 32),
    "SimpleViT with qk norm": ("simple_vit_with_qk_norm", "SimpleViT", VIT | HEAD, 32),
    "SimpleViT with registers": ("simple_vit_with_register_tokens", "SimpleViT", VIT | HEAD, 32),
    "SimpleViT with value residual": ("simple_vit_with_value_residual", "SimpleViT", VIT | HEAD, 32),
    "SimpleViT with attention residual": ("simple_vit_attn_residual", "SimpleViTAttnResidual", VIT | HEAD, 32),
    "SimpleUViT": ("simple_uvit", "SimpleUViT", VIT | HEAD, 32),
    "CaiT": ("cait", "CaiT", VIT | HEAD | {"cls_depth": 1}, 32),
    "CCT": (
        "cct", "CCT",
        {
            "img_size": 32, "embedding_dim": 32, "n_conv_layers": 1, "kernel_size": 7, "stride": 2, "num_layers": 2,
            "num_heads": 4, "mlp_ratio": 2.0, "num_classes": 5, "positional_embedding": "learnable",
        },
        32,
    ),
    "CrossViT": (
        "cross_vit", "CrossViT",
        {
            "image_size": 32, "num_classes": 5, "sm_dim": 16, "lg_dim": 32, "sm_patch_size": 8, "lg_patch_size": 16,
            "depth": 1,
            "sm_enc_heads": 2, "sm_enc_mlp_dim": 24, "sm_enc_dim_head": 8, "lg_enc_depth": 1, "lg_enc_heads": 2,
            "lg_enc_mlp_dim": 24, "lg_enc_dim_head": 8, "cross_attn_depth": 1, "cross_attn_heads": 2,
            "cross_attn_dim_head": 8,
        },
        32,
    ),
    "CrossFormer": (
        "crossformer", "CrossFormer",
        {
            "dim": (32, 32, 64, 64), "depth": (1, 1, 1, 1), "global_window_size": (4, 2, 2, 1), "local_window_size": 2,
            "num_classes": 5,
        },
        64,
    ),
    "CvT": (
        "cvt", "CvT",
        {
            "num_classes": 5, "s1_emb_dim": 8, "s2_emb_dim": 16, "s3_emb_dim": 24, "s2_heads": 2, "s2_depth": 1,
            "s3_heads": 2, "s3_depth": 1,
        },
        32,
    ),
    "DeepViT": ("deepvit", "DeepViT", VIT | HEAD, 32),
    "LeViT": (
        "levit", "LeViT",
        {
            "image_size": 64, "num_classes": 5, "stages": 2, "dim": (16, 24), "depth": 1, "heads": (2, 4), "mlp_mult": 2,
            "dim_key": 8, "dim_value": 8,
        },
        64,
    ),
    "LookViT": (
        "look_vit", "LookViT",
        {
            "dim": 32, "image_size": 64, "num_classes": 5, "depth": 1, "patch_size": 16, "heads": 2, "mlp_factor": 2,
            "dim_head": 8, "highres_patch_size": 8, "highres_mlp_factor": 2, "cross_attn_heads": 2,
            "cross_attn_dim_head": 8,
        },
        64,
    ),
    "MaxViT": (
        "max_vit", "MaxViT", {"num_classes": 5, "dim": 16, "depth": (1, 1), "dim_head": 8, "window_size": 4}, 32,
    ),
    "MobileViT": (
        "mobile_vit", "MobileViT",
        {
            "image_size": (32, 32), "dims": [16, 24, 32], "channels": [4, 8, 12, 12, 16, 16, 20, 20, 24, 24, 32],
            "num_classes": 5, "depths": (1, 1, 1), "patch_size": (1, 1),
        },
        32,
    ),
    "NesT": (
        "nest", "NesT",
        {
            "image_size": 32, "patch_size": 4, "num_classes": 5, "dim": 8, "heads": 2, "num_hierarchies": 2,
            "block_repeats": (1, 1), "dim_head": 8,
        },
        32,
    ),
    "nViT": ("normalized_vit", "nViT", VIT | HEAD, 32),
    "Parallel ViT": ("parallel_vit", "ViT", VIT | HEAD, 32),
    "PiT": ("pit", "PiT", VIT | HEAD | {"patch_size": 4, "depth": (1, 1)}, 32),
    "RegionViT": (
        "regionvit", "RegionViT",
        {"dim": (8, 16, 24, 32), "depth": (1, 1, 1, 1), "window_size": 2, "num_classes": 5, "tokenize_local_3_conv": True},
        64,
    ),
    "RvT": ("rvt", "RvT", VIT | HEAD, 32),
    "ScalableViT": (
        "scalable_vit", "ScalableViT",
        {
            "num_classes": 5, "dim": 16, "heads": (2, 2), "depth": (1, 1), "ssa_dim_key": (8, 8), "ssa_dim_value": (8, 8),
            "reduction_factor": (2, 1), "iwsa_dim_key": (8, 8), "iwsa_dim_value": (8, 8), "window_size": (4, None),
        },
        32,
    ),
    "SepViT": (
        "sep_vit", "SepViT",
        {"num_classes": 5, "dim": 16, "dim_head": 8, "heads": (1, 2), "depth": (1, 1), "window_size": 7},
        112,
    ),
    "T2T": (
        "t2t", "T2TViT",
        {
            "image_size": 32, "num_classes": 5, "dim": 32, "depth": 1, "heads": 2, "mlp_dim": 48, "dim_head": 8,
            "t2t_layers": ((3, 2), (3, 2)),
        },
        32,
    ),
    "Twins SVT": (
        "twins_svt", "TwinsSVT",
        {
            "num_classes": 5, "s1_emb_dim": 8, "s1_local_patch_size": 4, "s1_global_k": 4, "s2_emb_dim": 16,
            "s2_local_patch_size": 4, "s2_global_k": 4, "s3_emb_dim": 16, "s3_local_patch_size": 2, "s3_global_k": 2,
            "s3_depth": 1, "s4_emb_dim": 16, "s4_local_patch_size": 2, "s4_global_k": 2, "s4_depth": 1,
        },
        64,
    ),
    "ViT for small data": ("vit_for_small_dataset", "ViT", VIT | HEAD, 32),
    "ViT 5": ("vit_5", "ViT", VIT | HEAD, 32),
    "ViT with patch merger": ("vit_with_patch_merger", "ViT", VIT | HEAD | {"patch_merge_num_tokens": 3}, 32),
    "XCiT": ("xcit", "XCiT", VIT | HEAD | {"cls_depth": 1}, 32),
    "ViT with adaptive token sampling": ("ats_vit", "ViT", VIT | HEAD | {"max_tokens_per_depth": (8, 6)}, 32),
    "JumboViT": ("jumbo_vit", "JumboViT", VIT | HEAD | {"jumbo_cls_k": 2}, 32),
    "JetViT": ("jet_vit", "JetViT", VIT | HEAD, 32),
}  # fmt: skip


def _made(module: str, name: str, options: dict[str, Any]) -> Any:
    return getattr(import_module(f"vit_pytorch.{module}"), name)(**options)


FIRST = {"CCT": "x", "CrossFormer": "x", "CvT": "x", "MaxViT": "x", "MobileViT": "x", "RegionViT": "x", "SepViT": "x",
         "Twins SVT": "x", "nViT": "images"}  # fmt: skip
"""The name of the argument, where it is not `img`."""


def variants() -> dict[str, Variant]:
    """By name."""
    found = {
        name: Variant(lambda m=module, c=cls, o=options: _made(m, c, o), {FIRST.get(name, "img"): image(size)})
        for name, (module, cls, options, size) in IMAGES.items()
    }
    video = {"image_size": 16, "image_patch_size": 8, "frames": 4, "frame_patch_size": 2, "num_classes": 5, "dim": 32}
    small = {"heads": 4, "mlp_dim": 48, "dim_head": 8}
    series = {"seq_len": 32, "patch_size": 4, "num_classes": 5, "dim": 32, "depth": 2} | small
    clip = {"video": floats(2, 3, 4, 16, 16)}
    pictures = [floats(3, 16, 24), floats(3, 32, 16, seed=5), floats(3, 16, 16, seed=6)]
    return found | {
        "ViT 1d": Variant(lambda: _made("vit_1d", "ViT", series), {"series": floats(2, 3, 32)}),
        "SimpleViT 1d": Variant(lambda: _made("simple_vit_1d", "SimpleViT", series), {"series": floats(2, 3, 32)}),
        "ViT 3d": Variant(lambda: _made("vit_3d", "ViT", video | small | {"depth": 2}), clip),
        "SimpleViT 3d": Variant(lambda: _made("simple_vit_3d", "SimpleViT", video | small | {"depth": 2}), clip),
        "ViViT": Variant(
            lambda: _made("vivit", "ViViT", video | small | {"spatial_depth": 1, "temporal_depth": 1}), clip
        ),
        "NaViT": Variant(lambda: _made("na_vit", "NaViT", VIT | HEAD), {"batched_images": [pictures[:2], pictures[2:]]}),
        "NaViT, nested": Variant(
            lambda: _made("na_vit_nested_tensor", "NaViT", VIT | HEAD), {"images": pictures}
        ),
    }
