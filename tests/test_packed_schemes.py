"""Packed layers of packages, one layer each, against weights that are unpacked by hand from the published formats.

Where a kernel needs a GPU, the layer is the package's own, and this file stands in for its kernel; the docstrings say so.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lxt_fx
from lxt_fx.packed import known
from lxt_fx.packed.known import packed_layer

IN, OUT = 64, 96


class Net(nn.Module):
    def __init__(self, layer: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(OUT, 3).to(dtype)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.layer(x).tanh())


def check(
    layer: nn.Module, weight: Tensor, bias: Tensor | None, *, dtype: torch.dtype = torch.float32, exact: bool
) -> None:
    """The layer is one node; its weights are those unpacked by hand, to half precision; values are the layer's, bit for
    bit; relevance is that of a plain layer with its weights, within the rounding of the kernel's values."""
    torch.manual_seed(1)
    model, x = Net(layer.requires_grad_(False), dtype).eval(), torch.randn(1, 7, weight.shape[1], dtype=dtype)
    model(x)  # some layers choose their kernel here
    packed = packed_layer(layer, "layer")
    assert packed is not None
    found, own = packed.unpacked()
    assert float((found.float() - weight).norm()) <= 1e-3 * float(weight.norm()) and (own is None) == (bias is None)
    plain = Net(nn.Linear(weight.shape[1], OUT, bias is not None), dtype)
    plain.head = model.head
    plain.layer.weight.data = found.detach().to(dtype).contiguous()
    if bias is not None:
        assert own is not None and torch.allclose(own.float(), bias, rtol=1e-3)
        plain.layer.bias.data = bias.to(dtype)
    grads = []
    for each in (model, plain):
        explained = lxt_fx.transform(each, (x,))
        leaf = x.clone().requires_grad_()
        value = explained(leaf)
        assert torch.equal(value, each(x))
        value[0, :, 1].sum().backward()
        grads.append(leaf.grad)
    assert grads[0] is not None and grads[1] is not None
    assert float((grads[0] - grads[1]).norm()) <= (1e-5 if exact else 0.03) * float(grads[1].norm())
    assert len(lxt_fx.certificate(lxt_fx.transform(model, (x,))).packed) == 1


def integration(name: str) -> Any:
    """The module of transformers, which older releases do not have."""
    return pytest.importorskip(f"transformers.integrations.{name}")


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(IN, OUT).requires_grad_(False)


