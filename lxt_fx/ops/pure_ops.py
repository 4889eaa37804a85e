"""Which ops a graph in a file may call: those that do nothing but compute new values from their operands.

An op that opens files (`aten.from_file`, `aten.save`), starts or waits for work, writes into its operands, sets torch's
state or hands memory to others is not among them. The list follows from facts: torch's own tags, what this package states
about ops, and the names below, which graphs of models have beside these.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from lxt_fx.base.torch_internals import OpOverload, aten_ops, base_name, schema_of
from lxt_fx.ops import aten_kinds
from lxt_fx.ops.expectations import EXPECTATIONS

NAMESPACES = ("aten", "lxt_fx")

_TAGS = {tag for name in ("core", "pointwise", "reduction") if (tag := getattr(torch.Tag, name, None)) is not None}
"""What torch tags so computes on operands alone, if the schema writes to none of them and nothing is drawn at random."""

OTHERS = aten_ops(
    """
    _upsample_bicubic2d_aa.vec _upsample_bilinear2d_aa.vec __and__.Scalar __and__.Tensor __or__.Scalar __or__.Tensor
    _is_all_true _is_any_true _local_scalar_dense _softmax _log_softmax _to_copy _unsafe_view _weight_norm adjoint alias
    all.dim any.dim arange arange.start arange.start_step argwhere atleast_1d atleast_2d atleast_3d baddbmm batch_norm
    bilinear bincount block_diag bmm broadcast_to bucketize.Scalar bucketize.Tensor cartesian_prod cdist celu
    channel_shuffle clamp column_stack combinations complex concat concatenate conj cosine_similarity cov cross cummax
    cummin cumprod cumsum det detach diag diag_embed diff dot dropout dsplit.int dstack einsum embedding
    embedding_bag embedding_bag.padding_idx embedding_renorm
    empty.memory_format empty_like expand_copy eye eye.m fft_fft fft_fft2 fft_fftfreq fft_fftn fft_fftshift fft_hfft
    fft_ifft fft_ifft2 fft_ifftn fft_ifftshift fft_ihfft fft_irfft fft_irfft2 fft_irfftn fft_rfft fft_rfft2 fft_rfftfreq
    fft_rfftn feature_dropout fliplr flipud full full_like glu greater.Scalar greater.Tensor greater_equal.Scalar
    greater_equal.Tensor grid_sampler group_norm hann_window hann_window.periodic hamming_window histc hsplit.int hstack
    imag index_copy index_fill.int_Scalar index_fill.int_Tensor index_reduce inner instance_norm inverse is_complex
    is_floating_point is_nonzero isclose isin.Scalar_Tensor isin.Tensor_Scalar isin.Tensor_Tensor isreal istft item kron
    kthvalue layer_norm less.Scalar less.Tensor less_equal.Scalar less_equal.Tensor linalg_cross linalg_det
    linalg_diagonal linalg_inv linalg_matmul linalg_multi_dot linalg_norm linalg_pinv linalg_solve linalg_vecdot linear
    linspace linspace.Scalar_Tensor linspace.Tensor_Scalar linspace.Tensor_Tensor log_softmax.int logcumsumexp logit
    logspace matmul matrix_exp matrix_power max_pool1d max_pool2d max_pool3d median median.dim meshgrid
    meshgrid.indexing mode moveaxis.int moveaxis.intlist movedim.int movedim.intlist msort multiply.Scalar
    multiply.Tensor mv nanmean nanmedian narrow_copy negative new_empty new_full new_ones new_zeros nonzero
    nonzero_numpy norm.Scalar norm.ScalarOpt_dim not_equal.Scalar not_equal.Tensor numel numpy_T one_hot ones ones_like
    outer pairwise_distance pixel_shuffle pixel_unshuffle polar positive quantile quantile.scalar ravel real relu6
    resolve_conj resolve_neg rms_norm roll rot90 row_stack rsub.Tensor scaled_dot_product_attention scatter_add
    scatter_reduce.two searchsorted.Scalar searchsorted.Tensor selu slogdet softmax.int special_expit
    special_log_softmax special_logit special_logsumexp special_softmax split.Tensor split.sizes split_with_sizes square
    squeeze squeeze.dim squeeze.dims std std.dim stft stft.center subtract.Scalar subtract.Tensor swapaxes swapdims
    sym_numel sym_size sym_size.int sym_storage_offset sym_stride.int t take take_along_dim tensor_split.indices
    tensor_split.sections tensordot tile to.device to.dtype to.dtype_layout to.other trace transpose.int trapezoid.x
    tril_indices triplet_margin_loss triu_indices true_divide.Scalar trunc type_as unbind.int unflatten.int
    unique_consecutive _unique2 unique_dim vander vdot view_as view_as_complex view_as_real vsplit.int vstack where
    where.Scalar where.ScalarOther where.ScalarSelf where.self zeros zeros_like
    """
)
"""Ops without one of these tags: most stand for several of those that have it. The zoo's graphs call 80 of them."""

RANDOM = aten_ops(
    """
    bernoulli bernoulli.p multinomial normal_functional rand rand_like randint randint.low randint_like randn randn_like
    randperm
    """
)
"""Draw from torch's generator, which moves on, as a forward of the model itself does."""

FUNCTIONS: dict[str, tuple[Callable[..., Any], int, int]] = {
    f"{module.__name__}.{name}": (getattr(module, name), least, most)
    for module, least, most, names in (
        (operator, 2, 2, "getitem add sub mul truediv floordiv mod pow eq ne lt le gt ge and_ or_"),
        (operator, 1, 1, "neg not_ abs"),
        (math, 1, 1, "ceil floor trunc"),
        (torch, 1, 1, "sym_int sym_float sym_not sym_sum"),
        (torch, 2, 2, "sym_max sym_min"),
        (torch, 3, 3, "sym_ite"),
    )
    for name in names.split()
    if hasattr(module, name)
}
"""Functions that compute with sizes, and `getitem` for results that are several values: by name, with how many arguments
each takes."""


@cache
def is_pure(op: OpOverload) -> bool:
    """Whether a graph in a file may call this op."""
    if op.namespace not in NAMESPACES or schema_of(op).is_mutable:
        return False
    if op.namespace == "lxt_fx":
        return bool(schema_of(op).returns) or op in EXPECTATIONS
    if op in OTHERS or op in RANDOM or op in _stated():
        return True
    name = base_name(op)
    private = name.startswith("_") or name.endswith("_backward")
    drawn = torch.Tag.nondeterministic_seeded in op.tags
    return not private and not drawn and not _TAGS.isdisjoint(op.tags)


@cache
def _stated() -> frozenset[Any]:
    """The ops that this package states facts about."""
    kinds = (found for found in vars(aten_kinds).values() if isinstance(found, frozenset))
    return frozenset(op for found in kinds for op in found if isinstance(op, OpOverload))
