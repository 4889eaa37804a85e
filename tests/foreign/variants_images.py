"""CLIP and CoCa of open_clip; medical and other segmentation; diffusion."""

from __future__ import annotations

from typing import Any

import torch
from variant import Variant, floats, ids, image


def open_clip() -> dict[str, Variant]:
    """Towers of images and texts."""
    from open_clip.coca_model import CoCa
    from open_clip.model import CLIP, CustomTextCLIP

    eye: dict[str, Any] = {"layers": 2, "width": 32, "head_width": 8, "patch_size": 8, "image_size": 32}
    word: dict[str, Any] = {"context_length": 12, "vocab_size": 50, "width": 32, "heads": 4, "layers": 2}
    both = {"image": image(), "text": ids()}
    options = {"embed_dim": 24, "vision_cfg": eye, "text_cfg": word}
    resnet = {"layers": (1, 1, 1, 1), "width": 8, "head_width": 8, "image_size": 64}
    pooled = {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 4, "output_tokens": True}
    coca_text = word | {"embed_cls": True, "output_tokens": True}
    fused = {"context_length": 12, "vocab_size": 50, "width": 32, "heads": 4, "layers": 2}
    return {
        "clip": Variant(lambda: CLIP(**options), both),
        "clip, quick gelu": Variant(lambda: CLIP(**options, quick_gelu=True), both),
        "clip, dict": Variant(lambda: CLIP(**options, output_dict=True), both),
        "clip, custom text": Variant(lambda: CustomTextCLIP(**options), both),
        "clip, bias": Variant(lambda: CustomTextCLIP(**options, init_logit_bias=-10.0), both),
        "clip, resnet": Variant(
            lambda: CLIP(24, resnet, word), {"image": image(64), "text": ids()}
        ),
        "clip, layerscale and pooling": Variant(
            lambda: CLIP(24, eye | {"ls_init_value": 0.1, "pool_type": "avg", "final_ln_after_pool": True}, word), both
        ),
        "clip, attention pool": Variant(lambda: CLIP(24, eye | pooled | {"output_tokens": False}, word), both),
        "clip, scaled": Variant(lambda: CLIP(24, eye | {"scale_attn": True, "scale_fc": True}, word), both),
        "siglip": Variant(
            lambda: CustomTextCLIP(
                24,
                eye | {"pool_type": "avg"},
                word | {"no_causal_mask": True, "pool_type": "last", "proj_bias": True},
                init_logit_bias=-10.0,
            ),
            both,
        ),
        "coca": Variant(lambda: CoCa(32, fused, coca_text, eye | pooled), both),
    }


def monai() -> dict[str, Variant]:
    """Volumes."""
    from monai.networks import nets

    vit = {"patch_size": 8, "hidden_size": 32, "mlp_dim": 48, "num_layers": 2, "num_heads": 4}
    volume = floats(1, 1, 16, 16, 16)
    size = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
    flat = {"x": image(32, 1, 1)}
    return {
        "ViT": Variant(lambda: nets.ViT(1, 16, classification=True, **vit), {"x": volume}),
        "ViT, features": Variant(lambda: nets.ViT(1, 16, **vit), {"x": volume}),
        "UNETR": Variant(
            lambda: nets.UNETR(
                1, 2, 32, feature_size=4, hidden_size=24, mlp_dim=32, num_heads=4, norm_name="instance", spatial_dims=2
            ),
            {"x_in": image(32, 1, 1)},
        ),
        "UNETR, batch norm": Variant(
            lambda: nets.UNETR(
                1, 2, 32, feature_size=4, hidden_size=24, mlp_dim=32, num_heads=4, norm_name="batch", spatial_dims=2
            ),
            {"x_in": image(32, 1, 1)},
        ),
        "SwinUNETR": Variant(
            lambda: nets.SwinUNETR(
                1, 2, window_size=2, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), feature_size=12, spatial_dims=2
            ),
            {"x_in": image(64, 1, 1)},
        ),
        "UNet": Variant(lambda: nets.UNet(channels=(4, 8, 16), strides=(2, 2), num_res_units=1, **size), flat),
        "BasicUNet": Variant(lambda: nets.BasicUNet(features=(4, 4, 8, 8, 8, 4), **size), flat),
        "SegResNet": Variant(lambda: nets.SegResNet(init_filters=8, **size), flat),
        "DynUNet": Variant(
            lambda: nets.DynUNet(
                kernel_size=[3, 3, 3], strides=[1, 2, 2], upsample_kernel_size=[2, 2], filters=[4, 8, 8], **size
            ),
            flat,
        ),
        "AttentionUnet": Variant(lambda: nets.AttentionUnet(channels=(4, 8, 16), strides=(2, 2), **size), flat),
        "DenseNet": Variant(
            lambda: nets.DenseNet(init_features=8, growth_rate=4, block_config=(2, 2), **size), flat
        ),
        "text decoder": Variant(
            lambda: nets.DecoderOnlyTransformer(50, 32, 32, 2, 4), {"x": ids()}
        ),
    }


