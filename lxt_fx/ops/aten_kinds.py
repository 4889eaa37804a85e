"""What ATen ops do to elements, for the analyses: which are pointwise, linear, reductions, or only move elements."""

from __future__ import annotations

import operator

from lxt_fx.base.torch_internals import OpOverload, aten
from lxt_fx.ops import activations, experts, selection

MOVES = frozenset(
    {
        aten.view.default,
        aten.reshape.default,
        aten.reshape_as.default,
        aten.view_as.default,
        aten.transpose.int,
        aten.permute.default,
        aten.expand.default,
        aten.expand_as.default,
        aten.slice.Tensor,
        aten.select.int,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.unsqueeze.default,
        aten.flatten.using_ints,
        aten.unflatten.int,
        aten.movedim.int,
        aten.movedim.intlist,
        aten.moveaxis.int,
        aten.cat.default,
        aten.stack.default,
        aten.split.Tensor,
        aten.split.sizes,
        aten.split_with_sizes.default,
        aten.chunk.default,
        aten.tensor_split.sections,
        aten.unbind.int,
        operator.getitem,
        aten.clone.default,
        aten.contiguous.default,
        aten.to.dtype,
        aten.to.device,
        aten.repeat.default,
        aten.repeat_interleave.self_int,
        aten.repeat_interleave.self_Tensor,
        aten.tile.default,
        aten.broadcast_to.default,
        aten.broadcast_tensors.default,
        aten.index.Tensor,
        aten.index_select.default,
        aten.gather.default,
        aten.take_along_dim.default,
        aten.narrow.default,
        aten.flip.default,
        aten.roll.default,
        aten.pad.default,
        aten.constant_pad_nd.default,
        aten.unfold.default,
        aten.im2col.default,
        aten.pixel_shuffle.default,
        aten.pixel_unshuffle.default,
        aten.masked_select.default,
        aten.tril.default,
        aten.triu.default,
        aten.diagonal.default,
        aten.masked_scatter.default,
        aten.slice_scatter.default,
        aten.select_scatter.default,
        aten.view_as_real.default,
        aten.view_as_complex.default,
        aten.channel_shuffle.default,
        aten.as_strided.default,
        aten.narrow.Tensor,
        selection.positions,
    }
)
"""Each output element is a copy of one input element, or a constant."""

SUMS = frozenset(
    {
        aten.add.Tensor,
        aten.sub.Tensor,
        aten.neg.default,
        aten.sum.default,
        aten.sum.dim_IntList,
        aten.mean.default,
        aten.mean.dim,
        aten.cumsum.default,
        aten.index_add.default,
        aten.index_put.default,
        aten.scatter_add.default,
        aten.lerp.Scalar,
        aten.avg_pool1d.default,
        aten.avg_pool2d.default,
        aten.avg_pool3d.default,
        aten.adaptive_avg_pool1d.default,
        aten.adaptive_avg_pool2d.default,
        aten.adaptive_avg_pool3d.default,
        aten.upsample_nearest1d.vec,
        aten.upsample_nearest2d.vec,
        aten.upsample_bilinear2d.vec,
        aten.upsample_bicubic2d.vec,
        aten.upsample_linear1d.vec,
        aten.upsample_trilinear3d.vec,
        aten.fft_fftn.default,
        aten.real.default,
        aten.col2im.default,
    }
)
"""Linear in all carrying operands together."""

SELECTIONS = frozenset(
    {
        aten.where.self,
        aten.where.ScalarOther,
        aten.where.ScalarSelf,
        aten.masked_fill.Scalar,
        aten.masked_fill.Tensor,
        aten.scatter.value,
        aten.scatter.src,
        aten.maximum.default,
        aten.minimum.default,
        aten.max.default,
        aten.max.dim,
        aten.max.other,
        aten.min.default,
        aten.min.dim,
        aten.min.other,
        aten.amax.default,
        aten.amin.default,
        aten.topk.default,
        aten.sort.default,
        aten.sort.stable,
        aten.clamp.default,
        aten.clamp.Tensor,
        aten.clamp_min.default,
        aten.clamp_min.Tensor,
        aten.clamp_max.default,
        aten.clamp_max.Tensor,
        aten.max_pool1d.default,
        aten.max_pool2d.default,
        aten.max_pool3d.default,
        aten.adaptive_max_pool1d.default,
        aten.adaptive_max_pool2d.default,
        aten.nan_to_num.default,
        aten.abs.default,
    }
)
"""Piecewise linear: each output element is one of the input elements (up to its sign), or a constant."""

CONVOLUTIONS = frozenset(
    {
        aten.conv1d.default,
        aten.conv1d.padding,
        aten.conv2d.default,
        aten.conv2d.padding,
        aten.conv3d.default,
        aten.conv3d.padding,
        aten.conv_transpose1d.default,
        aten.conv_transpose2d.input,
        aten.conv_transpose3d.input,
        aten.convolution.default,
    }
)


GROUPED_MATMULS = frozenset({aten._grouped_mm.default, experts.grouped_matmul})
"""Expert matmuls: torch's own, and that of transformers for dtypes that torch's lacks."""

POINTWISE_LINEAR = frozenset({aten.add.Tensor, aten.sub.Tensor, aten.neg.default, aten.to.dtype})
PRODUCTS = frozenset({aten.mul.Tensor, aten.div.Tensor})

POINTWISE_NONLINEAR = frozenset(
    {
        aten.silu.default,
        aten.gelu.default,
        aten.relu.default,
        aten.relu6.default,
        aten.leaky_relu.default,
        aten.tanh.default,
        aten.sigmoid.default,
        aten.exp.default,
        aten.expm1.default,
        aten.log.default,
        aten.log1p.default,
        aten.softplus.default,
        aten.elu.default,
        aten.mish.default,
        aten.hardswish.default,
        aten.hardsigmoid.default,
        aten.hardtanh.default,
        aten.log_sigmoid.default,
        aten.logical_not.default,
        aten.pow.Tensor_Scalar,
        aten.sqrt.default,
        aten.rsqrt.default,
        aten.reciprocal.default,
        aten.erf.default,
        aten.sin.default,
        aten.cos.default,
        aten.asinh.default,
        aten.acos.default,
        aten.atan.default,
        aten.prelu.default,
        aten.abs.default,
        aten.clamp.default,
        aten.clamp_min.default,
        aten.clamp_max.default,
        aten.where.self,
        aten.where.ScalarOther,
        aten.where.ScalarSelf,
        aten.masked_fill.Scalar,
        aten.minimum.default,
        aten.maximum.default,
        aten.gt.Scalar,
        aten.lt.Scalar,
        aten.ge.Scalar,
        aten.le.Scalar,
        aten.sign.default,
    }
)
POINTWISE = POINTWISE_LINEAR | PRODUCTS | POINTWISE_NONLINEAR

ACTIVATIONS = frozenset(op for op in vars(activations).values() if isinstance(op, OpOverload))
"""The `lxt_fx` ops of one operand that are pointwise."""

REDUCTIONS = frozenset(
    {
        aten.sum.default,
        aten.sum.dim_IntList,
        aten.mean.default,
        aten.mean.dim,
        aten.cumsum.default,
        aten.var.dim,
        aten.var.correction,
        aten.std.dim,
        aten.std.correction,
        aten.linalg_vector_norm.default,
        aten.linalg_norm.default,
        aten.norm.ScalarOpt_dim,
        aten.norm.Scalar,
        aten.amax.default,
    }
)
"""Ops that a statistic is made of."""
