"""Rule modules are torch's own with rules behind them; rule wrappers do what their formula says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from golden_cases import FOLDER, relative
from safetensors.torch import load_file
from torch import Tensor, nn

import lxt_fx

TENSORS = load_file(FOLDER / "functional.safetensors")
MODULES: dict[str, tuple[tuple[Any, ...], tuple[int, ...]]] = {
    "Linear": ((4, 5), (2, 3, 4)),
    "Softmax": ((1,), (2, 3, 4)),
    "RMSNorm": (((3, 4),), (2, 3, 4)),
    "LayerNorm": ((4,), (2, 3, 4)),
    "GroupNorm": ((2, 6), (2, 6, 4)),
    "SiLU": ((), (2, 3)),
    "GELU": (("tanh",), (2, 3)),
    "ReLU": ((), (2, 3)),
    "Tanh": ((), (2, 3)),
    "Sigmoid": ((), (2, 3)),
    "LeakyReLU": ((0.2,), (2, 3)),
    "ELU": ((0.7,), (2, 3)),
    "Mish": ((), (2, 3)),
    "Hardswish": ((), (2, 3)),
    "Hardsigmoid": ((), (2, 3)),
    "LogSigmoid": ((), (2, 3)),
    "Hardtanh": ((-0.5, 0.7), (2, 3)),
    "ReLU6": ((), (2, 3)),
    "Softplus": ((), (2, 3)),
    "Conv1d": ((4, 6, 3, 2, 1, 1, 2), (2, 4, 9)),
    "Conv2d": ((3, 4, (3, 2), (2, 1), (1, 0), (1, 2)), (2, 3, 7, 6)),
    "Conv3d": ((2, 4, 2), (2, 2, 4, 3, 5)),
    "BatchNorm1d": ((4,), (3, 4, 5)),
    "BatchNorm2d": ((4,), (3, 4, 5, 2)),
    "BatchNorm3d": ((2,), (3, 2, 2, 2, 2)),
}


def pair(name: str, *arguments: Any, **given: Any) -> tuple[nn.Module, nn.Module]:
    """Torch's module and ours with the same parameters, in float64."""
    torch.manual_seed(0)
    plain = getattr(nn, name)(*arguments, **given).double().eval()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.normal_()
    ours = getattr(lxt_fx.nn, name)(*arguments, **given).double().eval()
    ours.load_state_dict(plain.state_dict())
    assert ours.state_dict().keys() == plain.state_dict().keys()
    return plain, ours


def relevance(module: Callable[..., Tensor], x: Tensor, form: str, seed: Tensor | None = None) -> Tensor:
    """The relevance of x for the sum of seed * output, as the form reads it."""
    leaf = x.clone().requires_grad_()
    output = module(leaf)
    weights = torch.linspace(1, 2, output.numel(), dtype=output.dtype).reshape(output.shape) if seed is None else seed
    output.backward(weights if form == "gradient" else weights * output.detach())
    assert leaf.grad is not None
    return leaf.detach() * leaf.grad if form == "gradient" else leaf.grad


@pytest.mark.parametrize("form", ["gradient", "explicit"])
@pytest.mark.parametrize("name", MODULES)
def test_a_module_computes_what_torchs_does_and_gives_what_the_compiler_gives(name: str, form: str) -> None:
    arguments, shape = MODULES[name]
    plain, ours = pair(name, *arguments)
    lxt_fx.nn.use(ours, form=form, epsilon=0.0)  # type: ignore[arg-type]
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(ours(x), plain(x), rtol=1e-12, atol=1e-12)
    explained = lxt_fx.transform(plain, (x,))
    assert relative(relevance(ours, x, form), relevance(explained, x, "gradient")) <= 1e-9
    assert all(parameter.grad is None for parameter in ours.parameters())


