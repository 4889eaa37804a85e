"""The functions of torch that a gradient passes: each has a rule, or is written out in ops that have one, or is listed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import op_probe
import pytest
import torch
from torch import Tensor, nn

import lxt_fx


class Probe(nn.Module):
    """Each function on numbers of its own."""

    def __init__(self, functions: Sequence[Any]) -> None:
        super().__init__()
        self.functions = functions
        self.parts = nn.ModuleList(f for f in functions if isinstance(f, nn.Module))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [function(x[index]) for index, function in enumerate(self.functions)]


def projection(outputs: Any) -> Tensor:
    """A fixed weighted sum of all outputs, [1]."""
    parts = [(y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)).sum() for y in outputs]
    return torch.stack(parts).sum().unsqueeze(0)


def relevance(module: nn.Module, x: Tensor, *, explicit: bool = False) -> Tensor:
    """x * gradient of the projection; for the explicit form what flows back from its parts."""
    leaf = x.clone().requires_grad_()
    outputs = module(leaf)
    if not explicit:
        (gradient,) = torch.autograd.grad(projection(outputs), leaf)
        return x * gradient
    seeds = [torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape) * y.detach() for y in outputs]
    return torch.autograd.grad(list(outputs), leaf, seeds)[0]


def check(functions: dict[str, Any], x: Tensor) -> None:
    """Strict, both forms, the ledger and the plain gradient."""
    names, net = list(functions), Probe(list(functions.values())).double().eval()
    explained = lxt_fx.transform(net, (x,))
    fast = relevance(explained, x)
    exact = relevance(lxt_fx.transform(explained, (x,), form="explicit", epsilon=0.0), x, explicit=True)
    plain, own = relevance(lxt_fx.transform(explained, (x,), rules="gradient"), x), relevance(net, x)
    for index, name in enumerate(names):
        assert fast[index].isfinite().all(), name
        assert torch.allclose(fast[index], exact[index], rtol=1e-5, atol=1e-7), f"the forms of {name} differ"
        assert torch.allclose(plain[index], own[index], rtol=1e-8, atol=1e-10), f"{name} has another gradient"
    ledger = lxt_fx.audit(explained, x, projection)
    assert not ledger.faults() and float(ledger.residual.abs().max()) < 1e-6 * float(ledger.scale().max())


def drawn(shape: Sequence[int]) -> Tensor:
    """Normal numbers, in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


LATER = {"quantile", "x.ldexp_", "aminmax"} if torch.__version__ < "2.7" else set()
"""What torch 2.6 does not do: the first reads a value where sizes are free, the others have no derivative there."""


@pytest.mark.parametrize("group", op_probe.GROUPS)
def test_every_function_has_a_rule_and_its_forms_ledger_and_gradient_are_right(group: str) -> None:
    shape, functions = op_probe.GROUPS[group]
    functions = {name: function for name, function in functions.items() if name not in LATER}
    check(functions, drawn((len(functions), *shape)))


@pytest.mark.parametrize("shape", [(2, 6, 8), (2, 4, 8, 8)], ids=str)
def test_every_module_has_rules(shape: tuple[int, ...]) -> None:
    modules = {name: make() for name, (own, make) in op_probe.MODULES.items() if own == shape}
    check(modules, drawn((len(modules), *shape)))


def test_a_function_that_torch_adds_is_probed_or_listed() -> None:
    names = op_probe.functions_of_torch()
    assert len(names) > 200 and not names - op_probe.covered() - op_probe.listed()
    assert not op_probe.listed() & op_probe.covered()


def test_the_page_lists_them() -> None:
    """If it does not: `python tests/op_probe.py`."""
    assert op_probe.PAGE.read_text(encoding="utf-8") == op_probe.page()


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.linalg.inv(x[:, :, :6]),
        lambda x: torch.linalg.det(x[:, :, :6]),
        lambda x: torch.linalg.solve(x[:, :, :6], x),
        lambda x: x ** torch.arange(8),
        lambda x: torch.cdist(x.repeat(1, 5, 1), x.repeat(1, 5, 1)),
    ],
)  # fmt: skip
def test_what_the_page_says_has_no_rule_is_refused(function: Any) -> None:
    with pytest.raises(lxt_fx.NoRuleError, match="not written out"):
        lxt_fx.transform(Probe([function]), (drawn((1, 2, 6, 8)),))
