"""An `autograd.Function` with a backward of its own is one node with that backward; others are traced into."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lxt_fx
from lxt_fx.base.torch_internals import function_base
from lxt_fx.ops.own_backward import own_backward, own_backward_of_several
from lxt_fx.passes.capture.autograd_functions import Functions, own_backwards_as_ops


class Rounded(torch.autograd.Function):
    """Straight through: rounds, and passes the gradient on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Any) -> Tensor:
        return torch.round(x / scale) * scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient, None


class Reversed(torch.autograd.Function):
    """Returns its input itself, and the gradient the other way round."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return -gradient


class NewStyle(torch.autograd.Function):
    """With a `setup_context`, a stored tensor and a number that is a size."""

    @staticmethod
    def forward(x: Tensor, size: int) -> Tensor:
        return x.sign() * size

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient * (ctx.saved_tensors[0].abs() < 1), None


class Several(torch.autograd.Function):
    """Returns values, indices and how far off the values are."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        indices = x.argmax(-1)
        ctx.mark_non_differentiable(indices)
        return x.round(), indices, x - x.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Any, off: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * 3 + off


class NoCapture(torch.autograd.Function):
    """Its forward leaves torch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().numpy() * 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * 2


class Swish(torch.autograd.Function):
    """Saves memory: its backward is the gradient of its forward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return gradient * s * (1 + x * (1 - s))


class Doubled(torch.autograd.Function):
    """Writes into its argument, and its backward is that of its forward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x.mul_(2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * 2


class Outer(torch.autograd.Function):
    """Calls another Function; torch does not differentiate that one, so what counts is the backward of this."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        found: Tensor = Rounded.apply(x, 0.5)
        return found + 1

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient / 2


stored = Reversed.apply  # before any capture, as model code does


class Net(nn.Module):
    """A Function between two linear maps."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.kind = nn.Linear(4, 8, bias=False), nn.Linear(8, 2, bias=False), kind
        self.scale = nn.Parameter(torch.tensor(0.25))
        self.register_buffer("fixed", torch.tensor([0.5]))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.between(self.first(x)))
        return found

    def between(self, h: Tensor) -> Tensor:
        found: Any = {
            "number": lambda: Rounded.apply(h, 0.05),
            "zeros": lambda: Rounded.apply(h, 0.5),
            "buffer": lambda: Rounded.apply(h, self.fixed),
            "parameter": lambda: h + Rounded.apply(h, self.scale),
            "of the input": lambda: Rounded.apply(h, h.abs().amax(-1, keepdim=True) / 3),
            "stored": lambda: h + 3 * stored(h),
            "no grad": lambda: h + self.without_gradient(h) * h,
            "new style": lambda: NewStyle.apply(h, h.shape[-1]),
            "batch": lambda: NewStyle.apply(h, h.shape[0]),
            "several": lambda: self.joined(*Several.apply(h)),
            "numpy": lambda: NoCapture.apply(h),
            "nested": lambda: Outer.apply(h),
            "swish": lambda: Swish.apply(h),
            "in place": lambda: Doubled.apply(h + 0),
        }[self.kind]()
        result: Tensor = found
        return result

    def without_gradient(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            found: Tensor = stored(h)
        return found

    def joined(self, values: Tensor, indices: Tensor, off: Tensor) -> Tensor:
        return values + off * indices[:, None]


OWN = ["number", "buffer", "parameter", "of the input", "stored", "no grad", "new style", "batch", "several", "numpy"]
OWN += ["nested"]
FREE = set(OWN) - {"batch", "numpy"}


def example(examples: int = 3) -> Tensor:
    return torch.randn(examples, 4, generator=torch.Generator().manual_seed(1))


def gradient(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The output and a gradient at the input."""
    leaf = x.clone().requires_grad_()
    output = module(leaf)
    (found,) = torch.autograd.grad(output[:, 1].sum(), leaf)
    return output.detach(), found


