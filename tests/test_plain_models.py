"""Models in plain PyTorch: each has a graph, the same forward, a closed ledger, and two forms that agree."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from golden_cases import relative
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import lxt_fx

WIDTH, HEADS = 16, 4


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TOKENS, IMAGES = draw(3, 5, WIDTH), draw(2, 3, 8, 8)
PADDED = torch.tensor([[False] * 3 + [True] * 2, [False] * 5, [False] * 4 + [True]])


class Masked(nn.Module):
    """An encoder that is told which tokens are padding."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, HEADS, 32, batch_first=True), 1)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        found: Tensor = self.encoder(x, src_key_padding_mask=padding)
        return found


class Attention(nn.Module):
    """torch's attention module, with its weights among the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = self.attention(x, x, x)
        return found


class PackedEinsum(nn.Module):
    """Attention by hand: packed qkv, einsum, softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        weights = (torch.einsum("bhid,bhjd->bhij", q, k) / 2).softmax(-1)
        found: Tensor = self.out(torch.einsum("bhij,bhjd->bihd", weights, v).reshape(batch, tokens, WIDTH))
        return found


class Functional(nn.Module):
    """Functions and parameters, no modules."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(draw(WIDTH, WIDTH, seed=1)), nn.Parameter(draw(WIDTH, seed=2))

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(F.layer_norm(F.linear(x, self.w, self.b), (WIDTH,)))
        return F.log_softmax(F.normalize(hidden, dim=-1) @ self.w, -1)


class Residual(nn.Module):
    """Convolutions, batch norms, in-place ReLU, a residual sum, pools."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8)])
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu_(self.norms[0](self.convs[0](x)))
        hidden = F.max_pool2d(F.relu(self.norms[1](self.convs[1](hidden)) + hidden), 2)
        found: Tensor = self.head(F.adaptive_avg_pool2d(hidden, 1).flatten(1))
        return found


