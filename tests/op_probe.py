"""The functions of torch that relevance is sent through, and those that it is not, with the reason: `docs/ops.md`.

`python tests/op_probe.py` writes the page again.
"""

from __future__ import annotations

import textwrap
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PAGE = Path(__file__).parent.parent / "docs" / "ops.md"
Function = Callable[[Tensor], Any]


def _drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


W, SHIFT, KERNEL = _drawn(8, 8), _drawn(6, 8), _drawn(4, 4, 2, 2)
INDEX = torch.randint(6, (2, 6, 8), generator=torch.Generator().manual_seed(0))
WINDOW = torch.ones(8, dtype=torch.float64)
ANGLES = torch.polar(torch.ones(6, 4, dtype=torch.float64), _drawn(6, 4))
GRID = _drawn(2, 5, 5, 2).clamp(-1, 1)
ROW = torch.tensor([0, 3])
CUBE, BACK, STEPS = _drawn(2, 1, 2, 2, 2), _drawn(1, 1, 2, 2, 2), _drawn(3, 8, 5)


def _above(x: Tensor) -> Tensor:
    return x.abs() + 1


def _small(x: Tensor) -> Tensor:
    return torch.tanh(x) / 2


def _assigned(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, 1:] = x[:, :-1]
    return y


OF_ONE_VALUE: dict[str, Function] = {
    **{name: getattr(torch, name) for name in (
        "sin", "cos", "sinh", "cosh", "sinc", "tanh", "atan", "asinh", "exp", "exp2", "expm1", "erf", "erfc", "sigmoid",
        "relu", "abs", "square", "neg", "frac", "nan_to_num",
    )},
    **{name: lambda x, name=name: getattr(torch, name)(_small(x)) for name in ("tan", "asin", "acos", "atanh", "erfinv")},
    **{name: lambda x, name=name: getattr(torch, name)(_above(x)) for name in (
        "sqrt", "rsqrt", "reciprocal", "log", "log2", "log10", "log1p", "lgamma", "digamma", "acosh",
    )},
    "logit": lambda x: torch.logit(x.sigmoid()),
    "special.ndtr": torch.special.ndtr,
    "special.entr": lambda x: torch.special.entr(_above(x)),
    "deg2rad": torch.deg2rad,
    "pow": lambda x: _above(x) ** -1.5, "pow 0.5": lambda x: _above(x) ** 0.5, "2 ** x": lambda x: 2.0**x,
    "remainder": lambda x: x % 1.0, "fmod": lambda x: x.fmod(1.0),
    "clamp": lambda x: x.clamp(-1, 1), "where": lambda x: torch.where(x > 0, x, x * 0.1),
    "rounding, straight through": lambda x: x + (x.round() - x).detach(),
    "sign * sqrt": lambda x: x.sign() * x.abs().sqrt(),
    **{f"F.{name}": getattr(F, name) for name in (
        "celu", "elu", "gelu", "hardshrink", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "logsigmoid", "mish",
        "relu6", "selu", "silu", "softplus", "softshrink", "softsign", "tanhshrink", "glu", "relu", "sigmoid", "tanh",
    )},
    "F.threshold": lambda x: F.threshold(x, 0.1, -0.5),
    "F.rrelu": lambda x: F.rrelu(x, training=False),
    "F.softplus with beta": lambda x: F.softplus(x, 2),
    "F.prelu": lambda x: F.prelu(x, SHIFT[0, :1]),
    "F.dropout": lambda x: F.dropout(x, training=False), "F.alpha_dropout": lambda x: F.alpha_dropout(x, training=False),
    "F.feature_alpha_dropout": lambda x: F.feature_alpha_dropout(x, training=False),
    "x.pow_": lambda x: _above(x).pow_(-0.5), "x.div_": lambda x: (x * 1).div_(2),
    "x.addcmul_": lambda x: (x * 1).addcmul_(x, x), "x.masked_fill_": lambda x: (x * 1).masked_fill_(x > 0, 0.0),
    "x.float_power_": lambda x: _above(x).float_power_(-0.5), "x.ldexp_": lambda x: (x * 1).ldexp_(ROW[1]),
}  # fmt: skip

