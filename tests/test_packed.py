"""Layers with packed weights: a small one of this file, and those of packages, where they are installed."""

from __future__ import annotations

import copy
import json
import pickle
import random
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import accelerate
import pytest
import tiny
import torch
import torch.nn.functional as F
from saved_headers import edited, load_text, odd_values, parts_of
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

import lxt_fx
from lxt_fx.ops.contributions import OF_UNPACKED
from lxt_fx.ops.packed import packed_layer_of, packed_linear
from lxt_fx.packed import known
from lxt_fx.packed.known import packed_layer
from lxt_fx.packed.scheme import Scheme
from lxt_fx.passes.capture import offloaded as dispatched
from lxt_fx.rule_table import linear_rules
from lxt_fx.rule_table.rule import Rule


class Codes(nn.Module):
    """A linear map by whole numbers and a scale for each output."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scales = linear.weight.detach().abs().amax(1, keepdim=True) / 7
        self.register_buffer("codes", (linear.weight.detach() / scales).round().to(torch.int8))
        self.register_buffer("scales", scales)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.codes * self.scales, self.bias)


class RoundedCodes(Codes):
    """The same with a kernel that rounds its input, and has no backward."""

    def forward(self, x: Tensor) -> Tensor:
        step = x.detach().abs().amax(-1, keepdim=True) / 127
        return F.linear((x.detach() / step).round() * step, self.codes * self.scales, self.bias)


class WrittenRounding(Codes):
    """The same with rounding that is written out, whose derivative is 0, and a scale that depends on the input."""

    def forward(self, x: Tensor) -> Tensor:
        step = x.abs().amax(-1, keepdim=True) / 127
        return F.linear((x / step).round() * step, self.codes * self.scales, self.bias)


class Wide(Codes):
    """A kernel whose values are float64, whatever it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.double())


class Squeezing(Codes):
    """A kernel that leaves out the dim of a batch of one."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze(0)


class Failing(torch.autograd.Function):
    """A kernel whose backward is missing on this device."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise ValueError("install other kernels for a backward")


class WithoutBackward(Codes):
    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = Failing.apply(x, self.codes * self.scales, self.bias)  # type: ignore[no-untyped-call]
        return found


class Compiled(Codes):
    """A kernel with a part that `torch.compile` compiled."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, unpacked_codes(self.codes, self.scales), self.bias)


@torch.compile(backend="eager")
def unpacked_codes(codes: Tensor, scales: Tensor) -> Tensor:
    return codes.to(scales.dtype) * scales + torch.zeros(codes.shape[1], dtype=scales.dtype)


def unpack(layer: Any) -> tuple[Tensor, Tensor | None]:
    return layer.codes * layer.scales, layer.bias


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(known, "_REGISTERED", {})
    lxt_fx.register_packed(Codes, unpack, scheme="codes of 4 bits")
    lxt_fx.register_packed(RoundedCodes, unpack, scheme="rounded codes", rounds="its input to 8 bits")
    yield


def packed(model: nn.Module, kind: Any = Codes) -> nn.Module:
    """The model with packed layers in the place of its linear ones, but for the last."""
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and "head" not in name and "classifier" not in name:
            model.set_submodule(name, kind(module))
    return model


def unpacked(model: nn.Module, plain: nn.Module) -> nn.Module:
    """`plain`, the model before it was packed, with the unpacked weights."""
    for name, module in model.named_modules():
        if (layer := packed_layer(module, name)) is not None:
            weight, bias = layer.unpacked()
            linear = plain.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            linear.weight.data = weight.detach().to(linear.weight.dtype).clone()
            assert (bias is None) == (linear.bias is None)
    return plain


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)).double().eval()


def llama(size: int = 16) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": size, "intermediate_size": 2 * size, "num_attention_heads": 2, "num_key_value_heads": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, num_hidden_layers=1, **sizes)).eval()


def bert(size: int = 16) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": size, "intermediate_size": 2 * size, "num_attention_heads": 2, "num_hidden_layers": 1}
    return BertForSequenceClassification(BertConfig(vocab_size=32, **sizes)).eval()


def vit(size: int = 16) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": size, "intermediate_size": 2 * size, "num_attention_heads": 2, "num_hidden_layers": 1}
    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **sizes)).eval()


MODELS = {"llama": llama, "bert": bert, "vit": vit}
IDS = torch.tensor([[5, 9, 17, 23, 11]])


def called(model: nn.Module) -> dict[str, Tensor]:
    if "ViT" in type(model).__name__:
        return {"pixel_values": torch.linspace(-1, 1, 192).reshape(1, 3, 8, 8)}
    return {"input_ids": IDS}


def relevance(explained: lxt_fx.Explained, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The logits, the relevance of the one leaf, and its gradient."""
    output, leaves = explained.with_leaves(**inputs)
    (leaf,) = leaves.values()
    logit = output.logits.reshape(-1, output.logits.shape[-1])[-1, 1]
    explicit = explained.record.form == "explicit"
    logit.backward(logit.detach() if explicit else None)
    assert leaf.grad is not None
    return output.logits.detach(), leaf.grad if explicit else leaf.detach() * leaf.grad, leaf.grad