class Mixer(nn.Module):
    """One layer of an MLP-Mixer."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])
        self.tokens = nn.Sequential(nn.Linear(5, 10), nn.GELU(), nn.Linear(10, 5))
        self.channels = nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norms[1](x))


class PatchTransformer(nn.Module):
    """A ViT in the style of timm: patches, a class token, positions, a fused qkv, layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, stride=4)
        self.cls, self.places = nn.Parameter(draw(1, 1, WIDTH)), nn.Parameter(draw(1, 5, WIDTH))
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH) for _ in range(3)])
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Dropout(0.1), nn.Linear(32, WIDTH))
        self.scale, self.head = nn.Parameter(draw(WIDTH)), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.places
        qkv = self.qkv(self.norms[0](x)).reshape(*x.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        x = x + self.scale * self.out(F.scaled_dot_product_attention(*qkv.unbind(0)).transpose(1, 2).flatten(2))
        x = x + self.mlp(self.norms[1](x))
        found: Tensor = self.head(self.norms[2](x)[:, 0])
        return found


class Nested(nn.Module):
    """Inputs in dicts and lists, an optional input, a flag; outputs in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, 4)

    def forward(self, batch: dict[str, Any], extra: Tensor | None = None, double: bool = False) -> dict[str, Any]:
        found = torch.stack([self.linear(part) for part in batch["parts"]]).sum(0)
        found = found if extra is None else found + self.linear(extra)
        return {"out": found * 2 if double else found, "all": [found]}


class ComplexRotary(nn.Module):
    """Rotary embeddings as complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("turns", torch.polar(torch.ones(5, 8), torch.arange(40.0).view(5, 8)).to(torch.complex128))

    def forward(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(self.linear(x).reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * self.turns).flatten(-2)


class Twice(nn.Module):
    """One layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.tanh(self.linear(x))) + x


class Int8Linear(nn.Module):
    """Weights of eight bits and a scale for each output, widened when used."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("scale", layer.weight.detach().abs().amax(1, keepdim=True) / 127)
        self.register_buffer("weight", (layer.weight.detach() / self.scale).round().to(torch.int8))
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


class DecomposedSoftmax(nn.Module):
    """exp(x - max) / sum, and a router by log-sum-exp."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, 6)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.linear(x)
        shifted = torch.exp(scores - scores.amax(-1, keepdim=True).detach())
        return (shifted / shifted.sum(-1, keepdim=True)).log() + torch.logsumexp(scores, -1, keepdim=True)


class OtherAttention(nn.Module):
    """Causal attention with other weights than a softmax of q k: those of x-transformers, each in its few lines."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)
        self.places = nn.Parameter(draw(WIDTH, 8, seed=1) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        scores = (q @ k.mT / 4).masked_fill(later, -torch.finfo(x.dtype).max)
        found: Tensor = x + self.out(self.weights(q, k, scores, later) @ v)
        return found

    def weights(self, q: Tensor, k: Tensor, scores: Tensor, later: Tensor) -> Tensor:
        match self.kind:
            case "sigmoid":
                return scores.sigmoid()
            case "signed":
                sizes = scores.abs().masked_fill(later, -torch.finfo(scores.dtype).max)
                return scores.sign() * sizes.softmax(-1)
            case "hard":
                soft = scores.softmax(-1)
                return F.one_hot(scores.argmax(-1), scores.shape[-1]).to(soft) + soft - soft.detach()
            case "contextual places":
                counts = scores.sigmoid().masked_fill(later, 0.0).flip(-1).cumsum(-1).flip(-1).clamp(max=7)
                low, high, logits = counts.floor(), counts.ceil(), q @ self.places
                part = counts - low
                between = logits.gather(-1, high.long()) * part + logits.gather(-1, low.long()) * (1 - part)
                return (scores + between).softmax(-1)
            case "distance":
                return (-torch.cdist(q, k)).masked_fill(later, -torch.finfo(q.dtype).max).softmax(-1)
        raise AssertionError(self.kind)


class Quantised(nn.Module):
    """Whole numbers whose gradient is that of what was rounded, in four spellings; many of them are 0."""

    def __init__(self, spelling: int) -> None:
        super().__init__()
        self.spelling = spelling
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        whole = x.round().detach()
        spellings = (
            x + (whole - x).detach(),
            (whole - x).detach() + x,
            whole - (x.detach() - x),
            whole - x.detach() + x,
        )
        found: Tensor = self.second(spellings[self.spelling])
        return found


class Mixed(nn.Module):
    """A value and its successor, mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return torch.lerp(x, self.linear(x), torch.sigmoid(self.linear.bias))


class Inverse(nn.Module):
    """The inverse of a matrix that carries relevance."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.inv(x @ x.mT + torch.eye(x.shape[1], dtype=x.dtype))


def encoder(**settings: Any) -> nn.Module:
    """Two layers of torch's own encoder."""
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, HEADS, 32, batch_first=True, **settings), 2)


def first(output: Any) -> Tensor:
    """A weighted sum of the first output, [batch]."""
    tensor: Tensor = tree_leaves(output)[0].flatten(1)
    return (tensor * draw(*tensor.shape, seed=9)).sum(1)


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...]]] = {
    "encoder": (encoder, (TOKENS,)),
    "encoder, norm first": (lambda: encoder(norm_first=True, activation="gelu"), (TOKENS,)),
    "encoder, padded": (Masked, (TOKENS, PADDED)),
    "decoder": (
        lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(WIDTH, HEADS, 32, batch_first=True), 1),
        (TOKENS, draw(3, 7, WIDTH, seed=1)),
    ),
    "encoder and decoder": (
        lambda: nn.Transformer(WIDTH, HEADS, 1, 1, 32, batch_first=True), (TOKENS, draw(3, 7, WIDTH, seed=1)),
    ),
    "attention module": (Attention, (TOKENS,)),
    "einsum": (PackedEinsum, (TOKENS,)),
    "functional": (Functional, (TOKENS,)),
    "residual convolutions": (Residual, (IMAGES,)),
    "mixer": (Mixer, (TOKENS,)),
    "patch transformer": (PatchTransformer, (IMAGES,)),
    "nested": (Nested, ({"parts": [TOKENS, TOKENS + 1]}, TOKENS * 2)),
    "complex rotary": (ComplexRotary, (TOKENS,)),
    "layer used twice": (Twice, (TOKENS,)),
    "eight bits": (
        lambda: nn.Sequential(nn.LayerNorm(WIDTH), Int8Linear(nn.Linear(WIDTH, 4).double()), nn.Tanh()), (TOKENS,),
    ),
    "decomposed softmax": (DecomposedSoftmax, (TOKENS,)),
    **{
        f"attention, {kind}": (partial(OtherAttention, kind), (TOKENS,))
        for kind in ("sigmoid", "signed", "hard", "contextual places", "distance")
    },
    "a value and its successor, mixed": (Mixed, (TOKENS,)),
    **{f"straight through, spelling {spelling}": (partial(Quantised, spelling), (TOKENS,)) for spelling in range(3)},
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_plain_model_is_explained(name: str) -> None:
    """Each table and form takes over the one captured graph; the plain gradient is held against the model itself."""
    make, args = CASES[name]
    torch.manual_seed(0)
    net = make().double().eval()
    explained = lxt_fx.transform(net, args)
    assert explained.record.method == "torch.export" and explained.record.forward_difference < 1e-12
    inputs = lxt_fx.passes.capture.example.given_example(net, args, {}).kwargs
    lxt_fx.audit(explained, inputs, first).check(1e-9)
    explicit = lxt_fx.transform(explained, kwargs=inputs, form="explicit", epsilon=0.0)
    assert relative(carried(explained, inputs), carried(explicit, inputs)) < 1e-9
    plain = lxt_fx.transform(explained, kwargs=inputs, rules="gradient")
    assert relative(carried(plain, inputs), carried(net, inputs)) < 1e-9