OF_TWO_VALUES: dict[str, Function] = {
    "lerp by a constant": lambda x: torch.lerp(x, x.flip(1), torch.sigmoid(SHIFT)),
    "lerp": lambda x: torch.lerp(x, x.flip(1), x.sigmoid()), "lerp by a number": lambda x: torch.lerp(x, x.flip(1), 0.3),
    "addcmul": lambda x: torch.addcmul(x, x, SHIFT), "addcdiv": lambda x: torch.addcdiv(x, x.flip(1), _above(x)),
    "a constant / x": lambda x: SHIFT / _above(x), "rsub": lambda x: 1 - x,
    "atan2": lambda x: torch.atan2(x, x.flip(1)), "hypot": lambda x: torch.hypot(x, x.flip(1)),
    "xlogy": lambda x: torch.xlogy(x, _above(x)), "copysign": lambda x: torch.copysign(x, x.flip(1)),
    "maximum": lambda x: torch.maximum(x, x.flip(1)), "fmax": lambda x: torch.fmax(x, x.flip(1)),
    "fmin": lambda x: torch.fmin(x, x.flip(1)), "logaddexp": lambda x: torch.logaddexp(x, x / 2),
    "outer": lambda x: torch.outer(x[0, 0], x[0, 1]), "kron": lambda x: torch.kron(x, x.flip(1)),
    "cross": lambda x: torch.cross(x[..., :3], x[..., 3:6], -1), "dot": lambda x: torch.dot(x[0, 0], x[0, 1]),
    "vdot": lambda x: torch.vdot(x[0, 0], x[1, 0]), "mv": lambda x: torch.mv(x[0], x[0, 0]),
    "inner": lambda x: torch.inner(x, W), "tensordot": lambda x: torch.tensordot(x, W, 1),
    "matrix_power": lambda x: torch.linalg.matrix_power(x[:, :, :6], 2),
    "baddbmm": lambda x: torch.baddbmm(torch.ones(2, 6, 6).double(), x, x.mT),
    "addbmm": lambda x: torch.addbmm(torch.ones(6, 6).double(), x, x.mT),
    "addmv": lambda x: torch.addmv(x[0, :, 0], x[0], x[1, 0]), "linalg.solve": lambda x: torch.linalg.solve(W, x.mT),
    "cdist": lambda x: torch.cdist(x, x.flip(-1)), "dist": lambda x: torch.dist(x, x / 2),
    "F.pairwise_distance": lambda x: F.pairwise_distance(x, x.flip(1)),
    "F.cosine_similarity": lambda x: F.cosine_similarity(x, x.flip(1), -1), "F.pdist": lambda x: F.pdist(x[0]),
    "F.bilinear": lambda x: F.bilinear(x, x, W.expand(3, 8, 8)), "F.linear": lambda x: F.linear(x, W),
    "F.scaled_dot_product_attention": lambda x: F.scaled_dot_product_attention(x, x, x),
}  # fmt: skip

REDUCTIONS: dict[str, Function] = {
    **{name: lambda x, name=name: getattr(x, name)(1) for name in (
        "sum", "mean", "std", "var", "prod", "logsumexp", "logcumsumexp", "cumprod", "cumsum", "amax", "nansum", "nanmean",
    )},
    **{name: lambda x, name=name: getattr(x, name)(1)[0] for name in ("median", "cummax", "cummin", "sort", "mode")},
    "norm": lambda x: x.norm(dim=1), "norm of order 1": lambda x: x.norm(p=1, dim=-1),
    "x / std": lambda x: (x - x.mean(-1, True)) / x.std(-1, keepdim=True),
    "kthvalue": lambda x: x.kthvalue(2, 1)[0], "topk": lambda x: x.topk(2, 1)[0], "msort": torch.msort,
    "aminmax": lambda x: torch.stack(x.aminmax(dim=1)), "quantile": lambda x: x.quantile(0.4, -1),
    "trace": lambda x: x[0, :, :6].trace(), "F.normalize": lambda x: F.normalize(x, dim=-1),
    "F.layer_norm": lambda x: F.layer_norm(x, (8,)), "F.rms_norm": lambda x: F.rms_norm(x, (8,)),
    "F.softmax": lambda x: F.softmax(x, -1), "F.softmin": lambda x: F.softmin(x, -1),
    "F.log_softmax": lambda x: F.log_softmax(x, -1),
    "F.batch_norm": lambda x: F.batch_norm(x, SHIFT[:, 0], _above(SHIFT[:, 1])),
}  # fmt: skip