def in_groups(weight: Tensor, bits: int, group: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """Scales and zeros [out, groups], and the weight [out, in] that they give."""
    groups = weight.reshape(len(weight), -1, group)
    low, high = groups.amin(-1, True), groups.amax(-1, True)
    scales = ((high - low) / (2**bits - 1)).half().float()
    zeros = (-low / scales).round().clamp(0, 2**bits - 1)
    codes = ((groups / scales).round() + zeros).clamp(0, 2**bits - 1)
    return scales[..., 0], zeros[..., 0], ((codes - zeros) * scales).reshape(weight.shape)


# --- transformers ---------------------------------------------------------------------------------------------------------


def test_bitnet() -> None:
    """-1, 0, 1 in two bits over one scale; parts of the forward are compiled."""
    bitnet = integration("bitnet")
    plain, codes = linear(), torch.randint(-1, 2, (OUT, IN), generator=torch.Generator().manual_seed(0)).float()
    layer = bitnet.BitLinear(IN, OUT, True, dtype=torch.float32)
    layer.weight.copy_(bitnet.pack_weights(codes.clone()))
    layer.weight_scale.fill_(7.3)
    layer.bias.copy_(plain.bias)
    check(layer, codes / 7.3, plain.bias, exact=False)
    with pytest.raises(lxt_fx.CaptureError, match="holds a norm before its linear map"):
        lxt_fx.transform(bitnet.BitLinear(IN, OUT, False, dtype=torch.float32, use_rms_norm=True), (torch.ones(1, IN),))


@pytest.mark.parametrize("online", [True, False])
def test_bitnet_that_is_unpacked(online: bool) -> None:
    bitnet = integration("bitnet")
    plain = linear()
    layer = bitnet.AutoBitLinear(IN, OUT, True, dtype=torch.float32, online_quant=online)
    layer.bias.data = plain.bias.data
    if online:
        layer.weight.data, step = plain.weight.data, plain.weight.abs().mean()
        check(layer, (plain.weight / step).round().clamp(-1, 1) * step, plain.bias, exact=False)
    else:
        layer.weight.data = plain.weight.sign()
        layer.weight_scale.fill_(0.3)
        check(layer, plain.weight.sign() * 0.3, plain.bias * 0.3, exact=False)


def test_compressed_tensors_float8() -> None:
    compressed_tensors = integration("compressed_tensors")
    plain = linear()
    scales = plain.weight.abs().amax(1, keepdim=True) / 448
    codes = (plain.weight / scales).to(torch.float8_e4m3fn)
    layer = compressed_tensors.CompressedTensorsFP8Linear(IN, OUT, True)
    layer.weight, layer.weight_scale = nn.Parameter(codes, False), nn.Parameter(scales.T.contiguous(), False)
    layer.bias.data = plain.bias.data
    check(layer, codes.float() * scales, plain.bias, exact=False)


def rounded_float8(x: Tensor) -> Tensor:
    step = x.float().abs().amax(-1, keepdim=True).clamp(min=1e-12) / 448
    return (x.float() / step).to(torch.float8_e4m3fn).float() * step


@pytest.mark.parametrize("block", [(40, 24), (128, 128), None])
def test_float8_by_blocks(block: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last blocks are smaller. The kernel is a Triton one: this one dequantises, element by element, what it does."""
    finegrained_fp8 = integration("finegrained_fp8")
    plain, layer = linear(), finegrained_fp8.FP8Linear(IN, OUT, block, has_bias=True)
    scales = torch.rand(layer.weight_scale_inv.shape, generator=torch.Generator().manual_seed(0)) / 448 + 1 / 448
    codes = (plain.weight * 200).to(torch.float8_e4m3fn)
    layer.weight, layer.weight_scale_inv = nn.Parameter(codes, False), nn.Parameter(scales, False)
    layer.bias.data, weight = plain.bias.data, codes.float()
    for row in range(OUT):
        for column in range(IN):
            weight[row, column] *= scales if block is None else scales[row // block[0], column // block[1]]

    def kernel(x: Tensor, *args: Any) -> Tensor:
        return F.linear(rounded_float8(x), weight, plain.bias).to(x.dtype)

    monkeypatch.setattr(finegrained_fp8, "fp8_linear", kernel)
    check(layer, weight, plain.bias, exact=False)
    layer.weight = nn.Parameter(torch.zeros(OUT, IN // 2, dtype=torch.int8), False)
    with pytest.raises(lxt_fx.CaptureError, match="weights are packed in 4 bits"):
        lxt_fx.transform(layer, (torch.ones(1, IN),))


def test_fbgemm_float8(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel is FBGEMM's: this file stands in for it."""
    fbgemm_fp8 = integration("fbgemm_fp8")
    plain = linear()
    scales = plain.weight.abs().amax(1, keepdim=True) / 448
    codes = (plain.weight / scales).to(torch.float8_e4m3fn)
    layer = fbgemm_fp8.FbgemmFp8Linear(IN, OUT, True)
    layer.weight, layer.weight_scale = nn.Parameter(codes, False), nn.Parameter(scales, False)
    layer.bias.data = plain.bias.data
    weight = codes.float() * scales
    monkeypatch.setattr(type(layer), "forward", lambda self, x: F.linear(rounded_float8(x), weight, self.bias))
    check(layer, weight, plain.bias, exact=False)


def test_eetq(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernel in place of EETQ's for GPUs: x [.., in] times int8 weights [in, out] and a scale for each output."""
    eetq = integration("eetq")

    class Kernels:
        @staticmethod
        def w8_a16_gemm(x: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
            return x @ (weight.to(x.dtype) * scales.to(x.dtype))

    monkeypatch.setattr(eetq, "eetq_kernels_hub", Kernels, raising=False)
    plain = linear()
    scales = (plain.weight.abs().amax(1) / 127).half()
    codes = (plain.weight / scales[:, None]).round().to(torch.int8)
    layer = eetq.EetqLinear(IN, OUT, bias=True)
    layer.weight.data, layer.weight_scales.data, layer.bias.data = codes.T.contiguous(), scales, plain.bias.half()
    check(layer, codes.float() * scales.float()[:, None], plain.bias.half().float(), dtype=torch.float16, exact=False)


def test_higgs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernel in place of FLUTE's for GPUs: the input, filled up to the size of a Hadamard block, times a weight. The
    forward leaves the bias out."""
    higgs = integration("higgs")
    plain = linear()
    layer = higgs.HiggsLinear(256, OUT, 4, bias=True, dtype=torch.float32, group_size=256, hadamard_size=512)
    layer.workspace, weight = torch.zeros(1), torch.cat([plain.weight] * 4, 1)
    layer.scales.data.fill_(1)
    layer.bias.data = plain.bias.data + 5
    layer.tables2.data = torch.zeros(16, 16, 2)
    monkeypatch.setattr(higgs, "qgemm_v2", lambda x, *args, **kwargs: x[..., :256] @ weight.T, raising=False)
    check(layer, weight, None, exact=True)


def test_metal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernel in place of MLX's: transformers' own dequantisation."""
    metal_quantization = integration("metal_quantization")
    plain = linear()
    layer = metal_quantization.MetalLinear(IN, OUT, True, bits=4, group_size=32)
    codes, scales, zeros = metal_quantization._affine_quantize_tensor(plain.weight, 32, 4)
    layer.weight.data, layer.scales.data, layer.qbiases.data, layer.bias.data = codes, scales, zeros, plain.bias.data
    weight = metal_quantization._affine_dequantize_tensor(codes, scales, zeros, 32, 4)

    class Kernels:
        @staticmethod
        def affine_qmm_t(x: Tensor, *args: Any) -> Tensor:
            return x @ weight.T.to(x.dtype)

    monkeypatch.setattr(metal_quantization, "_get_metal_kernel", lambda: Kernels)
    check(layer, weight, plain.bias, exact=True)


# --- packages -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq(bits: int) -> None:
    own = pytest.importorskip("gptqmodel.nn_modules.qlinear.torch")
    plain = linear()
    scales, zeros, weight = in_groups(plain.weight, bits)
    sizes = {"group_size": 32, "sym": False, "desc_act": False, "in_features": IN, "out_features": OUT, "bias": True}
    layer = own.TorchLinear(bits=bits, **sizes)
    bias = plain.bias.half().float()
    layer.pack_original(plain, scales.clone(), zeros.clone(), torch.arange(IN, dtype=torch.int32) // 32)
    layer.qzero_format(format=2)
    layer.post_init()
    check(layer.eval(), weight, bias, exact=True)


def test_gptq_with_an_adapter() -> None:
    """The adapter adds a linear map, which the weight of the layer does not have."""
    own = pytest.importorskip("gptqmodel.nn_modules.qlinear.torch")
    plain = linear()
    scales, zeros, weight = in_groups(plain.weight, 4)
    sizes = {"group_size": 32, "sym": False, "desc_act": False, "in_features": IN, "out_features": OUT, "bias": True}
    layer = own.TorchLinear(bits=4, **sizes)
    layer.pack_original(plain, scales.clone(), zeros.clone(), torch.arange(IN, dtype=torch.int32) // 32)
    layer.qzero_format(format=2)
    added = torch.randn(IN, OUT) / 20

    class Adapter:
        def apply(self, x: Tensor, out: Tensor) -> Tensor:
            return out + (x @ added.to(x.dtype)).reshape(out.shape)

    layer.adapter = Adapter()
    check(layer.eval(), weight + added.T, plain.bias.half().float(), exact=False)


def test_awq_of_gptqmodel() -> None:
    own = pytest.importorskip("gptqmodel.nn_modules.qlinear.torch_awq")
    plain = linear()
    scales, zeros, weight = in_groups(plain.weight, 4)
    sizes = {"group_size": 32, "sym": False, "desc_act": False, "in_features": IN, "out_features": OUT, "bias": True}
    layer = own.AwqTorchLinear(bits=4, **sizes)
    layer.pack(plain, scales.clone(), zeros.clone())
    layer.post_init()
    check(layer.eval(), weight, plain.bias.half().float(), exact=False)


def test_autoawq() -> None:
    """Its torch kernel has no backward."""
    own = pytest.importorskip("awq.modules.linear.gemm")
    plain = linear()
    scales, zeros, weight = in_groups(plain.weight, 4)
    layer = own.WQLinear_GEMM.from_linear(plain, 4, 32, scales=scales.T.contiguous(), zeros=zeros.T.contiguous())
    check(layer, weight, plain.bias.half().float(), exact=False)


@pytest.mark.parametrize(("books", "bits", "tall", "wide"), [(1, 16, 1, 8), (2, 12, 2, 4), (2, 8, 1, 8)])
def test_aqlm(books: int, bits: int, tall: int, wide: int) -> None:
    """The kernel for books of 256 is compiled by numba. Its threads write into one sum: its values are right for one."""
    own = pytest.importorskip("aqlm.inference")
    if bits == 8:
        numba = pytest.importorskip("numba")
        numba.set_num_threads(1)
    torch.manual_seed(0)
    layer = own.QuantizedLinear(IN, OUT, wide, tall, books, bits, dtype=torch.float32)
    layer.codebooks.data.normal_(std=0.1)
    layer.scales.data.uniform_(0.5, 1.5)
    layer.bias.data.normal_()
    codes = torch.randint(0, 2**bits, layer.codes.shape)
    layer.codes.data = torch.where(codes >= 2 ** (bits - 1), codes - 2**bits, codes).to(layer.codes.dtype)
    weight = torch.zeros(OUT, IN)
    for row in range(OUT // tall):
        for column in range(IN // wide):
            parts = [layer.codebooks.data[book, codes[row, column, book]] for book in range(books)]
            rows, columns = slice(row * tall, (row + 1) * tall), slice(column * wide, (column + 1) * wide)
            weight[rows, columns] = sum(parts) * layer.scales.data[row, 0]
    with pytest.raises(lxt_fx.InputError, match="has not chosen its kernel yet"):
        lxt_fx.transform(layer, (torch.ones(1, IN),))
    check(layer, weight, layer.bias.data, exact=True)


@pytest.mark.parametrize("residual", [-1, 16])
def test_vptq(residual: int) -> None:
    """Its torch kernel, with a permutation of the inputs, a scale and a shift for each."""
    own = pytest.importorskip("vptq.layers.vqlinear")
    torch.manual_seed(0)
    layer = own.VQuantLinear(
        IN, OUT, (-1, 8), (-1, 256), (-1, residual), 1, IN, 0, False, enable_norm=True, enable_perm=True,
        is_indice_packed=True, bias=True, dtype=torch.float32, enable_proxy_error=False,
    )  # fmt: skip
    for parameter in (p for p in layer.parameters() if p.is_floating_point()):
        parameter.data.normal_(std=0.3)
    count, bits = 12, 8 + (4 if residual > 0 else 0)
    codes = torch.randint(0, 2**bits, (count, IN))
    words = torch.zeros(count, IN * bits, dtype=torch.int64)
    for bit in range(bits):
        words[:, bit::bits] = codes >> bit & 1
    packed = (words.reshape(count, -1, 32) << torch.arange(32)).sum(-1)
    layer.indices.data = torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)[None]
    order = torch.randperm(IN)
    layer.perm.data = order.to(layer.perm.dtype)
    centroids = layer.centroids.weight.data.reshape(256, 8)
    vectors = centroids[codes & 255]  # [count, in, 8]
    if residual > 0:
        vectors = vectors + layer.res_centroids.weight.data.reshape(16, 8)[codes >> 8]
    weight = vectors.permute(0, 2, 1).reshape(OUT, IN)[:, order.argsort()]
    weight = weight * layer.weight_scale.data + layer.weight_bias.data
    check(layer, weight, layer.bias.data, exact=True)


def test_spqr(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its class needs CUDA to be imported: this one has its sizes, its dtype, its loop over the positions of one text, and
    no bias."""

    class QuantizedLinear(nn.Module):
        def __init__(self, weight: Tensor) -> None:
            super().__init__()
            self.m, self.n = weight.shape
            self.dense_weights = nn.Parameter(weight, requires_grad=False)

        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            y = torch.empty((1, x.shape[1], self.m), dtype=torch.float16)
            for i in range(x.shape[1]):
                y[0, i] = self.dense_weights.float() @ x[..., i, :].flatten().float()
            return y

    name, scheme = f"{__name__}.{QuantizedLinear.__qualname__}", known.LAYERS["spqr_quant.inference.QuantizedLinear"]
    monkeypatch.setattr(known, "LAYERS", {name: scheme})
    weight = linear().weight.half()
    check(QuantizedLinear(weight), weight.float(), None, dtype=torch.float16, exact=False)