def carried(module: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """Relevance of all float inputs, one after the other: value * gradient, or the gradient itself in explicit form."""
    floats = [x for x in tree_leaves(inputs) if x.is_floating_point()]
    leaves = {id(x): x.clone().requires_grad_(True) for x in floats}
    given = torch.utils._pytree.tree_map(lambda x: leaves.get(id(x), x), inputs)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    value = tree_leaves(module(**given))[0].flatten(1)
    torch.backends.mha.set_fastpath_enabled(fast)
    explicit = isinstance(module, lxt_fx.Explained) and module.record.form == "explicit"
    weights = draw(*value.shape, seed=9)
    gradients = torch.autograd.grad(value, list(leaves.values()), weights * value.detach() if explicit else weights)
    factors = [1 if explicit else x.detach() for x in leaves.values()]
    return torch.cat([(f * g).flatten() for f, g in zip(factors, gradients, strict=True)])


def test_the_fast_path_of_torchs_attention_is_as_it_was() -> None:
    assert torch.backends.mha.get_fastpath_enabled()
    lxt_fx.transform(Masked().double().eval(), (TOKENS, PADDED))
    assert torch.backends.mha.get_fastpath_enabled()


def test_an_op_that_has_no_rule_is_refused_by_name() -> None:
    with pytest.raises(lxt_fx.NoRuleError, match=r"no rule for %linalg_inv\w* = aten\.linalg_inv_ex\."):
        lxt_fx.transform(Inverse().double().eval(), (TOKENS,))


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_a_value_that_is_passed_straight_through_is_explained_alike_in_every_spelling(epsilon: float) -> None:
    found = []
    for spelling, form in product(range(4), ("gradient", "explicit")):
        torch.manual_seed(0)
        net = Quantised(spelling).double().eval()
        found.append(carried(lxt_fx.transform(net, (TOKENS,), form=form, epsilon=epsilon), {"x": TOKENS}))
    assert all(relative(relevance, found[0]) < 1e-9 for relevance in found) and found[0].abs().max() > 1e-3


class Nothing(nn.Module):
    """A value less its held copy, which is 0 everywhere, read by another op than a sum."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(2 * WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        soft = self.first(x)
        found: Tensor = self.second(torch.cat([soft - soft.detach(), soft], -1))
        return found


class Chosen(nn.Module):
    """Each element times whether it is the largest: no function of one element, although it reads one value only."""

    def forward(self, x: Tensor) -> Tensor:
        largest = nn.functional.one_hot(x.argmax(-1), x.shape[-1]).to(x.dtype)
        return torch.where(largest > 0, x.relu() * (x + 1), x * x.sigmoid())


@pytest.mark.parametrize("net", [Nothing(), Chosen()])
def test_forms_agree_where_a_sum_is_nothing_and_where_elements_decide_together(net: nn.Module) -> None:
    net = net.double().eval()
    fast, exact = (lxt_fx.transform(net, (TOKENS,), form=form, epsilon=0.0) for form in ("gradient", "explicit"))
    found = carried(fast, {"x": TOKENS})
    assert relative(carried(exact, {"x": TOKENS}), found) < 1e-9
    lxt_fx.audit(fast, TOKENS, first).check()


def test_a_step_is_no_way_for_relevance() -> None:
    """torch gives sign, floor and round a gradient of zeros, which is no operand that relevance leaves by."""
    explained = lxt_fx.transform(OtherAttention("signed").double().eval(), (TOKENS,))
    (sign,) = (node for node in explained.graph.nodes if node.target is torch.ops.aten.sign.default)
    assert sign.args[0].target is torch.ops.lxt_fx.hold.default
    assert lxt_fx.certificate(explained).not_followed[0].op == "aten.sign"


def test_a_model_with_int8_weights_of_torchao_is_explained() -> None:
    """Measured with torchao 0.18.0: bit-equal forward. Not among the packages of CI."""
    quantisation = pytest.importorskip("torchao.quantization")
    net = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, 4)).eval()
    quantisation.quantize_(net, quantisation.Int8WeightOnlyConfig())
    explained = lxt_fx.transform(net, (TOKENS.float(),))
    assert explained.record.forward_difference == 0
    lxt_fx.audit(explained, TOKENS.float(), first).check()


@torch.compile(backend="eager")
def _doubled(x: torch.Tensor) -> torch.Tensor:
    return x.float() * 2 + torch.zeros(x.shape[-1])


def test_a_function_that_torch_compile_compiled_is_captured_as_it_is_written() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(4, 5), torch.nn.Linear(5, 3)

        def forward(self, x: torch.Tensor) -> Any:
            return self.second(_doubled(self.first(x)))

    model, x = Net().eval(), torch.ones(2, 4)
    explained = lxt_fx.transform(model, (x,))
    assert torch.equal(explained(x), model(x)) and not explained.record.unknown