MOVES: dict[str, Function] = {
    "gather": lambda x: x.gather(1, INDEX), "take_along_dim": lambda x: x.take_along_dim(INDEX, 1),
    "take": lambda x: x.take(ROW), "index_select": lambda x: x.index_select(1, ROW),
    "masked_select": lambda x: x.masked_select(torch.arange(8) > 3),
    "scatter_add": lambda x: torch.zeros_like(x).scatter_add(1, INDEX, x),
    "scatter_reduce": lambda x: torch.zeros_like(x).scatter_reduce(1, INDEX, x, "mean"),
    "index_add": lambda x: torch.zeros_like(x).index_add(1, torch.arange(6), x),
    "index_copy": lambda x: torch.zeros_like(x).index_copy(1, torch.arange(6), x),
    "index_put": lambda x: torch.zeros_like(x).index_put((torch.tensor([0, 1]),), x), "x[:, 1:] = y": _assigned,
    "roll": lambda x: x.roll(1, 1), "rot90": lambda x: x.rot90(1, (1, 2)), "diff": lambda x: x.diff(dim=1),
    "tile": lambda x: x.tile(1, 2, 1), "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
    "hstack": lambda x: torch.hstack((x, x)), "vstack": lambda x: torch.vstack((x, x)),
    "dstack": lambda x: torch.dstack((x, x)), "column_stack": lambda x: torch.column_stack((x[0], x[1])),
    "block_diag": lambda x: torch.block_diag(x[0], x[1]), "diag_embed": torch.diag_embed,
    "diagonal": lambda x: x.diagonal(dim1=1, dim2=2), "tril": torch.tril, "triu": torch.triu,
    "x.unfold": lambda x: x.unfold(1, 3, 1),
    "rnn.pad_sequence": lambda x: nn.utils.rnn.pad_sequence([x[0], x[1, :3]], True),
    "F.embedding": lambda x: F.embedding(ROW, x[0]),
    "F.embedding_bag": lambda x: F.embedding_bag(
        torch.tensor([[0, 1], [2, 3]]), W, per_sample_weights=x[:, 0, :2].contiguous(), mode="sum"
    ),
    "fft.fft": lambda x: torch.fft.fft(x).real, "fft.irfft": lambda x: torch.fft.irfft(torch.fft.rfft(x)),
    "fft.fft2": lambda x: torch.fft.fft2(x).real, "fft.fftshift": torch.fft.fftshift,
    "fft.ihfft": lambda x: torch.fft.ihfft(x).imag,
    "stft": lambda x: torch.stft(x.flatten(1), 8, return_complex=True, window=WINDOW).abs(),
    "rotary, complex": lambda x: torch.view_as_real(
        torch.view_as_complex(x.reshape(2, 6, 4, 2)) * ANGLES
    ).flatten(2),
}  # fmt: skip

