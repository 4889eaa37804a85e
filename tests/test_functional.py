"""The functions equal those of LXT's explicit form where that is right, and in both forms a written model equals a
transformed one."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from golden_cases import FOLDER, relative
from safetensors.torch import load_file
from torch import Tensor, nn

import lxt_fx
import lxt_fx.functional as F
from lxt_fx.ops.activations import BY_NAME

TENSORS = load_file(FOLDER / "functional.safetensors")
CASES: dict[str, dict[str, Any]] = json.loads((FOLDER / "functional.meta.json").read_text())["cases"]

FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "softmax": F.softmax,
    "linear_epsilon": F.linear,
    "matmul": F.matmul,
    "add2": F.add,
    "mul2": F.mul,
    "mean": F.mean,
    "rms_norm_identity": F.rms_norm,
    "layer_norm": F.layer_norm,
    "normalize": F.normalize,
    "rule_identity_silu": lambda x, **given: F.identity(torch.nn.functional.silu, x, form=given["form"]),
    "rule_stop": lambda x, **given: F.stop(torch.nn.functional.silu(x)) + 0 * x,
    "rule_epsilon_linear": F.linear,
    "rule_uniform_epsilon_matmul": F.matmul,
    "rule_uniform_mul": F.mul,
}
NOT_OURS = {
    "softmax_dim1": "LXT sums over the last dimension whatever dim is",
    "rule_epsilon_tanh": "input times gradient of tanh: no rule of a paper, ours is the identity",
    "rule_epsilon_matmul": "LXT gives each operand the whole relevance, so that twice as much goes on",
    "rule_taylor_nobias_tanh": "it raises in LXT",
    "rule_taylor_nobias_matmul": "it raises in LXT",
    "rule_taylor_bias_tanh": "it raises in LXT",
}
RENAMED = {"keep_dim": "keepdim", "variance_epsilon": "eps"}
WITH_EPSILON = ("linear", "matmul", "add2", "mean", "layer_norm", "rule_epsilon_linear")


def compared() -> list[str]:
    return [name for name in CASES if name not in NOT_OURS and not name.startswith("implicit")]


def test_every_case_of_lxt_is_compared_or_named_as_wrong() -> None:
    assert {name for name in CASES if not name.startswith("implicit")} == set(compared()) | set(NOT_OURS)


@pytest.mark.parametrize("name", compared())
def test_the_explicit_form_equals_that_of_lxt(name: str) -> None:
    """Measured: at most 1e-7 of the largest value, where LXT's forward is float32 or its epsilon has no sign."""
    arguments, inputs, case = read(name)
    leaves = {key: value.clone().requires_grad_() for key, value in inputs.items()}
    output = function_of(name)(**leaves, **arguments, form="explicit")
    tolerance = 1e-6 if "rms_norm" in name or "dtype32" in name else 1e-9
    assert relative(output.detach(), TENSORS[f"{name}/out"]) <= tolerance
    output.backward(TENSORS[f"{name}/rel_out"].to(output.dtype))
    for key, leaf in leaves.items():
        assert leaf.grad is not None
        expected = TENSORS[f"{name}/rel_in/{key}"]
        if not expected.any():
            assert not leaf.grad.any()
            continue
        loose = 1e-5 if "rms_norm" in name or "dtype32" in name else epsilon_tolerance(case)
        assert relative(leaf.grad, expected) <= loose, case["note"]


def epsilon_tolerance(case: dict[str, Any]) -> float:
    """LXT's epsilon has no sign, so that where z < 0 it divides by z + epsilon and we by z - epsilon."""
    return max(1e-9, 1e3 * float(case["args"].get("epsilon", 0.0)))


def function_of(name: str) -> Callable[..., Tensor]:
    return FUNCTIONS[max((prefix for prefix in FUNCTIONS if name.startswith(prefix)), key=len)]


def read(name: str) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """Arguments other than the inputs, the inputs, the case."""
    case = CASES[name]
    arguments = {RENAMED.get(key, key): value for key, value in case["args"].items() if key not in ("fn",)}
    if not name.startswith(WITH_EPSILON):
        arguments.pop("epsilon", None)
    if "dtype" in arguments:
        arguments["dtype"] = getattr(torch, arguments["dtype"])
    if name.startswith("layer_norm"):
        arguments["normalized_shape"] = [8]
    prefix = f"{name}/const/"
    arguments |= {key.removeprefix(prefix): value for key, value in TENSORS.items() if key.startswith(prefix)}
    inputs = {key.removeprefix(f"{name}/in/"): v for key, v in TENSORS.items() if key.startswith(f"{name}/in/")}
    return arguments, inputs, case


class Block(nn.Module):
    """One attention block: with torch's own functions, or with ours."""

    def __init__(self, library: Any, **form: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.library, self.form = library, form
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.gate, self.down = (nn.Linear(*sizes) for sizes in ((8, 12), (8, 12), (12, 8)))
        self.norm = nn.LayerNorm(8)

    def linear(self, layer: nn.Linear, x: Tensor) -> Tensor:
        return self.library.linear(x, layer.weight, layer.bias, **self.form)

    def forward(self, x: Tensor) -> Tensor:
        lib, form = self.library, self.form
        normed = lib.layer_norm(x, (8,), self.norm.weight, self.norm.bias, **form)
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.linear(self.qkv, normed).chunk(3, -1))
        weights = lib.softmax(self.mul(lib, lib_matmul(lib, q, k.mT, form), 0.5), -1, **form)
        x = self.add(lib, x, self.linear(self.out, lib_matmul(lib, weights, v, form).transpose(1, 2).flatten(2)))
        gated = self.mul(lib, lib.silu(self.linear(self.gate, x), **form), self.linear(self.up, x))
        return self.add(lib, x, self.linear(self.down, gated))

    def mul(self, lib: Any, a: Tensor, b: Any) -> Tensor:
        if lib is F:
            return F.mul(a, b if isinstance(b, Tensor) else torch.tensor(b, dtype=a.dtype), form=self.form["form"])
        return a * b

    def add(self, lib: Any, a: Tensor, b: Tensor) -> Tensor:
        return F.add(a, b, **self.form) if lib is F else a + b


