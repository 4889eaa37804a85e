"""Tiny nets for every op of the long lists: moves, sums, selections and convolutions."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from rule_nets import EIGHTHS, Case, Inputs
from torch import Tensor, nn

from lxt_fx.ledger.causes import Cause
from lxt_fx.ops.moves import to_device
from lxt_fx.ops.selection import positions
from lxt_fx.rule_table import basic_rules as basic
from lxt_fx.rule_table.rule import Rule

aten = torch.ops.aten

Shape = tuple[int, ...]


def of(rule: Rule) -> Callable[..., Case]:
    """Cases of that rule: the op, the function of the inputs, their shapes, the constants by name."""

    def made(op: Any, function: Callable[..., Any], *shapes: Shape, name: str = "", **constants: Any) -> Case:
        settings = {key: constants.pop(key) for key in ("values", "leak", "cause", "dtype", "resizes") if key in constants}
        return Case(rule, op, function, shapes or ((2, 3, 4),), constants, name=name, **settings)

    return made


def _packed(a: Tensor) -> tuple[Tensor, Tensor]:
    """[2, 3, 4] as a packed sequence of two texts of three steps, and how many of them each step has."""
    found: tuple[Tensor, Tensor] = torch._pack_padded_sequence(a, torch.tensor([3, 3]), True)
    return found


total_by, select_by, sample = of(basic.SUM_BY_INDEX), of(basic.SELECT_BY_INDEX), of(basic.SAMPLE)
move, total, select, convolve = of(basic.MOVE), of(basic.SUM), of(basic.SELECT), of(basic.CONVOLUTION)

INDEX = torch.tensor([2, 0, 0])
PLACES = torch.tensor([[[0, 2, 1, 1], [1, 1, 2, 0], [2, 0, 0, 2]]] * 2)
SOME = torch.tensor([[True, False, True, False], [False, True, True, True], [False, False, True, False]])
IMAGE = (2, 4, 4, 4)


def cls(net: nn.Module, inputs: Inputs, c: Tensor) -> Tensor:
    """<CLS, g of its token>."""
    return c[:, 0] * net.cls[0]


def greater(net: nn.Module, inputs: Inputs, c: Tensor) -> Tensor:
    """The bound where it is the greater one, and half of it where the two are equal."""
    return c * net.bound * ((net.bound > inputs[0]) + 0.5 * (net.bound == inputs[0]))


def less(net: nn.Module, inputs: Inputs, c: Tensor) -> Tensor:
    """The bound where it is the lesser one, and half of it where the two are equal."""
    return c * net.bound * ((net.bound < inputs[0]) + 0.5 * (net.bound == inputs[0]))


def padding(value: float) -> Callable[..., Tensor]:
    """The padding value at the two places behind the last dim."""
    return lambda net, inputs, c: c[..., -2:] * value


MOVES = (
    move(aten.view.default, lambda n, a: a.view(a.shape[0], 12)),
    move(aten.reshape.default, lambda n, a: a.mT.reshape(a.shape[0], 12)),
    move(aten.reshape_as.default, lambda n, a: a.reshape_as(n.like), like=torch.ones(2, 12)),
    move(aten.view_as.default, lambda n, a: a.view_as(n.like), like=torch.ones(2, 12)),
    move(aten.transpose.int, lambda n, a: a.transpose(1, 2)),
    move(aten.permute.default, lambda n, a: a.permute(2, 0, 1)),
    move(aten.expand.default, lambda n, a: a.expand(-1, 3, 5), (2, 3, 1)),
    move(aten.expand_as.default, lambda n, a, b: torch.cat([a.expand_as(b), b]), (2, 3, 1), (2, 3, 4)),
    move(aten.slice.Tensor, lambda n, a: a[:, 1:]),
    move(aten.slice.Tensor, lambda n, a: a[..., ::2], name="steps"),
    move(aten.select.int, lambda n, a: a[:, 0]),
    move(aten.squeeze.default, lambda n, a: a.squeeze(), (2, 1, 3)),
    move(aten.squeeze.dim, lambda n, a: a.squeeze(1), (2, 1, 3)),
    move(aten.squeeze.dims, lambda n, a: a.squeeze((1, 2)), (2, 1, 1, 3)),
    move(aten.unsqueeze.default, lambda n, a: a.unsqueeze(-1)),
    move(aten.flatten.using_ints, lambda n, a: a.flatten(1)),
    move(aten.unflatten.int, lambda n, a: a.unflatten(-1, (2, 2))),
    move(aten.movedim.int, lambda n, a: a.movedim(1, 2)),
    move(aten.movedim.intlist, lambda n, a: a.movedim((0, 1), (1, 2))),
    move(aten.moveaxis.int, lambda n, a: torch.moveaxis(a, 0, 2)),
    move(aten.cat.default, lambda n, a, b: torch.cat([a, b], 1), (2, 3, 4), (2, 2, 4)),
    move(
        aten.cat.default, lambda n, a: torch.cat([n.cls.expand(a.shape[0], -1, -1), a], 1), name="cls", cls=(1, 1, 4),
        leak=cls, cause=(Cause.CONSTANT, "cls"),
    ),
    move(aten.stack.default, lambda n, a, b: torch.stack([a, b], 1), (2, 3), (2, 3)),
    move(
        aten.stack.default, lambda n, a: torch.stack([a, n.row.expand(a.shape[0], 3)], 1), (2, 3), name="constant",
        row=(3,), cause=(Cause.CONSTANT, "row"),
    ),
    move(aten.split.Tensor, lambda n, a: a.split(3, -1)[1]),
    move(aten.split.sizes, lambda n, a: aten.split.sizes(a, [1, 3], -1)[1]),
    move(aten.split_with_sizes.default, lambda n, a: a.split([1, 3], -1)),
    move(aten.chunk.default, lambda n, a: a.chunk(2, -1), resizes=False),  # in 2 parts, and of 1 element in 1
    move(aten.tensor_split.sections, lambda n, a: torch.tensor_split(a, 2, -1)[0]),
    move(aten.unbind.int, lambda n, a: a.unbind(1)[1]),
    move(operator.getitem, lambda n, a: a.chunk(2, -1)[1], name="of_chunk", resizes=False),
    move(operator.getitem, lambda n, a: a.max(-1)[0], name="of_max"),
    move(aten.clone.default, lambda n, a: a.clone()),
    move(aten.contiguous.default, lambda n, a: a.mT.contiguous()),
    move(aten.to.dtype, lambda n, a: a.to(torch.float32), values=EIGHTHS),
    move(aten.to.dtype, lambda n, a: a.to(torch.float64), values=EIGHTHS, dtype=torch.float32, name="wider"),
    move(aten.repeat.default, lambda n, a: a.repeat(1, 2, 3)),
    move(aten.repeat_interleave.self_int, lambda n, a: a.repeat_interleave(2, 1)),
    move(aten.repeat_interleave.self_Tensor, lambda n, a: a.repeat_interleave(n.times, 1), times=torch.tensor([1, 0, 3])),
    move(aten.tile.default, lambda n, a: a.tile(2, 1)),
    move(aten.broadcast_to.default, lambda n, a: a.broadcast_to(a.shape[0], 3, 5), (2, 3, 1)),
    move(aten.broadcast_tensors.default, lambda n, a, b: torch.broadcast_tensors(a, b), (2, 3, 1), (2, 1, 4)),
    move(
        aten.broadcast_tensors.default, lambda n, a: torch.broadcast_tensors(a, n.row)[0], (2, 3, 1), name="constant",
        row=(4,),
    ),
    move(aten.index.Tensor, lambda n, a: a[:, n.index], index=INDEX),
    move(aten.index_select.default, lambda n, a: a.index_select(1, n.index), index=INDEX),
    move(aten.gather.default, lambda n, a: a.gather(1, n.places), places=PLACES),
    move(aten.take_along_dim.default, lambda n, a: a.take_along_dim(n.places, 1), places=PLACES),
    move(positions, lambda n, a: positions(a, 1, [-1, 0])),
    move(to_device, lambda n, a: to_device(a, torch.device("cpu"))),
    move(aten.narrow.default, lambda n, a: a.narrow(1, 1, 2)),
    move(aten.flip.default, lambda n, a: a.flip(1, 2)),
    move(
        aten._pack_padded_sequence.default,
        lambda n, a: _packed(a)[0].unflatten(0, (3, 2)).transpose(0, 1),
        resizes=False,
    ),
    move(
        aten._pad_packed_sequence.default,
        lambda n, a: torch._pad_packed_sequence(a.transpose(0, 1).flatten(0, 1), _packed(a)[1], True, 0.0, 3)[0],
        resizes=False,
    ),
    move(aten.roll.default, lambda n, a: a.roll((1, -1), (1, 2))),
    move(aten.pad.default, lambda n, a: F.pad(a, (1, 0), "reflect"), name="reflect"),
    move(
        aten.pad.default, lambda n, a: F.pad(a, (0, 2), value=-1.5), name="value", leak=padding(-1.5),
        cause=(Cause.CONSTANT, "the number -1.5"),
    ),
    move(
        aten.constant_pad_nd.default, lambda n, a: aten.constant_pad_nd.default(a, [0, 2], 2.5), leak=padding(2.5),
        cause=(Cause.CONSTANT, "the number 2.5"),
    ),
    move(aten.constant_pad_nd.default, lambda n, a: aten.constant_pad_nd.default(a, [-1, 1, 1, 0]), name="cut_and_zeros"),
    move(aten.unfold.default, lambda n, a: a.unfold(1, 2, 1)),
    move(aten.im2col.default, lambda n, a: F.unfold(a, 2, padding=1), IMAGE),
    move(aten.pixel_shuffle.default, lambda n, a: F.pixel_shuffle(a, 2), IMAGE),
    move(aten.pixel_unshuffle.default, lambda n, a: F.pixel_unshuffle(a, 2), IMAGE),
    move(aten.masked_select.default, lambda n, a: a.masked_select(n.mask), (3, 4), mask=SOME),
    move(aten.tril.default, lambda n, a: a.tril(), (2, 3, 3)),
    move(aten.triu.default, lambda n, a: a.triu(1), (2, 3, 3)),
    move(aten.diagonal.default, lambda n, a: a.diagonal(1, 1, 2)),
    move(aten.masked_scatter.default, lambda n, a, b: a.masked_scatter(n.mask, b), (2, 3, 4), (2, 3, 4), mask=SOME),
    move(
        aten.masked_scatter.default, lambda n, a: a.masked_scatter(n.mask, n.source), name="constant", mask=SOME,
        source=(2, 3, 4), cause=(Cause.CONSTANT, "source"),
    ),
    move(aten.slice_scatter.default, lambda n, a, b: a.slice_scatter(b, 1, 1), (2, 3, 4), (2, 2, 4)),
    move(
        aten.slice_scatter.default, lambda n, a: n.base.slice_scatter(a, 1, 1), (2, 2, 4), name="into_constant",
        base=(2, 3, 4), cause=(Cause.CONSTANT, "base"),
    ),
    move(aten.select_scatter.default, lambda n, a, b: a.select_scatter(b, 1, 1), (2, 3, 4), (2, 4)),
    move(
        aten.select_scatter.default, lambda n, a: a.select_scatter(n.row, 1, 1), name="constant", row=(2, 4),
        cause=(Cause.CONSTANT, "row"),
    ),
    move(aten.view_as_complex.default, lambda n, a: torch.view_as_real(torch.view_as_complex(a)), (2, 3, 2)),
    move(aten.view_as_real.default, lambda n, a: torch.view_as_real(torch.view_as_complex(a).flip(1)), (2, 3, 2)),
    move(aten.as_strided.default, lambda n, a: a.contiguous().as_strided((3, 2, 4), (4, 4, 1), 4), resizes=False),
    move(aten.narrow.Tensor, lambda n, a: aten.narrow.Tensor(a, 1, n.start, 2), start=torch.tensor(1)),
    move(aten.diag_embed.default, lambda n, a: a.diag_embed(1)),
    move(aten.resolve_conj.default, lambda n, a: torch.view_as_complex(a).conj().resolve_conj().real, (2, 3, 2)),
    move(aten.channel_shuffle.default, lambda n, a: F.channel_shuffle(a, 2), IMAGE),
)  # fmt: skip

SUMS = (
    total(aten.add.Tensor, lambda n, a, b: a + b, (2, 3, 4), (3, 1)),
    total(aten.add.Tensor, lambda n, a: a + a.mT, (2, 3, 3), name="itself"),
    total(
        aten.add.Tensor, lambda n, a: a + n.position, position=(3, 4), name="position",
        leak=lambda net, x, c: c * net.position, cause=(Cause.CONSTANT, "position"),
    ),
    total(
        aten.add.Tensor, lambda n, a: torch.add(a, 1.5, alpha=2), name="number", leak=lambda net, x, c: c * 3,
        cause=(Cause.CONSTANT, "the number 1.5"),
    ),
    total(aten.sub.Tensor, lambda n, a, b: torch.sub(a, b, alpha=0.5), (2, 3, 4), (2, 1, 4)),
    total(
        aten.sub.Tensor, lambda n, a: n.position - a, position=(3, 4), name="from_constant",
        cause=(Cause.CONSTANT, "position"),
    ),
    total(aten.neg.default, lambda n, a: -a),
    total(aten.sum.default, lambda n, a: a.sum()),
    total(aten.sum.dim_IntList, lambda n, a: a.sum((1, 2))),
    total(aten.mean.default, lambda n, a: a.mean()),
    total(aten.mean.dim, lambda n, a: a.mean(-1, keepdim=True)),
    total(aten.cumsum.default, lambda n, a: a.cumsum(1)),
    total(aten.index_add.default, lambda n, a, b: a.index_add(1, n.index, b), (2, 3, 4), (2, 3, 4), index=INDEX),
    total(
        aten.index_add.default, lambda n, a: a.index_add(1, n.index, n.source), name="constant", index=INDEX,
        source=(2, 3, 4), cause=(Cause.CONSTANT, "source"),
    ),
    total(aten.index_put.default, lambda n, a, b: a.index_put((n.index,), b, accumulate=True), (3, 4), (3, 4), index=INDEX),
    total(
        aten.index_put.default, lambda n, a, b: a.index_put((n.index,), b), (3, 4), (2, 4), name="in_place_of",
        index=INDEX[:2],
    ),
    total(
        aten.index_put.default, lambda n, a: a.index_put((n.index,), n.row), (3, 4), name="constant", index=INDEX, row=(4,),
        cause=(Cause.CONSTANT, "row"),
    ),
    total(
        aten.scatter_add.default, lambda n, a, b: a.scatter_add(1, n.places, b), (2, 3, 4), (2, 3, 4), places=PLACES,
        resizes=False,
    ),
    total(
        aten.scatter_add.default, lambda n, a: n.base.scatter_add(1, n.places, a), name="onto_constant", places=PLACES,
        resizes=False, base=(2, 3, 4), cause=(Cause.CONSTANT, "base"),
    ),
    total(aten.lerp.Scalar, lambda n, a, b: torch.lerp(a, b, 0.3), (2, 3, 4), (3, 4)),
    total(
        aten.lerp.Scalar, lambda n, a: torch.lerp(a, n.end, 0.25), name="constant", end=(3, 4),
        leak=lambda net, x, c: c * net.end / 4, cause=(Cause.CONSTANT, "end"),
    ),
    total(aten.avg_pool1d.default, lambda n, a: F.avg_pool1d(a, 2, 1, 1)),
    total(aten.avg_pool2d.default, lambda n, a: F.avg_pool2d(a, 2), IMAGE),
    total(aten.avg_pool3d.default, lambda n, a: F.avg_pool3d(a, 2, 1), (2, 1, 2, 3, 2)),
    total(aten.adaptive_avg_pool1d.default, lambda n, a: F.adaptive_avg_pool1d(a, 3)),
    total(aten.adaptive_avg_pool2d.default, lambda n, a: F.adaptive_avg_pool2d(a, (3, 1)), IMAGE),
    total(aten.adaptive_avg_pool3d.default, lambda n, a: F.adaptive_avg_pool3d(a, 2), (2, 1, 2, 3, 3)),
    total(aten.upsample_nearest1d.vec, lambda n, a: F.interpolate(a, 7)),
    total(aten.upsample_nearest2d.vec, lambda n, a: F.interpolate(a, scale_factor=2), (2, 1, 3, 2)),
    total(aten.upsample_bilinear2d.vec, lambda n, a: F.interpolate(a, (5, 3), mode="bilinear"), (2, 1, 3, 2)),
    total(aten.upsample_bicubic2d.vec, lambda n, a: F.interpolate(a, (5, 3), mode="bicubic"), (2, 1, 3, 4)),
    total(aten.upsample_linear1d.vec, lambda n, a: F.interpolate(a, 7, mode="linear")),
    total(aten.upsample_trilinear3d.vec, lambda n, a: F.interpolate(a, (3, 3, 3), mode="trilinear"), (2, 1, 2, 2, 2)),
    total(aten.fft_fftn.default, lambda n, a: torch.fft.fftn(a, dim=(1, 2)).real),
    total(aten.col2im.default, lambda n, a: F.fold(a, (3, 3), 2), (2, 8, 4)),
    total(aten._fft_r2c.default, lambda n, a: aten._fft_r2c.default(a, [1], 0, True).imag),
    total(
        aten._fft_c2r.default, lambda n, a: aten._fft_c2r.default(torch.view_as_complex(a), [1], 2, 4), (2, 3, 2),
        resizes=False,
    ),
    total(
        aten._fft_c2c.default, lambda n, a: aten._fft_c2c.default(torch.view_as_complex(a), [1], 0, True).real, (2, 3, 2)
    ),
    total(aten.imag.default, lambda n, a: torch.view_as_complex(a).imag, (2, 3, 2)),
    total(aten.complex.default, lambda n, a, b: torch.view_as_real(torch.complex(a, b)), (2, 3), (2, 3)),
    total(aten._conj.default, lambda n, a: torch.view_as_complex(a).conj().imag, (2, 3, 2)),
    total(aten.conj_physical.default, lambda n, a: torch.conj_physical(torch.view_as_complex(a)).imag, (2, 3, 2)),
    total(aten.nansum.default, lambda n, a: a.nansum(-1)),
    total(aten.upsample_nearest3d.vec, lambda n, a: F.interpolate(a, (3, 3, 3)), (2, 1, 2, 2, 2)),
    *(
        total(
            getattr(aten, f"_upsample_nearest_exact{dims}d").vec,
            lambda n, a, dims=dims: F.interpolate(a, [3] * dims, mode="nearest-exact"), (2, 1, *[2] * dims),
        )
        for dims in (1, 2, 3)
    ),
    *(
        total(
            getattr(aten, f"_upsample_{mode}2d_aa").vec,
            lambda n, a, mode=mode: F.interpolate(a, (3, 2), mode=mode, antialias=True), (2, 1, 4, 4),
        )
        for mode in ("bilinear", "bicubic")
    ),
    total(aten.real.default, lambda n, a: torch.real(torch.view_as_complex(a)), (2, 3, 2)),
    *(
        total_by(
            aten.scatter_reduce.two, lambda n, a, b, by=by: a.scatter_reduce(1, n.places, b, by), (2, 3, 4), (2, 3, 4),
            places=PLACES, resizes=False, name=by,
        )
        for by in ("sum", "mean")
    ),
    sample(
        aten.grid_sampler.default, lambda n, a, b: F.grid_sample(a, b.clamp(-1.5, 1.5), align_corners=False), IMAGE,
        (2, 3, 5, 2), resizes=False,
    ),
)  # fmt: skip

FILL = {"mask": SOME}
SELECTED = {"cause": (Cause.SELECTION, "a constant")}
BOUND = {"cause": (Cause.SELECTION, "a bound"), "values": EIGHTHS}

SELECTIONS = (
    select(aten.where.self, lambda n, a, b: torch.where(n.mask, a, b), (2, 3, 4), (1, 4), **FILL),
    select(aten.where.self, lambda n, a: torch.where(n.mask, n.other, a), name="constant", other=(4,), **FILL, **SELECTED),
    select(aten.where.ScalarOther, lambda n, a: aten.where.ScalarOther(n.mask, a, -2.5), **FILL, **SELECTED),
    select(aten.where.ScalarSelf, lambda n, a: aten.where.ScalarSelf(n.mask, 1.5, a), **FILL, **SELECTED),
    select(aten.masked_fill.Scalar, lambda n, a: a.masked_fill(n.mask, 3.0), **FILL, **SELECTED),
    select(aten.masked_fill.Tensor, lambda n, a: a.masked_fill(n.mask, n.one), one=(), **FILL, **SELECTED),
    select(aten.scatter.value, lambda n, a: a.scatter(1, n.places, 1.5), places=PLACES[:, :1], **SELECTED),
    select(
        aten.scatter.src, lambda n, a, b: a.scatter(1, n.places, b), (2, 3, 4), (2, 1, 4), places=PLACES[:, :1],
        resizes=False,
    ),
    select(
        aten.scatter.src, lambda n, a: a.scatter(1, n.places, n.source), name="constant", places=PLACES[:, :1],
        source=(2, 1, 4), **SELECTED,
    ),
    select(aten.maximum.default, lambda n, a, b: torch.maximum(a, b), (2, 3, 4), (3, 4)),
    select(aten.maximum.default, lambda n, a: torch.maximum(a, n.bound), bound=(4,), name="bound", leak=greater, **BOUND),
    select(aten.minimum.default, lambda n, a, b: torch.minimum(a, b), (2, 3, 4), (3, 1)),
    select(aten.minimum.default, lambda n, a: torch.minimum(n.bound, a), name="constant", bound=(4,), leak=less, **BOUND),
    select(aten.max.default, lambda n, a: a.max()),
    select(aten.max.dim, lambda n, a: a.max(1)),
    select(aten.max.other, lambda n, a, b: aten.max.other(a, b), (2, 3, 4), (3, 4)),
    select(aten.max.other, lambda n, a: aten.max.other(a, n.bound), name="constant", bound=(4,), leak=greater, **BOUND),
    select(aten.min.default, lambda n, a: a.min()),
    select(aten.min.dim, lambda n, a: a.min(1)[0]),
    select(aten.min.other, lambda n, a, b: aten.min.other(a, b), (2, 3, 4), (3, 4)),
    select(aten.min.other, lambda n, a: aten.min.other(a, n.bound), name="constant", bound=(4,), leak=less, **BOUND),
    select_by(
        aten.scatter_reduce.two, lambda n, a: n.base.scatter_reduce(1, n.places, a, "amax", include_self=False),
        places=PLACES, base=torch.full((2, 3, 4), -9.0, dtype=torch.float64), resizes=False, name="amax",
    ),
    select_by(
        aten.scatter_reduce.two, lambda n, a, b: a.scatter_reduce(1, n.places, b, "amin"), (2, 3, 4), (2, 3, 4),
        places=PLACES, resizes=False, name="amin",
    ),
    select(aten.amax.default, lambda n, a: a.amax((1, 2))),
    select(aten.amin.default, lambda n, a: a.amin(-1)),
    select(aten.topk.default, lambda n, a: a.topk(2)[0]),
    select(aten.sort.default, lambda n, a: a.sort(1)[0]),
    select(aten.sort.stable, lambda n, a: a.sort(dim=-1, stable=True)[0]),
    select(aten.clamp.default, lambda n, a: a.clamp(-1, 0.5), **BOUND),
    select(aten.clamp.Tensor, lambda n, a: torch.clamp(a, n.low, n.low.abs() + 1), low=(4,), **BOUND),
    select(aten.clamp_min.default, lambda n, a: aten.clamp_min.default(a, 0.5), **BOUND),
    select(aten.clamp_min.Tensor, lambda n, a: aten.clamp_min.Tensor(a, n.bound), bound=(4,), **BOUND),
    select(aten.clamp_max.default, lambda n, a: aten.clamp_max.default(a, 0.5), **BOUND),
    select(aten.clamp_max.Tensor, lambda n, a: aten.clamp_max.Tensor(a, n.bound), bound=(4,), **BOUND),
    select(aten.max_pool1d.default, lambda n, a: F.max_pool1d(a, 2, 1, 1)),
    select(aten.max_pool2d.default, lambda n, a: F.max_pool2d(a, 2), IMAGE),
    select(aten.max_pool3d.default, lambda n, a: F.max_pool3d(a, 2, 1), (2, 1, 2, 3, 2)),
    select(aten.adaptive_max_pool1d.default, lambda n, a: F.adaptive_max_pool1d(a, 2)),
    select(aten.adaptive_max_pool2d.default, lambda n, a: F.adaptive_max_pool2d(a, 2), IMAGE),
    *(
        select(
            getattr(aten, f"max_pool{dims}d_with_indices").default,
            lambda n, a, dims=dims: getattr(F, f"max_pool{dims}d")(a, 2, 1, return_indices=True)[0],
            (2, 2, *[3] * dims),
        )
        for dims in (1, 2, 3)
    ),
    select(aten.adaptive_max_pool3d.default, lambda n, a: F.adaptive_max_pool3d(a, 2), (2, 1, 2, 3, 3)),
    select(aten.median.default, lambda n, a: a.median()),
    select(aten.median.dim, lambda n, a: a.median(1)[0]),
    select(aten.nanmedian.default, lambda n, a: a.nanmedian()),
    select(aten.nanmedian.dim, lambda n, a: a.nanmedian(-1)[0]),
    select(aten.mode.default, lambda n, a: a.mode(1)[0]),
    select(aten.kthvalue.default, lambda n, a: a.kthvalue(1, 1)[0]),
    select(aten.cummax.default, lambda n, a: a.cummax(1)[0]),
    select(aten.cummin.default, lambda n, a: a.cummin(-1)[0]),
    select(aten.aminmax.default, lambda n, a: torch.stack(a.aminmax(dim=1))),
    select(aten.nan_to_num.default, lambda n, a: a.nan_to_num(2.0)),
    select(aten.abs.default, lambda n, a: a.abs()),
)  # fmt: skip


def _bias_of_channels(dims: int) -> dict[str, Any]:
    shape = (-1, *[1] * dims)
    return {"leak": lambda net, inputs, c: c * net.bias.reshape(shape), "cause": (Cause.BIAS, "bias")}


def convolution(op: Any, dims: int, *settings: Any, name: str = "") -> Case:
    """A convolution of 2 channels, width 4, by kernels of 3, or 2 in 3 dims, with a bias."""
    kernel, width = ([3] * dims, [4] * dims) if dims < 3 else ([2] * dims, [3] * dims)
    return convolve(
        op, lambda n, a: op(a, n.weight, n.bias, *settings), (2, 2, *width), name=name, weight=(2, 2, *kernel), bias=(2,),
        **_bias_of_channels(dims),
    )  # fmt: skip


CONVOLUTIONS = (
    convolution(aten.conv1d.default, 1, [2], [1]),
    convolution(aten.conv1d.padding, 1, [1], "same"),
    convolution(aten.conv2d.default, 2),
    convolution(aten.conv2d.padding, 2, [1, 1], "valid"),
    convolution(aten.conv3d.default, 3),
    convolution(aten.conv3d.padding, 3, [1, 1, 1], "same"),
    convolution(aten.conv_transpose1d.default, 1, [2]),
    convolution(aten.conv_transpose2d.input, 2),
    convolution(aten.conv_transpose3d.input, 3),
    convolution(aten.convolution.default, 1, [1], [1], [1], False, [0], 1),
    convolution(aten.convolution.default, 2, [1, 1], [1, 0], [1, 1], True, [0, 0], 1, name="transposed"),
    convolve(aten.conv2d.default, lambda n, a: F.conv2d(a, n.weight, groups=2), IMAGE, name="no_bias", weight=(2, 2, 2, 2)),
)  # fmt: skip

CASES = (*MOVES, *SUMS, *SELECTIONS, *CONVOLUTIONS)
"""Several for an op where a constant may stand beside what carries."""