@pytest.mark.parametrize("kind", OWN)
def test_a_function_with_a_backward_of_its_own_has_it_in_the_graph(kind: str) -> None:
    net = Net(kind)
    explained = lxt_fx.transform(net, (example(),), rules="gradient")
    assert any(node.target in (own_backward, own_backward_of_several) for node in explained.graph.nodes)
    sizes = (3, 5, 1) if kind in FREE else (3,)
    for size in sizes:
        for found, own in zip(gradient(explained, example(size)), gradient(net, example(size)), strict=True):
            torch.testing.assert_close(found, own, rtol=0, atol=1e-6)
    assert explained.record.gradient_difference == 0
    assert (explained.record.sizes["x"][0] is None) == (kind in FREE)


@pytest.mark.parametrize("kind", ["swish", "in place"])
def test_a_function_whose_backward_is_that_of_its_forward_is_traced_into(kind: str) -> None:
    net = Net(kind)
    explained = lxt_fx.transform(net, (example(),), rules="gradient")
    assert not any("own_backward" in str(node.target) for node in explained.graph.nodes)
    torch.testing.assert_close(gradient(explained, example()), gradient(net, example()))


def test_traced_functions_get_the_rules_of_their_ops() -> None:
    rules = lxt_fx.transform(Net("swish"), (example(),)).record.stages["lowered"].rules
    assert {rule.name for rule in rules.values()} == {"linear", "identity"}