def lib_matmul(lib: Any, a: Tensor, b: Tensor, form: dict[str, Any]) -> Tensor:
    return F.matmul(a, b, **form) if lib is F else a @ b


@pytest.mark.parametrize("form", ["gradient", "explicit"])
def test_a_model_written_with_our_functions_equals_the_transformed_one(form: str) -> None:
    x = torch.randn(2, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    plain = Block(torch.nn.functional).double().eval()
    written = Block(F, form=form).double().eval()
    written.load_state_dict(plain.state_dict())
    explained = lxt_fx.transform(plain, (x,), form=form)  # type: ignore[arg-type]
    found = []
    for module in (explained, written):
        leaf = x.clone().requires_grad_()
        value = module(leaf)[0, 2, 3]
        value.backward(value.detach() if form == "explicit" else None)
        assert leaf.grad is not None
        found.append(leaf.grad)
    assert relative(found[1], found[0]) <= (1e-6 if form == "explicit" else 1e-9)  # the graph has an epsilon in its scales


NEEDED = {"pow": {"exponent": 3}, "exp_base": {"base": 0.3}}


@pytest.mark.parametrize("form", ["gradient", "explicit"])
@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_every_activation_has_a_door(name: str, form: str) -> None:
    """Of its own name, with the value and the relevance of its op; the explicit form has an epsilon where f(0) is not 0."""
    activation, given = BY_NAME[name], NEEDED.get(name, {})
    assert name in dir(F) and (getattr(F, name).__doc__ or "").endswith("(AttnLRP eq. 9).")
    assert getattr(F, name).__name__ == name
    x = torch.tensor([0.1, 0.25, 0.45, 0.75, 0.9], dtype=torch.float64) + (name == "acosh")  # which starts at 1
    leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    output, expected = getattr(F, name)(leaf, form=form, **given), activation.op(other, *given.values())
    plain = activation.aten(x, *given.values()) if activation.operand == "self" else activation.aten(*given.values(), x)
    assert torch.equal(output, expected) and torch.equal(output, plain)
    output.sum().backward() if form == "gradient" else output.backward(output.detach())
    expected.sum().backward()
    assert leaf.grad is not None and other.grad is not None and other.grad.any()
    relevance = x * leaf.grad if form == "gradient" else leaf.grad
    torch.testing.assert_close(relevance, x * other.grad, rtol=1e-4 if activation.at_zero else 1e-12, atol=0)


def test_settings_without_a_rule_are_refused() -> None:
    x = torch.randn(2, 4, requires_grad=True)
    with pytest.raises(lxt_fx.InputError, match="pow: exponent must be a number other than 0"):
        F.pow(x, 0)
    with pytest.raises(lxt_fx.InputError, match="exp_base: base must be above 0"):
        F.exp_base(x, -2.0)
    with pytest.raises(lxt_fx.InputError, match=r"hardtanh: 0 must be in the range \[0.5, 1.0\]"):
        F.hardtanh(x, 0.5)


def test_what_does_not_exist_is_refused() -> None:
    x = torch.randn(2, 4, requires_grad=True)
    with pytest.raises(lxt_fx.InputError, match="softmax: form must be one of gradient, explicit"):
        F.softmax(x, -1, form="fast")  # type: ignore[arg-type]
    with pytest.raises(lxt_fx.InputError, match="mean: epsilon must be at least 0"):
        F.mean(x, -1, epsilon=-1.0)


@pytest.mark.parametrize("form", ["gradient", "explicit"])
@pytest.mark.parametrize("carrying", ["qkv", "v", "qk", "q"])
def test_attention_gives_shares_to_what_carries(carrying: str, form: str) -> None:
    torch.manual_seed(0)
    given = {name: torch.randn(1, 2, 4, 3, dtype=torch.float64).requires_grad_(name in carrying) for name in "qkv"}
    output = F.sdpa(*given.values(), is_causal=True, epsilon=0.0, form=form)  # type: ignore[arg-type]
    relevance = torch.randn(output.shape, dtype=torch.float64)
    output.backward(relevance if form == "explicit" else relevance / output.detach())
    found = {name: (tensor.detach(), tensor.grad) for name, tensor in given.items() if name in carrying}
    got = {name: float((g if form == "explicit" else value * g).sum()) for name, (value, g) in found.items()}
    if "v" in carrying:
        assert abs(got["v"] - float(relevance.sum()) * (0.5 if "q" in carrying else 1.0)) <= 1e-9
    if "k" in carrying:
        assert abs(got["q"] - got["k"]) <= 1e-9


def test_divide_gradient_makes_a_plain_product_that_of_the_rule() -> None:
    """`matmul` gives half to each factor (AttnLRP prop. 3.3); a plain product gives all of it to each."""
    a, b = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    plain, rule = F.divide_gradient(a @ b.T, 2), F.matmul(a, b.T, form="gradient")
    assert torch.equal(plain, rule)
    seed = torch.randn_like(plain)
    for one, other in zip(torch.autograd.grad(plain, (a, b), seed), torch.autograd.grad(rule, (a, b), seed), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    for wrong in (0, True, "2"):
        with pytest.raises(lxt_fx.InputError, match="factor must be a number other than 0"):
            F.divide_gradient(a, wrong)  # type: ignore[arg-type]
