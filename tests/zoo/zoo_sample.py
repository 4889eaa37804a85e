"""The samples of the zoo, by choose_sample.py: SAMPLE, which runs in CI, holds 87 of 146 ops.

In LONGER only: aten.adaptive_avg_pool1d.default, aten.as_strided.default, aten.avg_pool1d.default,
aten.baddbmm.default, aten.broadcast_tensors.default, aten.broadcast_to.default, aten.clamp.Tensor, aten.clone.default,
aten.col2im.default, aten.conv3d.default, aten.conv_transpose1d.default, aten.cumsum.default, aten.div_.Tensor,
aten.dropout_.default, aten.elu.default, aten.glu.default, aten.grid_sampler.default, aten.hardtanh.default,
aten.im2col.default, aten.index_add.default, aten.index_add_.default, aten.leaky_relu.default, aten.linalg_norm.default,
aten.masked_fill.Tensor, aten.max_pool2d.default, aten.min.dim, aten.movedim.int, aten.mse_loss.default,
aten.narrow.Tensor, aten.narrow.default, aten.relu_.default, aten.repeat.default, aten.reshape_as.default,
aten.roll.default, aten.rsub.Scalar, aten.sin.default, aten.squeeze.default, aten.to.device, aten.unfold.default,
aten.upsample_nearest2d.vec, aten.view_as_complex.default, aten.view_as_real.default, aten.where.ScalarOther,
aten.where.ScalarSelf, aten.where.self, lxt_fx.own_backward.default, wrap_with_autocast, wrap_with_set_grad_enabled.

In neither: aten.asinh.default, aten.concatenate.default, aten.copy_.default, aten.index_select.default,
aten.max.default, aten.mean.default, aten.numpy_T.default, aten.scatter_reduce.two, aten.sort.default,
aten.square.default, aten.unsqueeze_.default.
"""

SAMPLE = (
    "chmv2/CHMv2ModelTest",
    "gpt_oss/GptOssModelTest",
    "time_series_transformer/TimeSeriesTransformerModelTest",
    "pp_ocrv6_tiny_rec/PPOCRV6TinyRecModelTest",
    "siglip/SiglipModelTest",
    "fnet/FNetModelTest",
    "phimoe/PhimoeModelTest",
    "xlm/XLMModelTest",
    "higgs_audio_v2/HiggsAudioV2ModelTest",
    "sam/SamVisionModelTest",
    "mamba/MambaModelTest",
    "decision_transformer/DecisionTransformerModelTest",
    "hubert/HubertModelTest",
    "blenderbot/BlenderbotModelTest",
)

LONGER = (
    "longformer/LongformerModelTest",
    "deimv2/Deimv2LiteEncoderModelTest",
    "gemma3n/Gemma3nAudioModelTest",
    "llava/LlavaForConditionalGenerationModelTest",
    "zoedepth/ZoeDepthModelTest",
    "owlvit/OwlViTForObjectDetectionTest",
    "mobilevitv2/MobileViTV2ModelTest",
    "dac/DacModelTest",
    "pp_lcnet/PPLCNetModelTest",
    "mobilenet_v2/MobileNetV2ModelTest",
    "donut:test_modeling_donut_swin/DonutSwinModelTest",
    "deepseek_v2/DeepseekV2ModelTest",
    "jetmoe/JetMoeModelTest",
    "vivit/VivitModelTest",
    "informer/InformerModelTest",
    "nemotron/NemotronModelTest",
    "gpt2/GPT2ModelTest",
    "pegasus_x/PegasusXStandaloneDecoderModelTest",
    "yoso/YosoModelTest",
    "prompt_depth_anything/PromptDepthAnythingModelTest",
    "siglip2/Siglip2VisionModelTest",
    "roformer/RoFormerModelTest",
    "efficientloftr/EfficientLoFTRModelTest",
    "sew_d/SEWDModelTest",
    "nllb_moe/NllbMoeModelTest",
    "flava/FlavaMultimodalModelTest",
)