IMAGES: dict[str, Function] = {
    "F.instance_norm": F.instance_norm, "F.local_response_norm": lambda x: F.local_response_norm(x, 2),
    "F.group_norm": lambda x: F.group_norm(x, 2), "F.unfold": lambda x: F.unfold(x, 2),
    "F.fold": lambda x: F.fold(F.unfold(x, 2), 8, 2), "F.pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "F.pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2), "F.channel_shuffle": lambda x: F.channel_shuffle(x, 2),
    **{f"F.pad {mode}": lambda x, mode=mode: F.pad(x, (1, 1, 1, 1), mode) for mode in (
        "constant", "reflect", "circular", "replicate",
    )},
    "F.conv1d": lambda x: F.conv1d(x[:, :, 0], KERNEL[..., 0]), "F.conv2d": lambda x: F.conv2d(x, KERNEL),
    "F.conv3d": lambda x: F.conv3d(x[:, None], CUBE),
    "F.conv1d by a value": lambda x: F.conv1d(x[:, :, 0], x[:, :, 0, :3], padding=1),
    "F.conv2d by a value": lambda x: F.conv2d(
        x, x[:1, :2, :3, :2].expand(4, -1, -1, -1), x[0, :, 0, 0], stride=2, padding=(1, 2), dilation=(2, 1), groups=2
    ),
    "F.conv3d by a value": lambda x: F.conv3d(x[:, None], x[:1, None, :2, :2, :2], padding="same"),
    "F.conv_tbc": lambda x: F.conv_tbc(x[0], STEPS, SHIFT[0, :5]),
    "F.conv_transpose1d": lambda x: F.conv_transpose1d(x[:, :, 0], KERNEL[..., 0]),
    "F.conv_transpose2d": lambda x: F.conv_transpose2d(x, KERNEL),
    "F.conv_transpose3d": lambda x: F.conv_transpose3d(x[:, None], BACK),
    **{f"F.{kind}_pool{d}d": lambda x, kind=kind, d=d: getattr(F, f"{kind}_pool{d}d")(_of_dims(x, d), 2)
       for kind in ("max", "avg", "adaptive_avg", "adaptive_max") for d in (1, 2, 3)},
    **{f"F.lp_pool{d}d": lambda x, d=d: getattr(F, f"lp_pool{d}d")(_of_dims(x, d).abs() + 1, 2.0, 2) for d in (1, 2, 3)},
    **{f"F.max_unpool{d}d": lambda x, d=d: getattr(F, f"max_unpool{d}d")(
        *getattr(F, f"max_pool{d}d")(_of_dims(x, d), 2, return_indices=True), 2
    ) for d in (1, 2, 3)},
    **{f"F.interpolate {mode}": lambda x, mode=mode: F.interpolate(x, size=5, mode=mode) for mode in (
        "nearest", "nearest-exact", "bilinear", "bicubic", "area",
    )},
    "F.interpolate antialias": lambda x: F.interpolate(x, size=5, mode="bilinear", antialias=True),
    "F.upsample": lambda x: F.interpolate(x, scale_factor=2),
    "F.grid_sample": lambda x: F.grid_sample(x, GRID, align_corners=False),
}  # fmt: skip


def _of_dims(x: Tensor, dims: int) -> Tensor:
    """The pictures as [batch, channels, *sizes of that many dims]."""
    return {1: x[:, :, 0], 2: x, 3: x[:, None]}[dims]


GROUPS: Mapping[str, tuple[tuple[int, ...], dict[str, Function]]] = {
    "one value": ((2, 6, 8), OF_ONE_VALUE),
    "two values": ((2, 6, 8), OF_TWO_VALUES),
    "reductions": ((2, 6, 8), REDUCTIONS),
    "moves": ((2, 6, 8), MOVES),
    "images": ((2, 4, 8, 8), IMAGES),
}
"""The shape that the functions of a group take, and the functions by name."""

MODULES: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module]]] = {
    "InstanceNorm2d": ((2, 4, 8, 8), lambda: nn.InstanceNorm2d(4, affine=True)),
    "InstanceNorm2d that tracks": ((2, 4, 8, 8), lambda: nn.InstanceNorm2d(4, track_running_stats=True)),
    "BatchNorm1d without statistics": ((2, 6, 8), lambda: nn.BatchNorm1d(6, track_running_stats=False)),
    "SyncBatchNorm": ((2, 4, 8, 8), lambda: nn.SyncBatchNorm(4)),
    "CrossMapLRN2d": ((2, 4, 8, 8), lambda: nn.LocalResponseNorm(2)),
    "MultiheadAttention": ((2, 6, 8), lambda: _SelfAttention()),
    "TransformerEncoderLayer": ((2, 6, 8), lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)),
    "TransformerDecoderLayer": ((2, 6, 8), lambda: _Decoder()),
    "weight_norm": ((2, 6, 8), lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 5))),
    "spectral_norm": ((2, 6, 8), lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(8, 5))),
    "orthogonal": ((2, 6, 8), lambda: nn.utils.parametrizations.orthogonal(nn.Linear(8, 5))),
}


