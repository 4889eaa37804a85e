"""timm: one of its architectures each, made small."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import timm
from timm.layers import GatedMlp, GluMlp
from timm.models import metaformer, mlp_mixer, resnet
from timm.models.mvitv2 import MultiScaleVitCfg
from torch import nn
from variant import Variant, image

VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
MIXER: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "num_blocks": 2}
POOL: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}
STAGES: dict[str, Any] = {"depths": (1, 1, 1, 1)}

IMAGES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", 32, VIT),
    "vit, registers and layerscale": ("vit_small_patch14_reg4_dinov2", 32, VIT),
    "vit, qk norm, gap": ("vit_base_patch16_224", 32, VIT | {"qk_norm": True, "global_pool": "avg", "class_token": False}),
    "vit, siglip": ("vit_base_patch16_siglip_224", 32, VIT),
    "vit, parallel blocks": ("vit_small_patch16_18x2_224", 32, VIT),
    "vit, relative positions": ("vit_relpos_small_patch16_224", 32, VIT),
    "vit, sam": ("samvit_base_patch16_224", 32, VIT | {"global_attn_indexes": (1,), "window_size": 2}),
    "deit3": ("deit3_small_patch16_224", 32, VIT),
    "deit, distilled": ("deit_tiny_distilled_patch16_224", 32, VIT),
    "beit": ("beit_base_patch16_224", 32, VIT),
    "beitv2": ("beitv2_base_patch16_224", 32, VIT),
    "eva02": ("eva02_tiny_patch14_224", 32, VIT),
    "cait": ("cait_xxs24_224", 32, VIT),
    "xcit": ("xcit_nano_12_p16_224", 32, VIT),
    "convit": ("convit_tiny", 32, VIT | {"local_up_to_layer": 1}),
    "crossvit": (
        "crossvit_9_240", 32,
        {
            "img_size": 32, "img_scale": (1.0, 1.0), "embed_dim": (16, 32), "depth": ((1, 1, 0),), "num_heads": (2, 2),
            "patch_size": (8, 16), "mlp_ratio": (2.0, 2.0, 1.0),
        },
    ),
    "pit": (
        "pit_ti_224", 32,
        {"img_size": 32, "patch_size": 8, "stride": 4, "base_dims": (8, 8, 8), "depth": (1, 1, 1), "heads": (1, 2, 2)},
    ),
    "tnt": (
        "tnt_s_patch16_224", 32,
        {
            "img_size": 32, "patch_size": 16, "inner_dim": 8, "embed_dim": 32, "depth": 2, "num_heads_inner": 2,
            "num_heads_outer": 2,
        },
    ),
    "swin": (
        "swin_tiny_patch4_window7_224", 32,
        {"img_size": 32, "window_size": 4, "patch_size": 2, "embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2)},
    ),
    "swinv2": (
        "swinv2_tiny_window8_256", 32,
        {"img_size": 32, "window_size": 4, "patch_size": 2, "embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2)},
    ),
    "swinv2 cr": (
        "swinv2_cr_tiny_224", 32,
        {"img_size": 32, "window_size": 4, "patch_size": 2, "embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2)},
    ),
    "mlp-mixer": ("mlp_mixer:MlpMixer", 32, MIXER),
    "gmlp": (
        "mlp_mixer:MlpMixer", 32,
        MIXER | {"block_layer": mlp_mixer.SpatialGatingBlock, "mlp_layer": GatedMlp, "mlp_ratio": 2},
    ),
    "resmlp": (
        "mlp_mixer:MlpMixer", 32,
        MIXER | {"block_layer": mlp_mixer.ResBlock, "norm_layer": mlp_mixer.Affine, "mlp_ratio": 2},
    ),
    "gmixer": ("mlp_mixer:MlpMixer", 32, MIXER | {"mlp_layer": GluMlp, "act_layer": nn.SiLU, "mlp_ratio": (1.0, 2.0)}),
    "convnext": ("convnext_atto", 32, STAGES | {"dims": (8, 16, 24, 32)}),
    "convnextv2": ("convnextv2_atto", 32, STAGES | {"dims": (8, 16, 24, 32)}),
    "convmixer": ("convmixer:ConvMixer", 32, {"dim": 16, "depth": 2, "kernel_size": 3, "patch_size": 4}),
    "coat": (
        "coat_tiny", 32,
        {
            "img_size": 32, "embed_dims": (16, 16, 16, 16), "serial_depths": (1, 1, 1, 1), "parallel_depth": 1,
            "num_heads": 8,
            "mlp_ratios": (2, 2, 2, 2),
        },
    ),
    "davit": ("davit_tiny", 64, STAGES | {"embed_dims": (8, 16, 16, 24), "num_heads": (1, 2, 2, 2), "window_size": 4}),
    "efficientformer": (
        "efficientformer_l1", 224, {"depths": (1, 1, 1, 2), "embed_dims": (8, 16, 16, 24), "num_vit": 1},
    ),
    "efficientformerv2": (
        "efficientformerv2_s0", 64, {"depths": (1, 1, 1, 1), "embed_dims": (8, 16, 16, 24), "img_size": 64, "num_vit": 1},
    ),
    "poolformer": (
        "metaformer:MetaFormer", 32,
        POOL | {
            "downsample_norm": None, "mlp_act": nn.GELU, "mlp_bias": True, "norm_layers": metaformer.GroupNorm1,
            "layer_scale_init_values": 1e-5, "res_scale_init_values": None, "use_mlp_head": False,
        },
    ),
    "poolformerv2": (
        "metaformer:MetaFormer", 32, POOL | {"norm_layers": metaformer.GroupNorm1NoBias, "use_mlp_head": False},
    ),
    "caformer": (
        "metaformer:MetaFormer", 32,
        POOL | {
            "token_mixers": [metaformer.SepConv] * 2 + [metaformer.Attention] * 2,
            "norm_layers": [metaformer.LayerNorm2dNoBias] * 2 + [metaformer.LayerNormNoBias] * 2, "dims": (8, 16, 32, 32),
        },
    ),
    "edgenext": ("edgenext_xx_small", 64, STAGES | {"dims": (8, 16, 24, 32)}),
    "fastvit": ("fastvit_t8", 64, {"layers": (1, 1, 1, 1), "embed_dims": (8, 16, 16, 32)}),
    "focalnet": ("focalnet:FocalNet", 64, STAGES | {"embed_dim": 8}),
    "gcvit": (
        "gcvit:GlobalContextVit", 64,
        {"img_size": 64, "window_size": (4, 4, 4, 2), "embed_dim": 8, "depths": (2, 2, 2, 2), "num_heads": (1, 1, 1, 1)},
    ),
    "hiera": ("hiera_tiny_224", 64, {"img_size": (64, 64), "embed_dim": 8, "num_heads": 1, "stages": (1, 1, 1, 1)}),
    "inception-next": ("inception_next_atto", 64, STAGES | {"dims": (16, 16, 24, 32)}),
    "levit": (
        "levit_128s", 64,
        {"img_size": 64, "embed_dim": (16, 24, 32), "num_heads": (2, 2, 2), "depth": (1, 1, 1), "key_dim": 8},
    ),
    "mobilevit": ("mobilevit_xxs", 64, {}),
    "mobilevitv2": ("mobilevitv2_050", 64, {}),
    "mvitv2": (
        "mvitv2:MultiScaleVit", 64, {"img_size": (64, 64), "cfg": MultiScaleVitCfg(depths=(1, 1, 1, 1), embed_dim=8)},
    ),
    "nest": (
        "nest:Nest", 32,
        {"img_size": 32, "patch_size": 4, "embed_dims": (8, 16, 16), "num_heads": (1, 2, 2), "depths": (1, 1, 1),
         "num_levels": 3},
    ),
    "pvt v2": ("pvt_v2_b0", 64, STAGES | {"embed_dims": (8, 16, 16, 32), "num_heads": (1, 1, 2, 2)}),
    "repvit": ("repvit_m0_9", 64, {"embed_dim": (8, 16, 16, 32), "depth": (1, 1, 1, 1)}),
    "sequencer": (
        "sequencer2d_s", 32,
        {
            "layers": (1, 1), "patch_sizes": (4, 2), "embed_dims": (8, 16), "hidden_sizes": (4, 4),
            "mlp_ratios": (2.0, 2.0), "img_size": 32,
        },
    ),
    "twins": (
        "twins_svt_small", 64,
        STAGES | {"img_size": 64, "embed_dims": (8, 16, 16, 16), "num_heads": (1, 2, 2, 2), "wss": (2, 2, 2, 2)},
    ),
    "visformer": (
        "visformer_tiny", 64, {"img_size": 64, "init_channels": 8, "embed_dim": 32, "depth": (1, 1, 1), "num_heads": 2},
    ),
    "volo": (
        "volo:VOLO", 32,
        {
            "img_size": 32, "layers": (1, 1), "embed_dims": (16, 32), "num_heads": (2, 2), "downsamples": (True, False),
            "outlook_attention": (True, False), "stem_hidden_dim": 8,
        },
    ),
    "tiny vit": ("tiny_vit_5m_224", 64, {
        "embed_dims": (8, 16, 16, 32), "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2), "window_sizes": (4, 4, 4, 2)}),
    "efficientvit": ("efficientvit_m0", 64, {
        "img_size": 64, "embed_dim": (16, 16, 32), "key_dim": (8, 8, 8), "depth": (1, 1, 1), "num_heads": (2, 2, 2),
        "window_size": (2, 2, 2)}),
    "efficientvit mit": ("efficientvit_b0", 64, {"depths": (1, 1, 1, 1), "widths": (8, 8, 16, 16, 16), "head_dim": 8}),
    "maxvit": (
        "maxvit_rmlp_pico_rw_256", 64, {"img_size": 64, "depths": (1, 1), "embed_dim": (32, 32), "block_type": ("M", "M")},
    ),
    "coatnet": (
        "coatnet_nano_rw_224", 64, STAGES | {"img_size": 64, "embed_dim": (32, 32, 32, 32), "stem_width": (8, 8)},
    ),
    "mambaout": ("mambaout_femto", 64, STAGES | {"dims": (8, 16, 24, 32)}),
    "swiftformer": ("swiftformer_xs", 64, {"layers": (1, 1, 1, 1), "embed_dims": (8, 16, 16, 32)}),
    "shvit": ("shvit_s1", 64, {"embed_dim": (16, 32, 32), "partial_dim": (8, 8, 8), "depth": (1, 1, 1)}),
    "starnet": ("starnet_s1", 64, {"base_dim": 8, "depths": (1, 1, 1, 1)}),
    "resnet": ("resnet:ResNet", 32, {"block": resnet.BasicBlock, "layers": (1, 1, 1, 1), "channels": (8, 16, 16, 32)}),
    "resnetv2": ("resnetv2_50", 32, {"layers": (1, 1, 1, 1), "channels": (16, 16, 32, 32), "stem_chs": 8}),
    "efficientnet": ("test_efficientnet", 32, {}),
    "mobilenetv3": ("mobilenetv3_small_050", 32, {}),
    "nfnet": ("test_nfnet", 32, {}),
    "regnet": ("regnetx_002", 32, {}),
    "densenet": ("densenet:DenseNet", 32, {"growth_rate": 4, "block_config": (2, 2)}),
}  # fmt: skip
"""By name: the architecture or its class, the size of the image, and options."""


def _made(architecture: str, options: dict[str, Any]) -> Any:
    """By the name of an architecture, or by `module:class` where that leaves no size open."""
    if ":" not in architecture:
        return timm.create_model(architecture, num_classes=5, **options)
    module, name = architecture.split(":")
    return getattr(import_module(f"timm.models.{module}"), name)(num_classes=5, **options)


def variants() -> dict[str, Variant]:
    """By name."""
    return {
        name: Variant(lambda a=arch, o=options: _made(a, o), {"x": image(size)})
        for name, (arch, size, options) in IMAGES.items()
    }