@pytest.mark.parametrize("form", ["gradient", "explicit"])
@pytest.mark.parametrize("case", ["plain", "batch first", "causal", "padded", "separate", "no batch", "no bias"])
def test_multihead_attention_is_torchs_with_rules(case: str, form: str) -> None:
    given: dict[str, Any] = {"batch_first": case == "batch first", "bias": case != "no bias"}
    plain, ours = pair("MultiheadAttention", 8, 2, **given, **({"kdim": 5, "vdim": 6} if case == "separate" else {}))
    lxt_fx.nn.use(ours, form=form, epsilon=0.0)  # type: ignore[arg-type]
    shape = (4, 8) if case == "no batch" else (4, 3, 8)
    masks: dict[str, Tensor] = {}
    if case == "causal":
        masks["attn_mask"] = torch.ones(4, 4, dtype=torch.bool).triu(1)
    if case == "padded":
        masks["key_padding_mask"] = torch.tensor([[False] * 4, [False] * 3 + [True], [False, True, True, True]])
    x = torch.randn(shape, dtype=torch.float64)
    widths = (5, 6) if case == "separate" else (8, 8)
    others = [torch.randn(*shape[:-1], width, dtype=torch.float64) for width in widths]

    def inputs(query: Tensor) -> tuple[Tensor, ...]:
        return (query, *others) if case == "separate" else (query, query, query)

    for wanted in (True, False):
        found, expected = (module(*inputs(x), need_weights=wanted, **masks) for module in (ours, plain))
        torch.testing.assert_close(found[0], expected[0], rtol=1e-9, atol=1e-12)
        assert (found[1] is None) == (expected[1] is None) == (not wanted)
        if wanted:
            torch.testing.assert_close(found[1], expected[1], rtol=1e-9, atol=1e-12)

    class Net(nn.Module):
        def __init__(self, attention: nn.Module) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, query: Tensor) -> Tensor:
            return self.attention(*inputs(query), need_weights=False, **masks)[0]

    explained = lxt_fx.transform(Net(plain).eval(), (x,), dynamic=False)
    assert relative(relevance(Net(ours), x, form), relevance(explained, x, "gradient")) <= 1e-9


def golden(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor, dict[str, Tensor]]:
    """Inputs, constants, relevance at the output, and at the inputs, as LXT's rules gave it."""
    parts: dict[str, dict[str, Tensor]] = {"in": {}, "const": {}, "rel_in": {}}
    for key, value in TENSORS.items():
        case, kind, *rest = key.split("/")
        if case == name and kind in parts:
            parts[kind][rest[0]] = value
    return parts["in"], parts["const"], TENSORS[f"{name}/rel_out"], parts["rel_in"]


WRAPPERS: dict[str, Callable[[dict[str, Tensor]], nn.Module]] = {
    "rule_identity_silu": lambda const: lxt_fx.nn.Identity(nn.functional.silu),
    "rule_epsilon_linear": lambda const: lxt_fx.nn.Epsilon(layer(const), 1e-8),
    "rule_epsilon_tanh": lambda const: lxt_fx.nn.Epsilon(torch.tanh, 1e-8),
    "rule_epsilon_matmul": lambda const: lxt_fx.nn.Epsilon(torch.matmul, 1e-8),
    "rule_uniform_epsilon_matmul": lambda const: lxt_fx.nn.UniformEpsilon(torch.matmul, 1e-6),
    "rule_uniform_mul": lambda const: lxt_fx.nn.Uniform(torch.mul),
}


def layer(const: dict[str, Tensor]) -> nn.Linear:
    linear = nn.Linear(6, 5).double()
    linear.load_state_dict(const)
    return linear


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapper_gives_what_lxts_rule_gives(name: str) -> None:
    """LXT's epsilon has no sign, hence the tolerance where there is one."""
    inputs, const, at_output, expected = golden(name)
    wrapper = lxt_fx.nn.use(WRAPPERS[name](const), form="explicit", epsilon=1e-8 if "epsilon" in name else None)
    leaves = {key: value.clone().requires_grad_() for key, value in inputs.items()}
    output = wrapper(*leaves.values())
    assert relative(output.detach(), TENSORS[f"{name}/out"]) <= 1e-12
    output.backward(at_output)
    for key, leaf in leaves.items():
        assert leaf.grad is not None
        assert relative(leaf.grad, expected[key]) <= (1e-4 if "epsilon" in name else 1e-9)
    assert all(parameter.grad is None for parameter in wrapper.parameters())


def test_epsilon_and_identity_have_a_fast_form_and_stop_has_no_gradient() -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(4, 3).double(), torch.randn(2, 4, dtype=torch.float64)
    found = {}
    for form in ("gradient", "explicit"):
        for kind in (lxt_fx.nn.Epsilon(linear, 0.1), lxt_fx.nn.Identity(nn.functional.silu)):
            epsilon = 0.1 if isinstance(kind, lxt_fx.nn.Epsilon) else None
            wrapper = lxt_fx.nn.use(kind, form=form, epsilon=epsilon)  # type: ignore[arg-type]
            found[form, type(kind).__name__] = relevance(wrapper, x, form)
    for name in ("Epsilon", "Identity"):
        assert relative(found["gradient", name], found["explicit", name]) <= 1e-9
    assert not lxt_fx.nn.Stop(linear)(x.requires_grad_()).requires_grad