class _SelfAttention(nn.MultiheadAttention):
    def __init__(self) -> None:
        super().__init__(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        attended: Tensor = super().forward(x, x, x, need_weights=False)[0]
        return attended


class _Decoder(nn.TransformerDecoderLayer):
    def __init__(self) -> None:
        super().__init__(8, 2, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, x.flip(1))


WITHOUT_A_RULE: Mapping[str, str] = {
    "x ** n with a tensor n": "which elements of n are 0, and so give a constant, is known only in a call",
    "linalg.inv, linalg.det, linalg.solve by a matrix that carries": "no published rule says how an inverse is shared out",
    "F.affine_grid": "where F.grid_sample looks is held constant, so nothing passes",
    "F.fractional_max_pool2d, fractional_max_pool3d": "their regions are drawn at random in each call",
    "cdist of more than 25 vectors with themselves": "torch rounds a distance of 0 to 1e-8, which its writing does not",
}
"""What a gradient passes, and `transform` refuses or stops, with the reason."""


def _names(text: str) -> list[str]:
    return text.split()


ELSEWHERE: Mapping[str, str] = {
    **dict.fromkeys(
        _names(
            """
            F.binary_cross_entropy F.binary_cross_entropy_with_logits F.cosine_embedding_loss F.cross_entropy F.ctc_loss
            F.gaussian_nll_loss F.hinge_embedding_loss F.huber_loss F.kl_div F.l1_loss F.linear_cross_entropy
            F.margin_ranking_loss F.mse_loss F.multi_margin_loss F.multilabel_margin_loss F.multilabel_soft_margin_loss
            F.nll_loss F.poisson_nll_loss F.smooth_l1_loss F.soft_margin_loss F.triplet_margin_loss
            F.triplet_margin_with_distance_loss nn.BCELoss nn.BCEWithLogitsLoss nn.CrossEntropyLoss nn.KLDivLoss
            nn.NLLLoss2d nn.LinearCrossEntropyLoss nn.AdaptiveLogSoftmaxWithLoss
            """
        ),
        "a loss is what a model is trained by; the target of an explanation is an output",
    ),
    "F.gumbel_softmax": "it draws noise in each call",
    **dict.fromkeys(["F.upsample_bilinear", "F.upsample_nearest"], "other names of F.interpolate"),
    **dict.fromkeys(
        _names("nn.GRU nn.GRUCell nn.LSTM nn.LSTMCell nn.RNN nn.RNNBase nn.RNNCell nn.RNNCellBase"), "recurrences"
    ),
    **dict.fromkeys(
        _names(
            """
            nn.Container nn.DataParallel nn.Identity nn.Module nn.ModuleDict nn.ModuleList nn.ParameterDict
            nn.ParameterList nn.Sequential nn.Flatten nn.Unflatten
            """
        ),
        "containers and reshapes",
    ),
    **dict.fromkeys(
        _names(
            """
            F.fractional_max_pool2d F.fractional_max_pool2d_with_indices F.fractional_max_pool3d
            F.fractional_max_pool3d_with_indices F.affine_grid
            """
        ),
        "listed above",
    ),
    **dict.fromkeys(
        _names(
            """
            F.assert_int_or_pair F.has_torch_function F.has_torch_function_unary F.has_torch_function_variadic F.one_hot
            """
        ),
        "no gradient passes",
    ),
    **dict.fromkeys(
        _names(
            """
            F.grouped_mm F.scaled_grouped_mm F.scaled_mm F.multi_head_attention_forward F.native_channel_shuffle
            """
        ),
        "what other functions and modules call: experts, float8, attention",
    ),
}
"""Functions and modules of torch.nn that are no case here, with the reason."""


def functions_of_torch() -> set[str]:
    """The functions of `torch.nn.functional` and the classes of `torch.nn`, by name, without the spellings that are the
    same to a graph: in place, with indices, lazy."""
    found = set()
    for name in dir(F):
        function = getattr(F, name)
        own = getattr(function, "__module__", None) in ("torch.nn.functional", "torch._C._nn", None, "torch._VF")
        is_function = isinstance(function, types.BuiltinFunctionType) or (own and not isinstance(function, type))
        if not name.startswith("_") and callable(function) and is_function:
            found.add(f"F.{name.rstrip('_')}")
    modules = [getattr(nn, name) for name in dir(nn)]
    found |= {f"nn.{m.__name__}" for m in modules if isinstance(m, type) and issubclass(m, nn.Module)}
    same = {name for name in found if name.startswith("nn.Lazy") or name.removesuffix("_with_indices") in found - {name}}
    return found - same


def plain(name: str) -> str:
    """`l1loss` of F.l1_loss and of nn.L1Loss."""
    return name.split(".")[1].lower().replace("_", "")


def listed() -> set[str]:
    """The names that are no case, those of modules too whose function is listed."""
    functions = {plain(name) for name in ELSEWHERE}
    return {name for name in functions_of_torch() if name in ELSEWHERE or plain(name) in functions}


def covered() -> set[str]:
    """The names that a case covers; `nn.Softsign` is covered by that of F.softsign, padding by that of F.pad."""
    probed = {name.split(" ")[0] for _, functions in GROUPS.values() for name in functions if name.startswith("F.")}
    functions = {plain(name) for name in probed}
    families = {"pad": "pad", "upsampling": "upsample", "batchnorm": "batchnorm", "instancenorm": "instancenorm",
                "transformer": "", "softmax2d": "softmax", "dropout": "dropout"}  # fmt: skip
    names = {f"nn.{name.split(' ')[0]}" for name in MODULES}
    for name in functions_of_torch():
        own = plain(name)
        if own in functions or any(family in own and (not of or of in functions) for family, of in families.items()):
            names.add(name)
    return names | probed


def _filled(text: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), 140, break_long_words=False, break_on_hyphens=False)


