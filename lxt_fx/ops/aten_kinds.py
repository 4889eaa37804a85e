"""Facts about ATen's ops, whatever the table: which ops move elements, add up, select, multiply, or are pointwise. This is
the only place that sorts ops into kinds; rules and analyses read these sets. Facts about activations stand in
`activations.py`. A name that this torch does not have is left out.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from lxt_fx.base.torch_internals import aten, aten_ops
from lxt_fx.ops import exempt, experts, moves, norms, selection, steering
from lxt_fx.ops.activations import ACTIVATIONS
from lxt_fx.ops.packed import packed_linear

MOVES = aten_ops(
    """
    view reshape reshape_as view_as transpose.int permute expand expand_as slice.Tensor select.int squeeze squeeze.dim
    squeeze.dims unsqueeze flatten.using_ints unflatten.int movedim.int movedim.intlist moveaxis.int cat stack
    split.Tensor split.sizes split_with_sizes chunk tensor_split.sections unbind.int clone contiguous to.dtype to.device
    repeat repeat_interleave.self_int repeat_interleave.self_Tensor tile broadcast_to broadcast_tensors index.Tensor
    index_select gather take_along_dim narrow flip roll pad constant_pad_nd unfold im2col pixel_shuffle pixel_unshuffle
    masked_select tril triu diagonal masked_scatter slice_scatter select_scatter view_as_real view_as_complex
    channel_shuffle as_strided narrow.Tensor _pack_padded_sequence _pad_packed_sequence diag_embed resolve_conj
    """
) | {operator.getitem, selection.positions, exempt.exempt, moves.to_device}
"""Each output element is a copy of one input element, or a constant."""

SUMS = aten_ops(
    """
    add.Tensor sub.Tensor neg sum sum.dim_IntList mean mean.dim cumsum index_add index_put scatter_add lerp.Scalar
    avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d upsample_nearest1d.vec
    upsample_nearest2d.vec upsample_bilinear2d.vec upsample_bicubic2d.vec upsample_linear1d.vec upsample_trilinear3d.vec
    upsample_nearest3d.vec _upsample_nearest_exact1d.vec _upsample_nearest_exact2d.vec _upsample_nearest_exact3d.vec
    _upsample_bilinear2d_aa.vec _upsample_bicubic2d_aa.vec col2im nansum
    fft_fftn _fft_r2c _fft_c2r _fft_c2c real imag complex _conj conj_physical
    """
)
"""Linear in all carrying operands together."""

MEETING = aten_ops("maximum minimum max.other min.other")
"""Ops that halve the gradient where the value equals the bound; a clamp passes all of it to the value."""

LIMITS = MEETING | aten_ops("clamp clamp.Tensor clamp_min clamp_min.Tensor clamp_max clamp_max.Tensor")
"""Selections that may replace a value by a bound."""

MASKS = aten_ops("masked_fill.Scalar where.self where.ScalarOther where.ScalarSelf")

FILLS = MASKS | aten_ops("masked_fill.Tensor clamp clamp_min clamp_max")
"""Write a number, often the lowest of the dtype, into a tensor."""

SELECTIONS = LIMITS | MASKS | aten_ops(
    """
    masked_fill.Tensor scatter.value scatter.src max
    max.dim min min.dim amax amin topk sort sort.stable max_pool1d max_pool2d max_pool3d adaptive_max_pool1d
    adaptive_max_pool2d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool3d
    nan_to_num abs median median.dim nanmedian nanmedian.dim mode kthvalue cummax cummin aminmax
    """
)
"""Piecewise linear: each output element is one of the input elements (up to its sign), or a constant."""

TRANSPOSED = aten_ops("conv_transpose1d conv_transpose2d.input conv_transpose3d.input")
CONVOLUTIONS = TRANSPOSED | aten_ops(
    "conv1d conv1d.padding conv2d conv2d.padding conv3d conv3d.padding convolution"
)


GROUPED_MATMULS = frozenset({aten._grouped_mm.default, experts.grouped_matmul})
"""Expert matmuls: torch's own, and that of transformers for dtypes that torch's does not take."""

WEIGHTED = CONVOLUTIONS | GROUPED_MATMULS | {packed_linear} | aten_ops("linear addmm")
"""Linear maps by weights, with a bias where there is one."""

LOOK_UP = aten_ops("embedding index.Tensor index_select gather take take_along_dim")
"""Read a table at places that another operand says."""

BAGS = aten_ops("embedding_bag embedding_bag.padding_idx")
ONE_HOT = aten_ops("one_hot scatter.value")

TRANSFORMS = aten_ops("stft istft")
"""Linear in the signal and in the window."""

CONTRACTIONS = aten_ops("matmul einsum")
LINEAR_MAPS = WEIGHTED | CONTRACTIONS
"""Linear in each operand; two operands may carry."""

TIMES_TABLE = CONTRACTIONS | aten_ops("linear mm bmm")
"""Look up in a table, if the other operand is one-hot."""

POINTWISE_LINEAR = aten_ops("add.Tensor sub.Tensor neg to.dtype")
PRODUCTS = aten_ops("mul.Tensor div.Tensor")
COMPARISONS = aten_ops("gt.Scalar lt.Scalar ge.Scalar le.Scalar logical_not")
POWERS = {a.aten for a in ACTIVATIONS if not a.gate}
"""Products of a value with itself, and their inverses."""

POINTWISE_NONLINEAR = (
    frozenset(a.aten for a in ACTIVATIONS) | POWERS | COMPARISONS | MASKS
    | aten_ops("abs clamp clamp_min clamp_max minimum maximum prelu sign")
)  # fmt: skip
POINTWISE = POINTWISE_LINEAR | PRODUCTS | POINTWISE_NONLINEAR

CURVED = POINTWISE_NONLINEAR - POWERS
GATES = (CURVED - SELECTIONS) | aten_ops("softmax.int")
"""Ops whose output gates what it is multiplied with: softmax, and every function of one value but a power, which is only
the value times itself."""

REDUCTIONS = aten_ops(
    """
    sum sum.dim_IntList mean mean.dim cumsum var var.dim var.correction std std.dim std.correction linalg_vector_norm
    linalg_norm norm.ScalarOpt_dim norm.Scalar amax
    """
)
"""The reductions that statistics are computed with."""

REDUCED = REDUCTIONS - aten_ops("sum mean cumsum linalg_norm norm.Scalar") | aten_ops(
    "amin max.dim min.dim argmax argmin any.dim all.dim prod.dim_int logsumexp"
)
"""Reduce over the dims in their argument `dim`, which vanish or get size 1; positions along other dims do not mix."""

ALONG = aten_ops("softmax.int log_softmax.int cumsum cumprod topk sort sort.stable argsort")
"""Work along their argument `dim`, whose size stays; positions along other dims do not mix."""

LOSSES = aten_ops(
    """
    cross_entropy_loss nll_loss_nd binary_cross_entropy binary_cross_entropy_with_logits kl_div l1_loss smooth_l1_loss
    huber_loss ctc_loss.Tensor ctc_loss.IntList
    """
)
"""Compare what a model answers with what it should have answered."""

NORMS = frozenset(norms.OF)
"""Norms that are one op."""

SHAPE_READERS = aten_ops(
    """
    zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones new_full new_empty
    """
) | {steering.steered}
"""Ops that read only the shape and dtype of an operand that may carry."""

LIKE_ANOTHER = aten_ops("expand_as reshape_as view_as type_as")
"""Ops that read the values of their first operand, and only the shape or dtype of the second."""

ONE_DTYPE: Mapping[Any, str] = {
    op: name
    for name, ops in {
        "source": "index_add masked_scatter index_copy",
        "src": "scatter.src scatter_add",
        "values": "index_put",
        "end": "lerp.Scalar lerp.Tensor",
    }.items()
    for op in aten_ops(ops)
}
"""Ops that refuse operands of different dtypes, with the argument that must have the dtype of `self`."""

STEPS = aten_ops(
    """
    sign floor ceil round trunc bernoulli div.Tensor_mode floor_divide heaviside
    """
)
"""Step functions: constant between jumps. torch gives them a gradient of zeros."""