def test_relevance_of_the_node_is_the_input_times_its_own_gradient_and_the_rest_is_booked() -> None:
    net = Net("parameter").double()
    explained = lxt_fx.transform(net, (example().double(),))
    x = example(1).double()
    ledger = lxt_fx.audit(explained, {"x": x})
    ledger.check()
    hidden = net.first(x)
    hidden.retain_grad()
    target = net.last(hidden + Rounded.apply(hidden, net.scale))[0].amax()
    weight = net.last.weight[net(x)[0].argmax()]
    lost = ((Rounded.apply(hidden, net.scale) - hidden) * weight).sum()
    booked = sum(entry.amount.sum() for entry in ledger.entries if entry.cause is lxt_fx.Cause.OWN_BACKWARD)
    torch.testing.assert_close(booked, lost.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(ledger.sources[0].amount.sum(), (target - lost).detach(), rtol=0, atol=1e-12)


def test_the_printed_graph_the_rule_and_the_certificate_name_the_function() -> None:
    explained = lxt_fx.transform(Net("number"), (example(),))
    assert "own_backward([%linear], Rounded(_, 0.05))            | own backward" in lxt_fx.show(explained)
    assert "what the Function's own backward makes of g" in lxt_fx.show(explained)
    certificate = lxt_fx.certificate(explained)
    assert [entry.rule.name for entry in certificate.entries].count("own backward") == 1
    assert any("own backward" in item.why for item in certificate.not_proven)


def test_a_compiled_module_has_the_backward() -> None:
    explained = lxt_fx.transform(Net("stored"), (example(),), rules="gradient")
    compiled = torch.compile(explained, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradient(compiled, example()), gradient(Net("stored"), example()))


class Rounds(nn.Module):
    """An activation that rounds."""

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = Rounded.apply(F.gelu(x), 0.125)
        return found


@pytest.mark.parametrize("options", [{"positions": "last"}, {"checkpoint": "layers"}, {}], ids=str)
def test_the_backward_is_there_with_positions_and_checkpoints(options: dict[str, Any]) -> None:
    model = tiny.gpt2()
    for block in model.transformer.h:
        block.mlp.act = Rounds()
    explained = lxt_fx.transform(model, rules="gradient", **options)
    found, own = [], []
    for module, into in ((explained, found), (model, own)):
        leaf = lxt_fx.embed(explained, torch.tensor([[5, 9, 17]])).detach().requires_grad_()
        (got,) = torch.autograd.grad(module(inputs_embeds=leaf).logits[0, -1, 3], leaf)
        into.append(got)
    torch.testing.assert_close(found, own)


def test_explicit_form_gives_the_same_where_no_output_is_0() -> None:
    x = torch.full((1, 4), 0.9, dtype=torch.float64)
    net = Net("stored").double()
    fast = lxt_fx.transform(net, (x,))
    slow = lxt_fx.transform(net, (x,), form="explicit", epsilon=0.0)
    leaf = x.clone().requires_grad_()
    output = slow(leaf)
    (found,) = torch.autograd.grad(output[:, 1].sum(), leaf, output[0, 1].detach())
    torch.testing.assert_close(found, x * gradient(fast, x)[1])


class Products(nn.Module):
    """A rounding whose zeros meet a product, a power, a sum and a matmul of two carrying values."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.up, self.last = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        rounded = Rounded.apply(self.first(x), 0.5) / 3
        joined = torch.cat((rounded * self.up(x), rounded**2), 0) - torch.tanh(self.up(x)).mean()
        scores = joined @ self.up(x).mT
        found: Tensor = self.last(torch.softmax(scores, -1) @ rounded)
        return found


@pytest.mark.parametrize("net", [Net("zeros"), Net("several"), Products()], ids=["zeros", "several", "products"])
def test_explicit_form_gives_the_same_where_a_rounding_gives_0(net: nn.Module) -> None:
    """R = 0 does not say which gradient it is: up to the next linear layer gradients flow."""
    net, x = net.double(), example().double()
    rounded = Rounded.apply(net.first(x), 0.5)  # type: ignore[operator]
    assert bool((rounded == 0).any())
    fast = lxt_fx.transform(net, (x,))
    slow = lxt_fx.transform(net, (x,), form="explicit", epsilon=0.0)
    leaf = x.clone().requires_grad_()
    output = slow(leaf)
    (found,) = torch.autograd.grad(output, leaf, torch.eye(2, dtype=x.dtype)[1] * output.detach())
    assert found.any()
    torch.testing.assert_close(found, x * gradient(fast, x)[1])
    assert "as_gradient(" in lxt_fx.show(slow, "lowered") and "leave(" in lxt_fx.show(slow, "lowered")


class Last(nn.Module):
    """Rounds what it answers."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = Rounded.apply(self.head(x), 0.5)
        return found


def test_no_relevance_is_read_where_gradients_flow() -> None:
    slow = lxt_fx.transform(Products().double(), (example().double(),), form="explicit")
    with pytest.raises(lxt_fx.UnknownNameError), lxt_fx.watch(slow, "%own_backward"):
        pass
    with lxt_fx.watch(slow, "first"):
        pass


def test_explicit_form_and_files_refuse_by_name(tmp_path: Any) -> None:
    with pytest.raises(lxt_fx.CallError, match=r"%own_backward in the model is computed .* is 0 .* form=\"gradient\""):
        lxt_fx.transform(Last(), (example(),), form="explicit")
    explained = lxt_fx.transform(Net("number"), (example(),))
    with pytest.raises(lxt_fx.InputError, match=r"calls Rounded\(_, 0.05\), an autograd.Function of yours"):
        lxt_fx.save(explained, tmp_path / "net.safetensors")


def test_two_functions_that_read_alike_are_told_apart() -> None:
    def net_of(factor: float) -> nn.Module:
        class Scaled(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Tensor:
                return x * 1

            @staticmethod
            def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
                return gradient * factor

        class Inner(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                found: Tensor = Scaled.apply(x)
                return found

        return Inner()

    nets = [net_of(2.0), net_of(5.0)]
    explained = [lxt_fx.transform(net, (example(),)) for net in nets]
    assert [float(gradient(module, example())[1].sum()) for module in explained] == [6.0, 15.0]


def test_functions_are_as_before_afterwards_and_in_other_threads() -> None:
    seen: list[Any] = []
    with own_backwards_as_ops(Functions({Rounded: False})):
        thread = threading.Thread(target=lambda: seen.append(stored(example().requires_grad_()).grad_fn))
        thread.start()
        thread.join()
        inside = Rounded.apply(example().requires_grad_(), 0.5).grad_fn
        assert type(inside).__name__ == "RoundedBackward"
    assert type(seen[0]).__name__ == "ReversedBackward"
    assert "apply" not in vars(function_base())
    with pytest.raises(ValueError, match="halfway"), own_backwards_as_ops(Functions({Rounded: False})):
        raise ValueError("halfway")
    assert "apply" not in vars(function_base())


def test_a_capture_changes_neither_the_models_gradient_nor_the_random_state() -> None:
    net = Net("parameter")
    before, state = gradient(net, example()), torch.random.get_rng_state()
    lxt_fx.transform(net, (example(),))
    torch.testing.assert_close(gradient(net, example()), before, rtol=0, atol=0)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in net.parameters())


class MaskedSoftmax(torch.autograd.Function):
    """A softmax that sets masked weights to 0 in place, as SEW-D's does; its backward is that of its forward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor) -> Tensor:
        weights = torch.softmax(x.masked_fill(~mask, torch.finfo(x.dtype).min), -1)
        weights.masked_fill_(~mask, 0)
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (weights,) = ctx.saved_tensors
        return weights * (gradient - (gradient * weights).sum(-1, keepdim=True)), None


def test_a_forward_that_writes_into_what_its_backward_needs_is_traced() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return MaskedSoftmax.apply(x, torch.arange(5) < 3)

    x = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    graph = lxt_fx.transform(Net(), (x,), rules="gradient").graph
    assert not any("own_backward" in str(node.target) for node in graph.nodes)
    assert any("softmax" in str(node.target) for node in graph.nodes)


class Packed(nn.Module):
    """As the 4-bit layer of bitsandbytes: a kernel with a backward, if its input asks for a gradient, and else one that has
    none, for which it writes its weight anew."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randint(-8, 8, (4, 4), dtype=torch.int8), requires_grad=False)
        self.is_packed = False

    def forward(self, x: Tensor) -> Tensor:
        if not x.requires_grad:
            self.is_packed = True
        if self.is_packed or not torch.is_grad_enabled():
            return Unpacked.forward(None, x.detach(), self.weight)
        found: Tensor = Unpacked.apply(x, self.weight)
        return found


class Unpacked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        if ctx is not None:
            ctx.save_for_backward(weight)
        return x.detach() @ weight.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient @ ctx.saved_tensors[0].to(gradient.dtype).T, None


class Packs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(9, 4), nn.LayerNorm(4)
        self.first, self.second = Packed(), Packed()

    def forward(self, x: Tensor) -> Tensor:
        x = x if x.is_floating_point() else self.embedding(x)
        out: Tensor = self.second(torch.tanh(self.norm(self.first(x))))
        return out


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("by_ids", [True, False])
def test_a_layer_that_asks_for_requires_grad_takes_its_kernel_with_a_backward(by_ids: bool, frozen: bool) -> None:
    torch.manual_seed(0)
    net = Packs().eval().requires_grad_(False)
    net.embedding.requires_grad_(not frozen)
    net.norm.requires_grad_(not frozen)
    x = torch.tensor([[1, 2, 3]]) if by_ids else torch.randn(2, 3, 4)
    explained = lxt_fx.transform(net, (x,), rules="gradient")
    assert not net.first.is_packed and not net.second.is_packed and explained.record.gradient_difference < 1e-5
    output, leaves = explained.with_leaves(x)
    (leaf,) = leaves.values()
    own = leaf.detach().clone().requires_grad_()
    expected = net(own)
    torch.testing.assert_close(output, expected)
    output.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(leaf.grad, own.grad)
    assert leaf.grad is not None and leaf.grad.abs().max() > 0