MECHANISM = """
An op that no rule of the table takes is written out in other ops: by torch's own decompositions, and for a few ops by
`lxt_fx/ops/writings.py`, where torch has none or one that is a worse explanation. The new nodes belong to the module
and the source line of the op, and their names begin with its name. A writing is taken only if it has the value and the
gradient of the op on random numbers, at the sizes of the example and at others. Then norms and activations are looked
for again, and rules are chosen anew. `lxt_fx.show` and the certificate name each op that was written out. What is left
raises `NoRuleError`, which says why it could not be written out.
"""
CHECKED = """
These {count} cases transform strictly, the fast and the explicit form agree, the ledger closes, and table `gradient`
gives the plain gradient (`tests/test_op_probe.py`, which fails where torch adds a function that is neither here nor
below):
"""
CUSTOM = """
A custom op that is linear needs no code of ours: `lxt_fx.Rule(name="linear", ops={torch.ops.yours.map: None}, ...)`
leaves it its native gradient, which is eq. 8 of AttnLRP for a linear map; put it first with `with_rules` ([Adding a
rule](adding_a_rule.md)).
"""


def page() -> str:
    """`docs/ops.md`."""
    count = sum(len(functions) for _, functions in GROUPS.values()) + len(MODULES)
    lines = [
        "# Which functions of torch have a rule",
        "",
        *_filled(MECHANISM),
        "",
        *_filled(CHECKED.format(count=count)),
        "",
        "| group | functions |",
        "|---|---|",
        *(f"| {title} | {', '.join(f'`{name}`' for name in functions)} |" for title, (_, functions) in GROUPS.items()),
        f"| modules | {', '.join(f'`nn.{name}`' for name in MODULES)} |",
        "",
        "Without a rule:",
        "",
        "| function | why |",
        "|---|---|",
        *(f"| {name} | {why} |" for name, why in WITHOUT_A_RULE.items()),
        "",
        "Not tried here:",
        "",
        "| why | functions and modules |",
        "|---|---|",
        *(
            f"| {why} | {', '.join(f'`{name}`' for name, reason in ELSEWHERE.items() if reason == why)} |"
            for why in dict.fromkeys(ELSEWHERE.values())
        ),
        "",
        *_filled(CUSTOM),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
