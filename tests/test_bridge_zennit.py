"""Composites of zennit as tables and back, on whole nets; pictures of our relevance."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_text
import torch
import zennit_rules
from golden_cases import relative
from test_zennit import NETS, settled
from torch import Tensor, nn

import lxt_fx
from lxt_fx.bridges import zennit

pytestmark = pytest.mark.skipif(zennit_rules.SPEC is None, reason="zennit is not installed")

X = torch.randn(2, 3, 12, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def merging() -> list[Any]:
    return [zennit_rules.module("canonizers").SequentialMergeBatchNorm()]


def both(composite: Any, net: nn.Module, x: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Relevance under a composite of zennit, and under the table that it becomes, of the first class of each example."""
    explained = lxt_fx.transform(net, (x,), rules=zennit.table(composite, net), epsilon=epsilon, dynamic=False)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(explained(leaf)[:, 0].sum(), leaf)
    z = net(x).detach()
    of_output = torch.zeros_like(z)
    of_output[:, 0] = z[:, 0]
    return x * gradient, zennit_rules.relevance_of_net(composite, net, x, of_output)


COMPOSITES: dict[str, dict[str, Any]] = {
    "EpsilonPlus": {},
    "EpsilonPlusFlat": {"epsilon": 1e-3, "stabilizer": 1e-5},
    "EpsilonAlpha2Beta1": {},
    "EpsilonAlpha2Beta1Flat": {},
    "EpsilonGammaBox": {"low": -3.0 * torch.ones(1, 3, 12, 8), "high": 4.0 * torch.ones(1, 3, 12, 8), "gamma": 0.7},
    "ExcitationBackprop": {"zero_params": "bias"},
}


@pytest.mark.parametrize("name", COMPOSITES)
def test_a_composite_becomes_a_table_with_its_numbers(name: str) -> None:
    """Zennit's own example with one line changed: `with composite.context(net) as modified` is `transform(rules=...)`."""
    torch.manual_seed(0)
    net = settled(NETS["straight"]())
    composite = getattr(zennit_rules.module("composites"), name)(canonizers=merging(), **COMPOSITES[name])
    ours, theirs = both(composite, net, X, COMPOSITES[name].get("stabilizer", 1e-6))
    assert relative(ours, theirs) < 1e-6


def test_names_first_layers_and_mixed_composites_are_asked_as_zennit_asks_them() -> None:
    rules, composites = zennit_rules.rules(), zennit_rules.module("composites")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.Sigmoid(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double().eval()
    x = torch.randn(4, 6, dtype=torch.float64)
    mixed = composites.MixedComposite(
        [
            composites.SpecialFirstLayerMapComposite([], first_map=[((nn.Linear,), rules.WSquare())]),
            composites.NameLayerMapComposite(
                name_map=[(("2",), rules.AlphaBeta(3.0, 2.0))],
                layer_map=[((nn.Linear,), rules.Gamma(0.3)), ((nn.Sigmoid, nn.ReLU), rules.Pass())],
            ),
        ]
    )
    table = zennit.table(mixed, net)
    explained = lxt_fx.transform(net, (x,), rules=table)
    used = [rule.name for rule in explained.record.stages["rules"].rules.values()]
    assert used == ["w-square", "identity", "alpha-beta", "identity", "gamma"]
    ours, theirs = both(mixed, net, x)
    assert relative(ours, theirs) < 1e-8


def test_a_table_becomes_a_composite_with_its_numbers() -> None:
    torch.manual_seed(0)
    net = settled(NETS["residual"]())
    explained = lxt_fx.transform(net, (X,), rules="epsilon_plus", epsilon=1e-6, dynamic=False)
    made = zennit.composite(explained)
    leaf = X.clone().requires_grad_()
    output = explained(leaf)
    (gradient,) = torch.autograd.grad(output[:, 0].sum(), leaf)
    of_output = torch.zeros_like(output)
    of_output[:, 0] = output[:, 0].detach()
    assert relative(X * gradient, zennit_rules.relevance_of_net(made, net, X, of_output)) < 1e-6
    again, _ = both(made, net, X)
    assert relative(again, X * gradient) < 1e-9


class Sums(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + x


def test_what_one_side_does_not_have_is_refused_by_name() -> None:
    rules, composites = zennit_rules.rules(), zennit_rules.module("composites")
    core, canonizers = zennit_rules.module("core"), zennit_rules.module("canonizers")
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU())

    def layers(*pairs: Any, **options: Any) -> Any:
        return composites.LayerMapComposite(list(pairs), **options)

    for composite, said in (
        (layers(((nn.ReLU,), rules.ReLUGuidedBackprop())), "ReLUGuidedBackprop at 2 is no rule here"),
        (layers(((nn.Linear,), rules.Epsilon(core.Stabilizer(1e-6, clip=True)))), "the stabilizer of Epsilon clips"),
        (layers(((nn.Linear,), rules.Epsilon(lambda z: z))), "a function of its own"),
        (layers(((nn.Linear,), rules.Gamma(zero_params="bias"))), "Gamma sets .*bias.* to zero"),
        (layers(((nn.BatchNorm1d,), rules.Pass())), "1 is a batch norm with Pass"),
        (layers(((nn.Sequential,), rules.Epsilon())), "Epsilon is on the model, which has modules inside"),
        (composites.NameMapComposite([(("3",), rules.Epsilon())]), "no rule for any module of Sequential.* It has 0, 1, 2"),
        ("epsilon_plus", "composite must be a composite of zennit, as EpsilonPlus.., got 'epsilon_plus'"),
        (layers(canonizers=[canonizers.AttributeCanonizer(lambda name, module: None)]), "canonizer AttributeCanonizer"),
    ):
        with pytest.raises(lxt_fx.InputError, match=said):
            zennit.table(composite, net)
    x = torch.randn(2, 3)
    with pytest.raises(lxt_fx.InputError, match="%add is not the one op of a module of its own"):
        zennit.composite(lxt_fx.transform(Sums().eval(), (x,)))
    norm = lxt_fx.transform(nn.Sequential(nn.LayerNorm(3)).eval(), (x,))
    with pytest.raises(lxt_fx.InputError, match="zennit has no rule 'norm'"):
        zennit.composite(norm)


def test_imgify_draws_our_relevance() -> None:
    zennit_rules.module("image")
    explanation = lxt_fx.explain_image(tiny_text.vit(), torch.randn(1, 3, 8, 8), 1)
    image = zennit.imgify(explanation)
    assert image.size == (8, 8) and image.mode == "P"
    values = explanation.relevance
    strongest = int(values.flatten().argmax())
    assert image.convert("RGB").getpixel((strongest % 8, strongest // 8))[0] > 200
    assert zennit.imgify(torch.randn(3, 4, 5), level=2.0).size == (5, 4)
    with pytest.raises(lxt_fx.InputError, match="give the explanation of one number of a picture"):
        zennit.imgify(lxt_fx.explain(tiny_text.llama(20), None, [1, 2, 3]))
    with pytest.raises(lxt_fx.InputError, match=r"one picture, as relevance\[0\], got \[2, 3, 4, 5\]"):
        zennit.imgify(torch.randn(2, 3, 4, 5))
