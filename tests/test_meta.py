"""Models on the meta device, with shapes and no values, go through every stage; their certificate says what it lacks."""

from __future__ import annotations

import json
import math

import pytest
import torch
from rounding import ROUNDINGS
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

import lxt_fx
from lxt_fx.passes.analysis.find_groups import find_groups
from lxt_fx.passes.analysis.mark_flow import mark_flow

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def llama() -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2)).eval()


def moe() -> nn.Module:
    experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **experts, num_key_value_heads=2)).eval()


class GeluByHand(nn.Module):
    """A GELU in many ops, whose value at 0 must be measured."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        return self.second(0.5 * h * (1 + torch.tanh(0.79788456 * (h + 0.044715 * h**3))))


def rules_of(explained: lxt_fx.Explained) -> list[str]:
    return [rule.name for rule in explained.record.stages["lowered"].rules.values() if rule.name != "move"]


@pytest.mark.parametrize("make", [moe, pytest.param(llama, marks=pytest.mark.slow("an MLP in the place of experts"))])
def test_a_model_on_meta_goes_through_every_stage(make: object) -> None:
    with torch.device("meta"):
        model = make()
    explained = lxt_fx.transform(model)
    assert math.isnan(explained.record.forward_difference)
    assert tuple(explained.record.stages) == ("capture", "canonical", "groups", "rules", "lowered", "fused")
    certificate = lxt_fx.certificate(explained)
    assert "forward       not compared: meta device\n" in certificate.summary()
    whats = ("the forward", "the gradient before any rule")
    assert [point.why for point in certificate.not_proven] == [f"{what} was not compared: meta device" for what in whats]
    assert not certificate.proven
    assert json.loads(json.dumps(certificate.to_dict(), allow_nan=False))["forward_difference"] is None
    assert "lxt_fx.linear" in lxt_fx.show(explained)
    assert rules_of(explained) == rules_of(lxt_fx.transform(make()))
    assert all(parameter.is_meta for parameter in explained.parameters())
    assert explained(inputs_embeds=torch.zeros(1, 5, 32, device="meta")).logits.shape == (1, 5, 64)


def test_another_table_takes_a_graph_on_meta_over() -> None:
    with torch.device("meta"):
        explained = lxt_fx.transform(llama())
    inputs = {"inputs_embeds": torch.zeros(2, 5, 32, device="meta")}
    other = lxt_fx.transform(explained, kwargs=inputs, rules="cp_lrp", form="explicit")
    assert other.record.table_name == "cp_lrp" and math.isnan(other.record.forward_difference)


def test_regions_of_many_ops_are_measured_at_zero_without_the_models_values() -> None:
    with torch.device("meta"):
        explained = lxt_fx.transform(GeluByHand(), (torch.zeros(2, 4),))
    assert "identity" in rules_of(explained)
    assert rules_of(explained) == rules_of(lxt_fx.transform(GeluByHand().eval(), (torch.zeros(2, 4),)))


def test_a_constant_without_a_value_makes_no_region() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.full((1,), 1.702))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.sigmoid(self.scale * x)

    found = []
    for device in ("cpu", "meta"):
        module = Scaled().to(device)
        gm = torch.export.export(module, (torch.zeros(2, 4, device=device),)).module()
        flow = mark_flow(gm, [node for node in gm.graph.nodes if node.op == "placeholder"])
        found.append(len(find_groups(gm, flow).by_root))
    assert found == [1, 0]


def test_a_model_on_cpu_is_compared_as_before() -> None:
    explained = lxt_fx.transform(llama())
    assert explained.record.forward_difference <= ROUNDINGS
    said = "bit-equal to" if explained.record.forward_difference == 0 else "within"
    assert said in lxt_fx.certificate(explained).summary()