def near(found: Tensor, expected: Tensor, bound: float = 1e-6) -> bool:
    assert float(expected.norm()) > 0
    return float((found - expected).norm()) <= bound * float(expected.norm())


def own_gradient(model: nn.Module) -> Tensor:
    """That of the quantised model itself, at embeddings or pixels."""
    inputs = called(model)
    if "input_ids" in inputs:
        leaf = model.get_input_embeddings()(IDS).detach().requires_grad_()  # type: ignore[operator]
        logits = model(inputs_embeds=leaf).logits
    else:
        leaf = inputs["pixel_values"].clone().requires_grad_()
        logits = model(leaf).logits
    logits.reshape(-1, logits.shape[-1])[-1, 1].backward()
    assert leaf.grad is not None
    return leaf.grad


def lost(ledger: lxt_fx.Ledger) -> float:
    """What no cause accounts for."""
    return sum(float(entry.amount.abs().sum()) for entry in ledger.entries if entry.cause is lxt_fx.Cause.UNACCOUNTED)


def check_model(model: nn.Module, plain: nn.Module) -> None:
    """What must hold of a model whose kernels round nothing but the weights."""
    inputs, plain = called(model), unpacked(model, plain)
    explained = lxt_fx.transform(model)
    logits, found, _ = relevance(explained, inputs)
    with torch.enable_grad():
        assert torch.equal(logits, model(**inputs).logits)
    assert near(found, relevance(lxt_fx.transform(plain), inputs)[1])
    assert near(relevance(lxt_fx.transform(model, rules="gradient"), inputs)[2], own_gradient(model))
    assert lost(lxt_fx.audit(explained, inputs, target=1)) <= 1e-5 * float(found.abs().sum())


@pytest.mark.parametrize("name", MODELS)
def test_a_packed_model_is_explained_as_one_with_the_unpacked_weights(name: str) -> None:
    check_model(packed(MODELS[name]()), MODELS[name]())