def segmentation() -> dict[str, Variant]:
    """segmentation-models-pytorch, on a small ResNet."""
    import segmentation_models_pytorch as smp

    names = {"Unet": {"encoder_depth": 3, "decoder_channels": (16, 8, 8)}, "FPN": {}, "DeepLabV3Plus": {}, "Linknet": {}}
    options = {"encoder_name": "timm-mobilenetv3_small_minimal_100", "encoder_weights": None, "classes": 2}
    return {
        name: Variant(lambda n=name, o=o: getattr(smp, n)(**options | o), {"x": image(64)}) for name, o in names.items()
    }


def diffusers() -> dict[str, Variant]:
    """One step of denoising."""
    import diffusers as d

    step = torch.tensor([7, 3])
    dit = {"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "num_layers": 2, "sample_size": 8}
    blocks = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 16}
    words = floats(2, 5, 16, seed=6)
    kept = {"return_dict": False}
    rope = torch.zeros(16, 3), torch.zeros(5, 3)
    rope[0][:, 1:] = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0))
    return {
        "DiT": Variant(
            lambda: d.DiTTransformer2DModel(**dit, num_embeds_ada_norm=10, norm_num_groups=4),
            {"hidden_states": image(8, 4), "timestep": step, "class_labels": torch.tensor([1, 2])},
        ),
        "Flux": Variant(
            lambda: d.FluxTransformer2DModel(
                in_channels=8, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
                joint_attention_dim=16, pooled_projection_dim=8, axes_dims_rope=(4, 6, 6),
            ),
            {
                "hidden_states": floats(2, 16, 8), "encoder_hidden_states": words,
                "pooled_projections": floats(2, 8, seed=5), "timestep": torch.tensor([0.5, 0.2]),
                "img_ids": rope[0], "txt_ids": rope[1],
            },
        ),
        "SD3": Variant(
            lambda: d.SD3Transformer2DModel(
                sample_size=8, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
                joint_attention_dim=16, caption_projection_dim=32, pooled_projection_dim=8, pos_embed_max_size=8,
                qk_norm="rms_norm",
            ),
            {
                "hidden_states": image(8, 4), "encoder_hidden_states": words, "pooled_projections": floats(2, 8, seed=5),
                "timestep": step,
            },
        ),
        "UNet, conditional": Variant(
            lambda: d.UNet2DConditionModel(
                **blocks, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=16, attention_head_dim=4,
            ),
            {"sample": image(16, 4), "timestep": 7, "encoder_hidden_states": words},
        ),
        "UNet, extra conditions": Variant(
            lambda: d.UNet2DConditionModel(
                **blocks, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=16, attention_head_dim=4,
                addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=32,
            ),
            {
                "sample": image(16, 4), "timestep": step, "encoder_hidden_states": words,
                "added_cond_kwargs": {"text_embeds": floats(2, 8, seed=5), "time_ids": floats(2, 6, seed=7)},
            },
        ),
        "UNet": Variant(
            lambda: d.UNet2DModel(
                **blocks, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=4,
            ),
            {"sample": image(16), "timestep": step},
        ),
        "UNet, tuple": Variant(
            lambda: d.UNet2DModel(
                **blocks, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=4,
            ),
            {"sample": image(16), "timestep": step} | kept,
        ),
        "autoencoder": Variant(
            lambda: d.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=2, sample_size=16),
            {"sample": image(16)},
        ),
        "PixArt": Variant(
            lambda: d.PixArtTransformer2DModel(
                **dit, cross_attention_dim=32, caption_channels=16, norm_num_groups=4, use_additional_conditions=False
            ),
            {
                "hidden_states": image(8, 4), "encoder_hidden_states": words, "timestep": step,
                "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
            },
        ),
        "Sana": Variant(
            lambda: d.SanaTransformer2DModel(
                in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2,
                num_cross_attention_heads=2, cross_attention_head_dim=16, cross_attention_dim=32, caption_channels=16,
                sample_size=8,
            ),
            {"hidden_states": image(8, 4), "encoder_hidden_states": words, "timestep": step},
        ),
        "AuraFlow": Variant(
            lambda: d.AuraFlowTransformer2DModel(
                sample_size=8, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=16, num_attention_heads=2,
                joint_attention_dim=16, caption_projection_dim=32, pos_embed_max_size=16,
            ),
            {"hidden_states": image(8, 4), "encoder_hidden_states": words, "timestep": torch.tensor([0.5, 0.2])},
        ),
        "Wan": Variant(
            lambda: d.WanTransformer3DModel(
                num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16, freq_dim=16,
                ffn_dim=32, num_layers=2, rope_max_seq_len=32,
            ),
            {"hidden_states": floats(1, 4, 2, 8, 8), "encoder_hidden_states": words[:1], "timestep": step[:1]},
        ),
        "prior": Variant(
            lambda: d.PriorTransformer(
                num_attention_heads=2, attention_head_dim=16, num_layers=2, embedding_dim=16, num_embeddings=5
            ),
            {
                "hidden_states": floats(2, 16), "timestep": step, "proj_embedding": floats(2, 16, seed=5),
                "encoder_hidden_states": words,
            },
        ),
    }  # fmt: skip
