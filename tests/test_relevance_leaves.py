"""One answer to the question which inputs carry relevance: transform, fused graph, checkpoints, certificate, files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Interpreter

import lxt_fx
from lxt_fx.passes.analysis.relevance_leaves import relevance_leaves
from lxt_fx.report.relevance_path import flow_that_runs


class Gated(nn.Module):
    """Two linear maps, and a function of both with a float mask [batch, tokens]."""

    def __init__(self, function: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.function = nn.Linear(4, 4), nn.Linear(4, 4), function

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.function(self, x, mask)


def attended(net: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    bias = ((1.0 - mask) * -1e4)[:, None, None, :]
    q, k = net.a(x)[:, None], net.b(x)[:, None]
    return nn.functional.scaled_dot_product_attention(q, k, k, attn_mask=bias)[:, 0]


NETS: dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor]] = {
    "tanh": lambda net, x, mask: net.a(x) * net.b(x).sigmoid() + torch.tanh((1 - mask) * 3)[..., None] * net.a(x),
    "product": lambda net, x, mask: net.a(x) * mask[..., None],
    "product of its own": lambda net, x, mask: net.a(x) * (mask * mask).sin()[..., None] * net.b(x),
    "sum": lambda net, x, mask: torch.relu(net.a(x) + net.b(mask[..., None].expand_as(x))),
    "softmax": lambda net, x, mask: (net.a(x) @ net.b(x).mT + (mask - 1)[:, None] * 50).softmax(-1) @ x,
    "attention": attended,
    "mean": lambda net, x, mask: (net.a(x) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).exp(),
    "gate": lambda net, x, mask: torch.nn.functional.silu(net.a(x) + mask[..., None]) * net.b(x),
}


def inputs() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    mask = torch.ones(2, 5, dtype=torch.float64)
    mask[0, 3:] = 0
    return torch.randn(2, 5, 4, dtype=torch.float64), mask


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("form", ["gradient", "explicit"])
def test_every_part_has_the_same_leaves_and_the_certificate_is_proven(name: str, form: str, tmp_path: Path) -> None:
    x, mask = inputs()
    explained = lxt_fx.transform(Gated(NETS[name]).double().eval(), (x, mask), form=form, checkpoint=1)  # type: ignore[arg-type]
    lxt_fx.save(explained, tmp_path / "net.safetensors")
    for module in (explained, lxt_fx.load(tmp_path / "net.safetensors")):
        assert module.record.leaves == ("x",)
        for graph in (module.graph, module.fused):
            assert [node.target for node in relevance_leaves(graph)] == ["x"]
        assert {node.name for node in flow_that_runs(module).carrying} == module.record.stages["lowered"].carrying
        found = lxt_fx.certificate(module)
        assert found.proven, found.not_proven
        assert found.leaves == ("x",) and not any("please report" in each.why for each in found.not_proven)
        assert _gradients(module, x, mask)[1] is None  # nothing that could be taken for relevance
    plain, node_by_node = _gradients(explained, x, mask), _gradients(explained, x, mask, fused=False)
    torch.testing.assert_close(plain[0], node_by_node[0], rtol=1e-10, atol=1e-12)


def _gradients(module: lxt_fx.Explained, x: Tensor, mask: Tensor, *, fused: bool = True) -> tuple[Tensor | None, ...]:
    leaves = {"x": x.clone().requires_grad_(True), "mask": mask.clone().requires_grad_(True)}
    y = module(**leaves) if fused else module._run_by(Interpreter(module), leaves)
    (y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)).sum().backward()
    return leaves["x"].grad, leaves["mask"].grad


def test_a_mask_alone_is_a_leaf_and_the_name_of_a_mask_is_only_a_guess() -> None:
    class Alone(nn.Module):
        def forward(self, soft_mask: Tensor) -> Tensor:
            return soft_mask * 2

    class Features(nn.Module):
        def forward(self, x: Tensor, soft_mask: Tensor) -> Tensor:
            return x * soft_mask

    mask = torch.rand(2, 3)
    assert lxt_fx.transform(Alone(), (mask,)).record.leaves == ("soft_mask",)
    assert lxt_fx.transform(Features(), (mask, mask)).record.leaves == ("x",)