RULES: dict[str, Rule] = {
    "epsilon": linear_rules.epsilon(1e-2), "gamma": linear_rules.gamma(), "z-plus": linear_rules.z_plus(),
    "excitation": linear_rules.excitation(), "alpha-beta": linear_rules.alpha_beta(),
    "z-box": linear_rules.z_box(-3, 3), "w-square": linear_rules.w_square(), "flat": linear_rules.flat(),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("form", ["gradient", "explicit"])
def test_every_rule_of_linear_maps_unpacks(rule: str, form: Any) -> None:
    """Against the same rule for plain weights, also in what its ledger accounts for."""
    table = lxt_fx.TABLES["attnlrp"].with_rules("own", RULES[rule], summary="")
    model, x = packed(net()), torch.linspace(-1, 2, 10, dtype=torch.float64).reshape(2, 5)
    found = [lxt_fx.transform(each, (x,), rules=table, form=form, epsilon=0.0) for each in (model, unpacked(model, net()))]
    grads = []
    for explained in found:
        leaf = x.clone().requires_grad_()
        value = explained(leaf)[:, 1].sum()
        value.backward(value.detach() if form == "explicit" else None)
        grads.append(leaf.grad)
    assert grads[0] is not None and grads[1] is not None
    assert near(grads[0], grads[1], 1e-12)
    ops = {node.target for node in found[0].graph.nodes if node.op == "call_function" and "packed" in str(node.target)}
    assert ops and (form == "explicit" or ops <= {packed_linear, *OF_UNPACKED})
    if form == "gradient":
        first, second = (lost(lxt_fx.audit(explained, x, target=1)) for explained in found)
        assert abs(first - second) <= 1e-12


def test_what_a_kernel_rounds_is_named_and_booked() -> None:
    """The kernel has no backward: relevance passes by the unpacked weights, and the ledger has what it rounded."""
    model, x = packed(net(), RoundedCodes), torch.linspace(-1, 2, 10, dtype=torch.float64).reshape(2, 5)
    explained = lxt_fx.transform(model, (x,))
    leaf = x.clone().requires_grad_()
    assert torch.equal(explained(leaf), model(x))
    ledger = lxt_fx.audit(explained, x, target=1)
    amounts = {cause: sum(float(e.amount.sum()) for e in ledger.entries if e.cause is cause) for cause in lxt_fx.Cause}
    assert abs(amounts[lxt_fx.Cause.KERNEL]) > 1e-6 and abs(amounts[lxt_fx.Cause.UNACCOUNTED]) < 1e-12
    assert abs(amounts[lxt_fx.Cause.BIAS]) > 1e-3
    said = lxt_fx.certificate(explained).summary()
    assert "3 x rounded codes" in said and "the kernel rounds its input to 8 bits: within" in said


def test_the_graph_shows_the_module_and_the_scheme() -> None:
    explained = lxt_fx.transform(packed(llama()))
    text = lxt_fx.show(explained, module="model.layers.0.mlp")
    assert "model.layers.0.mlp.up_proj (Codes)  modeling_llama.py" in text
    assert "lxt_fx.packed_linear(" in text and "@packed_weight, codes of 4 bits)" in text
    assert "7 x codes of 4 bits in model.layers.0" in lxt_fx.certificate(explained).summary()


@pytest.mark.parametrize("kind", [Codes, RoundedCodes])
def test_a_packed_model_on_several_devices_is_explained_as_on_one(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is captured from a copy without values, in which nothing could be unpacked or compared."""
    plain = packed(tiny.llama(layers=2), kind)
    model = accelerate.dispatch_model(copy.deepcopy(plain), {"": "cpu"}, force_hooks=True)
    monkeypatch.setattr(dispatched, "devices_of", lambda model: {torch.device("cpu"), torch.device("cpu", 1)})
    one, other = lxt_fx.transform(model), lxt_fx.transform(plain)
    assert one.record.forward_difference == 0.0 and one.record.gradient_difference < 1e-5
    inputs = {"input_ids": torch.tensor([[5, 3, 9, 4]])}
    found, expected = (lxt_fx.relevance_of(explained, inputs, [7]) for explained in (one, other))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))
    assert lxt_fx.show(one, full=True).count("packed_linear") == lxt_fx.show(other, full=True).count("packed_linear") > 0


@pytest.mark.parametrize("rule", ["linear", "gamma"])
def test_the_backward_saves_no_unpacked_weight(rule: str) -> None:
    table = lxt_fx.TABLES["attnlrp"]
    table = table if rule == "linear" else table.with_rules("own", linear_rules.gamma(), summary="")
    explained = lxt_fx.transform(packed(net()), (torch.ones(2, 5, dtype=torch.float64),), rules=table)
    saved: list[tuple[int, ...]] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        explained(torch.ones(7, 5, dtype=torch.float64, requires_grad=True))
    assert saved and not {(6, 5), (4, 6), (3, 4)} & set(saved)


def test_the_model_is_as_before() -> None:
    model = packed(net())
    before = {name: dict(vars(module)) | dict(module.named_buffers()) for name, module in model.named_modules()}
    x = torch.ones(2, 5, dtype=torch.float64)
    lxt_fx.transform(model, (x,))
    with pytest.raises(lxt_fx.NoRuleError):
        lxt_fx.transform(nn.Sequential(model, Unknown()), (x,))
    after = {name: dict(vars(module)) | dict(module.named_buffers()) for name, module in model.named_modules()}
    assert all(before[name].keys() == after[name].keys() for name in before)
    assert all("forward" not in vars(module) for module in model.modules())


class Unknown(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x) * torch.lgamma(x + 9)


def test_a_copy_has_layers_of_its_own() -> None:
    x = torch.ones(2, 5, dtype=torch.float64)
    model = packed(net())
    explained = lxt_fx.transform(model, (x,))
    twin, first = copy.deepcopy(explained), explained(x)
    model[0].scales.mul_(2)  # type: ignore[union-attr, operator]
    assert torch.equal(twin(x), first) and not torch.equal(explained(x), first) and torch.equal(explained(x), model(x))


def test_another_packed_weight_is_a_change_of_the_model() -> None:
    x, model = torch.ones(2, 5, dtype=torch.float64), packed(net())
    explained = lxt_fx.transform(model, (x,))
    model[0].codes = model[0].codes.clone()  # type: ignore[union-attr, operator]
    with pytest.raises(lxt_fx.ModelChangedError, match="0.codes is another Tensor"):
        explained(x)


def test_a_file_names_the_layers_and_load_takes_the_model(tmp_path: Path) -> None:
    x, model = torch.linspace(-1, 2, 10, dtype=torch.float64).reshape(2, 5), packed(net())
    explained = lxt_fx.transform(model, (x,))
    lxt_fx.save(explained, tmp_path / "it.safetensors")
    with pytest.raises(lxt_fx.InputError, match=r"one of 3 packed layers \(codes of 4 bits\).*load\(path, packed=model\)"):
        lxt_fx.load(tmp_path / "it.safetensors")
    with pytest.raises(lxt_fx.InputError, match="of the given model is a Linear"):
        lxt_fx.load(tmp_path / "it.safetensors", packed=net())
    other = packed(net())
    other[0].scales.mul_(1.5)  # type: ignore[union-attr, operator]
    with pytest.raises(lxt_fx.InputError, match="has other weights than 0 of the given model"):
        lxt_fx.load(tmp_path / "it.safetensors", packed=other)
    loaded = lxt_fx.load(tmp_path / "it.safetensors", packed=model)
    assert torch.equal(loaded(x), explained(x))
    assert "3 x codes of 4 bits" in lxt_fx.certificate(loaded).summary()


CRAFTED: dict[str, tuple[Any, str]] = {
    "no module": (lambda layers: layers.update(weight=layers.pop("0.packed_weight")), "is no path of a packed weight"),
    "a name of modules": (lambda layers: layers.update({"0.training": layers.pop("0.packed_weight")}), "is no path of"),
    "a method": (lambda layers: layers.update({"forward.weight": layers.pop("0.packed_weight")}), "is no path of"),
    "no name": (lambda layers: layers.update({"0..w": layers.pop("0.packed_weight")}), "is no path of a packed weight"),
    "no such layer": (lambda layers: layers.update({"7.packed_weight": layers.pop("0.packed_weight")}), "no tensor of"),
    "another scheme": (lambda layers: layers["0.packed_weight"].update(scheme="int8"), "was packed by int8"),
    "another sign": (lambda layers: layers["0.packed_weight"]["sketch"].__setitem__(3, 1.0), "has other weights than 0"),
    "short": (lambda layers: layers["0.packed_weight"]["sketch"].pop(), "has other weights than 0"),
    "too many": (lambda layers: layers.update({f"a{n}.w": 1 for n in range(100_001)}), "has more than 100000 layers"),
}  # fmt: skip


def test_a_crafted_header_of_packed_layers_is_refused(tmp_path: Path) -> None:
    """Single edits, and 150 at random, with the model and with others: a module or an InputError, and nothing runs."""
    model = packed(net())
    header, tensors = parts_of(lxt_fx.transform(model, (X,)), tmp_path)
    for case, (edit, why) in CRAFTED.items():
        crafted = copy.deepcopy(header)
        edit(crafted["packed"])
        said = load_text(json.dumps(crafted), tensors, model)
        assert isinstance(said, str) and re.search(why, said), (case, said)
    choice, values = random.Random(0), odd_values(tmp_path / "effect")
    for _ in range(150):
        crafted = {**header, **edited({"packed": header["packed"]}, choice, values)}
        load_text(json.dumps(crafted), tensors, choice.choice([model, model, None, net()]))
    assert not (tmp_path / "effect").exists()


def test_wrong_weights_are_refused_before_any_work() -> None:
    x = torch.ones(2, 5, dtype=torch.float64)
    lxt_fx.register_packed(Codes, lambda layer: (-layer.codes * layer.scales, layer.bias))
    with pytest.raises(lxt_fx.CaptureError, match=r"kernel of 0 \(Codes\) gives other values .* off by \d+%"):
        lxt_fx.transform(packed(net()), (x,))
    lxt_fx.register_packed(Codes, lambda layer: (layer.codes, None))
    with pytest.raises(lxt_fx.CaptureError, match=r"0 is a Codes .* floating-point dtype, not torch.int8 \[6, 5\]"):
        lxt_fx.transform(packed(net()), (x,))
    lxt_fx.register_packed(Codes, lambda layer: layer.no_such_thing)
    with pytest.raises(lxt_fx.CaptureError, match="could not be unpacked: AttributeError"):
        lxt_fx.transform(packed(net()), (x,))
    for given in (nn.Linear, int, "Codes"):
        with pytest.raises(lxt_fx.InputError, match="cls must be the class of your packed layers"):
            lxt_fx.register_packed(given, unpack)  # type: ignore[arg-type]
    with pytest.raises(lxt_fx.InputError, match="unpack must be a function"):
        lxt_fx.register_packed(Codes, None)  # type: ignore[arg-type]


def test_packed_experts_are_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(known.REFUSED, f"{__name__}.Unknown", ("its experts are packed", "quantization_config=Own()"))
    with pytest.raises(
        lxt_fx.CaptureError, match=r"(?s)1 is a Unknown, .*: its experts are packed.*quantization_config=Own\(\)"
    ):
        lxt_fx.transform(nn.Sequential(net(), Unknown()), (torch.ones(2, 5, dtype=torch.float64),))


@pytest.mark.parametrize("way", [{"positions": [-1]}, {"checkpoint": "layers"}, {"dynamic": "recapture"}])
def test_other_graphs_of_a_packed_model(way: dict[str, Any]) -> None:
    model = packed(llama())
    expected = relevance(lxt_fx.transform(model), {"input_ids": IDS})[1]
    assert near(relevance(lxt_fx.transform(model, **way), {"input_ids": IDS})[1], expected)


def test_a_compiled_module_calls_the_kernels() -> None:
    x = torch.linspace(-1, 2, 10, dtype=torch.float64).reshape(2, 5)
    explained = lxt_fx.transform(packed(net()), (x,))
    grads = []
    for module in (explained, torch.compile(explained, fullgraph=True, backend="aot_eager")):
        leaf = x.clone().requires_grad_()
        module(leaf)[:, 1].sum().backward()
        grads.append(leaf.grad)
    assert grads[0] is not None and grads[1] is not None and near(grads[1], grads[0], 1e-12)
    weights = [buffer for buffer in explained.buffers() if packed_layer_of(buffer) is not None]
    assert len(weights) == 3 and all(weight.untyped_storage().nbytes() == 8 for weight in weights)


X = torch.linspace(-1, 2, 10, dtype=torch.float64).reshape(2, 5)


def gradient(module: Any, x: Tensor = X) -> tuple[Tensor, Tensor]:
    """The value, and the gradient of its second output."""
    leaf = x.clone().requires_grad_()
    value = module(leaf)
    value[..., 1].sum().backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


def with_layers(kind: type[Codes], **registered: Any) -> nn.Module:
    lxt_fx.register_packed(kind, registered.pop("unpack", unpack), **registered)
    return packed(net(), kind)


@pytest.mark.parametrize("kind", [WithoutBackward, WrittenRounding, Compiled])
def test_kernels_with_no_backward_or_another_one_pass_relevance_by_the_weights(kind: type[Codes]) -> None:
    """A backward that fails, rounding with the derivative 0, and code that is compiled while the model runs."""
    model = with_layers(kind, rounds="its input to 8 bits" if kind is WrittenRounding else "")
    value, found = gradient(lxt_fx.transform(model, (X,)))
    assert torch.equal(value, model(X))
    if kind is not WrittenRounding:
        assert near(found, gradient(lxt_fx.transform(unpacked(model, net()), (X,)))[1], 1e-12)


def test_a_kernel_with_values_of_another_dtype() -> None:
    class Float(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.float()

    def made(first: nn.Module) -> nn.Module:
        return nn.Sequential(first, Float(), nn.GELU(), nn.Linear(6, 3)).eval()

    torch.manual_seed(0)
    lxt_fx.register_packed(Wide, lambda layer: (layer.codes * layer.scales, layer.bias.float()))
    layer, plain = Wide(nn.Linear(5, 6).double()), nn.Linear(5, 6)
    plain.weight.data, plain.bias.data = (layer.codes * layer.scales).float(), layer.bias.data.float()
    x, model = X.float(), made(layer)
    for table in ("attnlrp", lxt_fx.TABLES["attnlrp"].with_rules("own", linear_rules.gamma(), summary="")):
        explained = lxt_fx.transform(model, (x,), rules=table)
        twin = nn.Sequential(plain, *model[1:])  # type: ignore[index]
        (value, found), (_, expected) = gradient(explained, x), gradient(lxt_fx.transform(twin, (x,), rules=table), x)
        assert torch.equal(value, model(x)) and found.dtype == torch.float32 and near(found, expected)
    assert next(n for n in explained.graph.nodes if "packed" in str(n.target)).meta["val"].dtype == torch.float64


def test_a_kernel_is_told_that_relevance_is_read() -> None:
    asked: list[tuple[bool, bool]] = []

    class Asking(Codes):
        def forward(self, x: Tensor) -> Tensor:
            asked.append((torch.is_grad_enabled(), x.requires_grad))
            return super().forward(x)

    def unpack_asking(layer: Any) -> tuple[Tensor, Tensor | None]:
        assert not torch.is_grad_enabled()
        return unpack(layer)

    explained = lxt_fx.transform(with_layers(Asking, unpack=unpack_asking), (X,))
    asked.clear()
    with torch.no_grad():
        explained(X)
    gradient(explained)
    assert asked == [(True, True)] * 6


@pytest.mark.parametrize("size", [0, 1, 7])
def test_other_batches_than_that_of_the_example(size: int) -> None:
    model = packed(net())
    x = torch.linspace(-2, 1, 5 * size, dtype=torch.float64).reshape(size, 5)
    value, found = gradient(lxt_fx.transform(model, (X,)), x)
    expected, own = gradient(lxt_fx.transform(unpacked(model, net()), (X,)), x)
    assert torch.equal(value, model(x)) and value.shape == expected.shape
    assert found.shape == own.shape and (size == 0 or near(found, own, 1e-12))


def test_a_kernel_that_changes_its_shape_is_an_error() -> None:
    explained = lxt_fx.transform(with_layers(Squeezing), (X,))
    with pytest.raises(lxt_fx.CallError, match=r"captured with an output of torch.float64 \[1, 6\], and its kernel gives"):
        explained(X[:1])


@pytest.mark.parametrize("kind", [Codes, RoundedCodes])
def test_autocast_is_that_of_the_model(kind: type[Codes]) -> None:
    model, x = packed(net().float(), kind), X.float()
    explained, plain = lxt_fx.transform(model, (x,)), lxt_fx.transform(unpacked(model, net().float()), (x,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (value, found), (_, expected), own = gradient(explained, x), gradient(plain, x), model(x)
    assert value.dtype == torch.bfloat16 and torch.equal(value, own) and near(found, expected, 0.03)


def test_threads_share_an_explained_module() -> None:
    explained = lxt_fx.transform(packed(net()), (X,))
    inputs = [X * (1 + index / 8) for index in range(8)]
    alone = [gradient(explained, x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda x: gradient(explained, x), inputs))
    for first, second in zip(alone, together, strict=True):
        assert all(map(torch.equal, first, second))


def test_what_is_done_to_an_explained_packed_module() -> None:
    """New weights in place are seen; other tensors, another dtype, and pickle are refused or done."""
    model = packed(net())
    explained = lxt_fx.transform(model, (X,))
    weights = {name: tensor * 1.5 for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    model.load_state_dict(weights, strict=False)
    value, found = gradient(explained)
    assert torch.equal(value, model(X))
    assert near(found, gradient(lxt_fx.transform(model, (X,)))[1], 1e-12)
    with pytest.raises(lxt_fx.LxtFxError, match="save"):
        pickle.dumps(explained)
    model[0].scales = model[0].scales * 2  # type: ignore[union-attr, operator]
    with pytest.raises(lxt_fx.ModelChangedError, match="0.scales"):
        explained(X)


def test_a_layer_that_is_called_by_name_or_hooked_or_replaced() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = (packed(net())[index] for index in (0, 2, 4))  # type: ignore[index]

        def forward(self, x: Tensor) -> Any:
            return self.third(self.second(self.first(x=x).relu()).relu())

    model = Named().eval()
    hooked, replaced = model.second, model.third
    vars(hooked)["_old_forward"] = hooked.forward  # as accelerate does
    vars(hooked)["forward"] = with_hooks = lambda x: vars(hooked)["_old_forward"](x)
    vars(replaced)["forward"] = others = lambda x: F.linear(x, replaced.codes * replaced.scales * 2)
    explained = lxt_fx.transform(model, (X,))
    value, _ = gradient(explained)
    assert torch.equal(value, model(X))
    assert sum("packed" in str(node.target) for node in explained.graph.nodes if node.op == "call_function") == 2
    assert vars(hooked)["forward"] is with_hooks and vars(replaced)["forward"] is others


def test_a_subclass_with_a_forward_of_its_own_is_another_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a known class and of a refused one; a registered class is taken with its subclasses."""

    class Twice(Codes):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    name = f"{__name__}.Codes"
    monkeypatch.setattr(known, "_REGISTERED", {})
    for layers, entry in ((known.LAYERS, Scheme(unpack, lambda layer: "codes")), (known.REFUSED, ("why", "way()"))):
        monkeypatch.setattr(known, "LAYERS" if layers is known.LAYERS else "REFUSED", {name: entry})
        assert packed_layer(Twice(nn.Linear(2, 3)), "it") is None
    monkeypatch.setattr(known, "REFUSED", {})
    assert packed_layer(Codes(nn.Linear(2, 3)), "it") is not None
    lxt_fx.register_packed(Codes, unpack)
    assert packed_layer(Twice(nn.Linear(2, 3)), "it") is not None


WRONG: dict[str, Any] = {
    "noise of 3%": (Codes, lambda w: w * (1 + 0.03 * torch.randn(w.shape, dtype=w.dtype)), r"off by \d%.*allowed: 2%"),
    "transposed": (Codes, lambda w: w.T, r"off by inf%|must give a bias \[5\]"),
    "one row less": (Codes, lambda w: w[1:], r"must give a bias \[5\] or None"),
    "a vector": (Codes, lambda w: w[0], r"not torch.float64 \[5\]"),
    "noise under rounding": (
        RoundedCodes, lambda w: w * (1 + 0.25 * torch.randn(w.shape, dtype=w.dtype)), "off by [12].%.*allowed: 10%",
    ),
    "another scale under rounding": (RoundedCodes, lambda w: w * 3, "off by .*allowed: 50%"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_weights_that_are_nearly_right_are_refused(case: str) -> None:
    torch.manual_seed(1)
    kind, wrong, why = WRONG[case]
    rounds = "its input to 8 bits" if kind is RoundedCodes else ""
    with pytest.raises(lxt_fx.CaptureError, match=why):
        lxt_fx.transform(
            with_layers(kind, unpack=lambda layer: (wrong(layer.codes * layer.scales), layer.bias), rounds=rounds), (X,)
        )


def test_rounding_that_is_not_declared_is_refused() -> None:
    class Coarse(Codes):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward((x * 1.5).round() / 1.5)

    with pytest.raises(lxt_fx.CaptureError, match="off by .*allowed: 5%, as it rounds nothing but its weights"):
        lxt_fx.transform(with_layers(Coarse), (X,))


# --- packages -------------------------------------------------------------------------------------------------------------


def _bitsandbytes(model: nn.Module, kind: str) -> nn.Module:
    bnb = pytest.importorskip("bitsandbytes")

    def layer(linear: nn.Linear) -> nn.Module:
        sizes = linear.in_features, linear.out_features, linear.bias is not None
        found: nn.Module
        if kind == "int8":
            found = bnb.nn.Linear8bitLt(*sizes, has_fp16_weights=False, threshold=1.0)
            found.weight = bnb.nn.Int8Params(linear.weight.detach().clone(), requires_grad=False, has_fp16_weights=False)
        else:
            own = {"quant_type": kind[:3], "compress_statistics": kind.endswith("twice")}
            found = bnb.nn.Linear4bit(*sizes, compute_dtype=torch.float32, **own)
            found.weight = bnb.nn.Params4bit(linear.weight.detach().clone(), requires_grad=False, module=found, **own)
        found.bias = linear.bias
        return found

    return packed(model, layer).to("cpu").eval()


def _torchao(model: nn.Module, kind: str) -> nn.Module:
    own = pytest.importorskip("torchao.quantization")
    config = {
        "int8": lambda: own.Int8WeightOnlyConfig(), "float8": lambda: own.Float8WeightOnlyConfig(),
        "int4": lambda: own.IntxWeightOnlyConfig(weight_dtype=torch.int4),
    }[kind]()  # fmt: skip
    own.quantize_(model, config, lambda m, name: type(m) is nn.Linear and "head" not in name and "classifier" not in name)
    return model


def _hqq(model: nn.Module, kind: str) -> nn.Module:
    own = pytest.importorskip("hqq.core.quantize")
    config = own.BaseQuantizeConfig(nbits=int(kind), group_size=64)
    return packed(model, lambda linear: own.HQQLinear(linear, config, compute_dtype=torch.float32, device="cpu"))


def _quanto(model: nn.Module, kind: str) -> nn.Module:
    own = pytest.importorskip("optimum.quanto")
    own.quantize(model, weights=getattr(own, kind), exclude=["*head*", "*classifier*", "*patch*", "*norm*", "*Norm*"])
    own.freeze(model)
    return model


SCHEMES = [
    (_bitsandbytes, "nf4"), (_bitsandbytes, "nf4 twice"), (_bitsandbytes, "fp4"), (_torchao, "int8"), (_torchao, "float8"),
    (_torchao, "int4"), (_hqq, "4"), (_hqq, "8"), (_quanto, "qint8"), (_quanto, "qint4"), (_quanto, "qfloat8"),
]  # fmt: skip


BY_BITSANDBYTES = pytest.mark.slow("a kind of four bits that llama has too, in a model that nf4 twice has too")


def schemes_and_models() -> Iterator[Any]:
    """Each scheme in Llama, and one of each package, with two levels of scales, in the other models too."""
    for made, kind in SCHEMES:
        for name in MODELS:
            marks = [BY_BITSANDBYTES] if made is _bitsandbytes and kind != "nf4 twice" and name != "llama" else []
            yield pytest.param(made, kind, name, id=f"{made.__name__[1:]} {kind}-{name}", marks=marks)


@pytest.mark.parametrize(("quantised", "kind", "name"), [*schemes_and_models()])
def test_packages_that_pack_weights_only(quantised: Any, kind: str, name: str) -> None:
    check_model(quantised(MODELS[name](64), kind), MODELS[name](64))


def test_llm_int8_has_the_gradient_of_the_quantised_model() -> None:
    model = _bitsandbytes(llama(64), "int8")
    explained = lxt_fx.transform(model, rules="gradient")
    logits, _, gradient = relevance(explained, {"input_ids": IDS})
    assert torch.equal(logits, model(IDS).logits) and near(gradient, own_gradient(model))
    ledger = lxt_fx.audit(lxt_fx.transform(model), IDS)
    assert lost(ledger) <= 1e-5 * float(ledger.value.abs().sum())
    assert "its input to int8, each position by its largest value, but for columns with values above 1" in (
        lxt_fx.certificate(explained).summary()
    )


def test_4_bits_written_anew_by_a_call_without_gradients() -> None:
    """Where a CPU has AVX512-BF16, bitsandbytes then changes the layer to a form without a backward."""
    model = _bitsandbytes(llama(64), "nf4 twice")
    explained = lxt_fx.transform(model)
    before = relevance(explained, {"input_ids": IDS})[1]
    with torch.no_grad():
        expected = model(IDS).logits
    logits, found, _ = relevance(explained, {"input_ids": IDS})
    assert torch.equal(logits, expected) and near(found, before, 0.03)
    assert near(relevance(lxt_fx.transform(model), {"input_ids": IDS})[1], found)