@pytest.mark.parametrize("bias", [True, False])
def test_taylor_expands_at_its_reference(bias: bool) -> None:
    """f(x) = x^3 at x0 = 2: J = 12, so R = (x - 2) 12 R / z with z = x^3, or 12 (x - 2) without bias."""
    x, at_output = torch.tensor([1.0, 3.0, -1.0]).double(), torch.tensor([1.0, 2.0, 4.0]).double()
    wrapper = lxt_fx.nn.Taylor(lambda x: x**3, 2.0, bias=bias, epsilon=0.0)
    wrapper.form = "explicit"
    leaf = x.clone().requires_grad_()
    output = wrapper(leaf)
    assert output.tolist() == (x**3).tolist()
    output.backward(at_output)
    assert leaf.grad is not None
    z = x**3 if bias else 12 * (x - 2)
    torch.testing.assert_close(leaf.grad, (x - 2) * 12 * at_output / z)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize("rule", ["uniform", "taylor"])
def test_the_gradient_form_of_a_wrapper_gives_its_explicit_relevance_and_nothing_where_the_input_is_0(
    rule: str, dtype: torch.dtype
) -> None:
    x = torch.tensor([[1.0, -2.0, 0.0, 1e-3, 3.0]], dtype=dtype)
    other = torch.linspace(1, 2, 5, dtype=dtype)
    made = {"uniform": lxt_fx.nn.Uniform(lambda a: a * other), "taylor": lxt_fx.nn.Taylor(lambda a: a**2 + 1, 0.5)}[rule]
    found = [relevance(lxt_fx.nn.use(made, form=form), x, form) for form in ("gradient", "explicit")]  # type: ignore[arg-type]
    assert bool(found[0].isfinite().all()) and float(found[0][0, 2]) == 0
    expected = torch.where(x == 0, 0, found[1])
    torch.testing.assert_close(found[0], expected, rtol=1e-5 if dtype is torch.float64 else 2e-2, atol=1e-2)


def test_uniform_of_a_product_is_the_function_for_it() -> None:
    a, b = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    by_wrapper = torch.autograd.grad(lxt_fx.nn.Uniform(torch.mul)(a, b).sum(), (a, b))
    by_function = torch.autograd.grad(lxt_fx.functional.mul(a, b).sum(), (a, b))
    for found, expected in zip(by_wrapper, by_function, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("form", ["gradient", "explicit"])
def test_einsum_gives_an_equal_part_to_each_operand(form: str) -> None:
    a, b = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 4, 5, dtype=torch.float64)

    def contracted(x: Tensor, y: Tensor) -> Tensor:
        return lxt_fx.functional.einsum("bij,bjk->bik", x, y, epsilon=0.0, form=form)  # type: ignore[arg-type]

    other = b.clone().requires_grad_()
    whole = relevance(lambda x: lxt_fx.functional.matmul(x, other, epsilon=0.0, form=form), a, form)  # type: ignore[arg-type]
    torch.testing.assert_close(relevance(lambda x: contracted(x, other), a, form), whole)
    torch.testing.assert_close(relevance(lambda x: contracted(x, b), a, form), 2 * whole)


def test_what_a_rule_cannot_serve_is_refused() -> None:
    x = torch.randn(2, 4, requires_grad=True)
    with pytest.raises(lxt_fx.InputError, match="has no module of lxt_fx.nn"):
        lxt_fx.nn.use(nn.Linear(2, 2))
    with pytest.raises(lxt_fx.InputError, match="form must be one of"):
        lxt_fx.nn.use(lxt_fx.nn.Linear(2, 2), form="fast")  # type: ignore[arg-type]
    with pytest.raises(lxt_fx.InputError, match="around a module or a function, got int"):
        lxt_fx.nn.Epsilon(3)  # type: ignore[arg-type]
    with pytest.raises(lxt_fx.InputError, match="does not broadcast"):
        lxt_fx.nn.Uniform(lambda a, b: (a * b).sum(-1))(x, x)
    with pytest.raises(lxt_fx.InputError, match="BatchNorm1d: it uses batch statistics.*call eval"):
        lxt_fx.nn.BatchNorm1d(4)(x)
    with pytest.raises(lxt_fx.InputError, match="Softplus: beta 2 and threshold 20.0 have no rule"):
        lxt_fx.nn.Softplus(beta=2)(x)
    with pytest.raises(lxt_fx.InputError, match="shapes must be equal"):
        lxt_fx.nn.Identity(nn.Linear(4, 2))(x)
    with pytest.raises(lxt_fx.InputError, match="must return one tensor, got tuple"):
        lxt_fx.nn.Stop(lambda a: (a, a))(x)
    with pytest.raises(lxt_fx.InputError, match="give dim"):
        lxt_fx.nn.Softmax()(x)
    attention = lxt_fx.nn.MultiheadAttention(4, 2, dropout=0.1)
    with pytest.raises(lxt_fx.InputError, match="dropout is on"):
        attention(x, x, x)
    with pytest.raises(lxt_fx.InputError, match="add_bias_kv"):
        lxt_fx.nn.MultiheadAttention(4, 2, add_bias_kv=True).eval()(x, x, x)
