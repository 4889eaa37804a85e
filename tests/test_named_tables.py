"""The named tables: which rule serves which layer, and relevance equal to that of the papers' own gradient tricks."""

from __future__ import annotations

import re
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from golden_cases import relative
from rounding import assert_same
from shared_captures import each_model, one_worker
from shared_captures import explained as compiled
from torch import Tensor, nn
from transformers import MambaConfig, MambaForCausalLM

import lxt_fx
from lxt_fx.base.nodes import module_path
from lxt_fx.rule_table import linear_rules, tables

EMBEDS = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def rules_by_module(explained: lxt_fx.Explained, op: str) -> dict[str, str]:
    """The rule of each node whose op has that name, by its module's path inside the layer."""
    stage = explained.record.stages["rules"]
    nodes = [n for n in stage.graph.nodes if n.name in stage.rules and op in str(n.target)]
    return {re.sub(r"^.*\.\d+\.", "", module_path(n)): stage.rules[n.name].name for n in nodes}


def relevance(explained: lxt_fx.Explained, name: str, leaf: Tensor, weights: Tensor) -> Tensor:
    """leaf * gradient of a weighted sum of the logits."""
    leaf = leaf.clone().requires_grad_()
    output = explained(**{name: leaf})
    logits = output if isinstance(output, Tensor) else output.logits
    (gradient,) = torch.autograd.grad((logits * weights).sum(), leaf)
    return leaf.detach() * gradient


@one_worker("vit")
@pytest.mark.parametrize(("name", "attention"), [("attnlrp_gamma", "sdpa"), ("cp_lrp_gamma", "eager")])
def test_gamma_tables_use_epsilon_beside_attentions_and_at_the_end(name: str, attention: str) -> None:
    explained = compiled("vit", attention=attention, rules=name)
    found = rules_by_module(explained, "linear")
    beside = {"attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj"}
    held = {"attention.q_proj", "attention.k_proj"} if name == "cp_lrp_gamma" else set()
    assert {m: rule for m, rule in found.items() if m in beside} == dict.fromkeys(
        beside - held, "epsilon (attention projection)"
    )
    assert {rule for m, rule in found.items() if "fc" in m} == {"gamma"} and len([m for m in found if "fc" in m]) == 2
    assert found["classifier"] == "epsilon (last linear map)"
    convolutions = rules_by_module(explained, "conv")
    assert set(convolutions.values()) == {"gamma"}
    assert "gamma=0.25" in lxt_fx.show(explained) and "gamma=0.05" in lxt_fx.show(explained)
    lxt_fx.audit(explained, torch.randn(2, 1, 8, 8), 1).check()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model", each_model(["llama", "gemma3", "gpt2", "bert"]))
def test_projections_are_found_through_rotary_embeddings_and_norms(model: str, attention: str) -> None:
    table = tables.attnlrp_gamma(linear=0.1)
    found = rules_by_module(compiled(model, attention=attention, rules=table), "linear")
    projections = {m for m, rule in found.items() if rule == "epsilon (attention projection)"}
    wanted = {
        "llama": {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"},
        "gemma3": {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"},
        "gpt2": {"attn.c_attn", "attn.c_proj"},
        "bert": {"attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"},
    }[model]
    assert projections == wanted
    assert {rule for m, rule in found.items() if "mlp" in m or m in ("intermediate.dense", "output.dense")} == {"gamma"}
    assert {rule for m, rule in found.items() if m in ("lm_head", "classifier")} == {"epsilon (last linear map)"}


def held(x: Tensor) -> Tensor:
    return x.detach()


def halved(x: Tensor) -> Tensor:
    """Half of the gradient."""
    return x / 2 + (x / 2).detach()


class Block(nn.Module):
    """A norm, an attention, a gate and a residual, with the tricks of the papers switched on or off."""

    def __init__(self, tricks: frozenset[str] = frozenset()) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v, self.o = (nn.Linear(32, 32, bias=False) for _ in range(4))
        self.gate, self.up, self.down = nn.Linear(32, 48), nn.Linear(32, 48), nn.Linear(48, 32)
        self.tricks = tricks

    def norm(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return x * (held(scale) if "norm" in self.tricks else scale)

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm(x)
        weights = torch.softmax(self.q(n) @ self.k(n).mT / 6, -1)
        x = x + self.o((held(weights) if "attention" in self.tricks else weights) @ self.v(n))
        n = self.norm(x)
        before = self.gate(n)
        gate = before * held(torch.sigmoid(before)) if "identity" in self.tricks else F.silu(before)
        product = gate * self.up(n)
        return x + self.down(halved(product) if "half" in self.tricks else product)


@pytest.mark.parametrize(
    ("table", "tricks"),
    [
        ("relp", {"norm", "attention", "identity", "half"}),
        ("libragrad", {"norm", "attention", "identity", "half"}),
        ("frozen_attention", {"norm", "attention"}),
        ("gradient", set()),
    ],
)
def test_tables_equal_the_gradient_tricks_of_their_papers(table: str, tricks: set[str]) -> None:
    """Measured: 2e-16."""
    weights = torch.randn(2, 5, 32, dtype=torch.float64)
    tricked = Block(frozenset(tricks)).double()
    leaf = EMBEDS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((tricked(leaf) * weights).sum(), leaf)
    explained = lxt_fx.transform(Block().double().eval(), (EMBEDS,), rules=table)
    found = relevance(explained, explained.record.inputs[0], EMBEDS, weights)
    assert relative(found, leaf.detach() * gradient) <= 1e-12
    others = [relevance(lxt_fx.transform(Block().double(), (EMBEDS,), rules=t), "x", EMBEDS, weights) for t in ("attnlrp",)]
    assert all(relative(found, other) > 1e-3 for other in others)
    lxt_fx.audit(explained, EMBEDS, lambda output: (output * weights).flatten(1).sum(1)).check()


def mamba_by_hand(model: nn.Module, embeds: Tensor) -> Tensor:
    """The logits of a Mamba of transformers with MambaLRP's tricks: A, B, C and step sizes held, SiLU and norms by their
    held factors, half through the gate (Rezaei Jafari et al. 2024, sec. 4)."""

    def norm(module: Any, x: Tensor) -> Tensor:
        return x * held(torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon)) * module.weight

    def silu(x: Tensor) -> Tensor:
        return x * held(torch.sigmoid(x))

    net: Any = model
    x = embeds
    for layer in net.backbone.layers:
        mixer = layer.mixer
        hidden, gate = mixer.in_proj(norm(layer.norm, x)).mT.chunk(2, dim=1)
        hidden = silu(mixer.conv1d(hidden)[..., : x.shape[1]])
        sizes = [mixer.time_step_rank, mixer.ssm_state_size, mixer.ssm_state_size]
        step, b, c = torch.split(mixer.x_proj(hidden.mT), sizes, dim=-1)
        step = held(F.softplus(mixer.dt_proj(step)))
        decay = torch.exp(-torch.exp(mixer.A_log) * step[..., None])
        state, outputs = torch.zeros_like(decay[:, 0]), []
        for t in range(x.shape[1]):
            state = decay[:, t] * state + step[:, t, :, None] * held(b)[:, t, None] * hidden[:, :, t, None]
            outputs.append((state * held(c)[:, t, None]).sum(-1))
        y = torch.stack(outputs, -1) + mixer.D[:, None] * hidden
        x = x + mixer.out_proj(halved(y * silu(gate)).mT)
    logits: Tensor = net.lm_head(norm(net.backbone.norm_f, x))
    return logits


@pytest.mark.parametrize("table", ["mamba_lrp", "attnlrp"])
def test_recurrences_equal_the_tricks_of_mamba_lrp(table: str) -> None:
    """Measured: 1e-5, of the model's own casts to float32; half to each factor of every product is off by 4."""
    torch.manual_seed(0)
    config = MambaConfig(
        hidden_size=32, state_size=4, num_hidden_layers=2, vocab_size=30, intermediate_size=64, time_step_rank=4,
        residual_in_fp32=False, use_mambapy=False,
    )  # fmt: skip
    model = MambaForCausalLM(config).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(8 if "proj" in name else 1)  # as drawn, the state hardly counts
    weights = torch.randn(2, 5, 30, dtype=torch.float64)
    leaf = EMBEDS.clone().requires_grad_()
    by_hand = mamba_by_hand(model, leaf)
    (gradient,) = torch.autograd.grad((by_hand * weights).sum(), leaf)
    explained = lxt_fx.transform(model, kwargs={"inputs_embeds": EMBEDS}, rules=table, dynamic=False)
    assert relative(explained(inputs_embeds=EMBEDS).logits, by_hand.detach()) <= 1e-5
    found = relevance(explained, "inputs_embeds", EMBEDS, weights)
    assert relative(found, leaf.detach() * gradient) <= 1e-4
    plain = lxt_fx.transform(model, kwargs={"inputs_embeds": EMBEDS}, rules="lxt", dynamic=False)
    assert relative(relevance(plain, "inputs_embeds", EMBEDS, weights), found) > 0.1


class Stepping(nn.Module):
    """A gate that decays stand beside, or not."""

    def __init__(self, recurrent: bool) -> None:
        super().__init__()
        self.recurrent, self.step, self.gate = recurrent, nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sigmoid(self.gate(x)) * x
        if not self.recurrent:
            return y
        state = torch.zeros_like(y[:, 0])
        for t in range(x.shape[1]):
            state = torch.exp(-F.softplus(self.step(x[:, t]))) * state + y[:, t]
        return state


@pytest.mark.parametrize(("table", "recurrent", "held"), [
    ("attnlrp", True, True), ("attnlrp", False, False), ("mamba_lrp", False, True), ("lxt", True, False),
])  # fmt: skip
def test_a_sigmoid_gate_is_held_where_it_stands_in_a_recurrence(table: str, recurrent: bool, held: bool) -> None:
    explained = lxt_fx.transform(Stepping(recurrent).double().eval(), (EMBEDS,), rules=table, dynamic=False)
    (gate,) = [node.name for node in explained.record.stages["rules"].graph.nodes if "sigmoid" in node.name]
    rules = explained.record.stages["rules"].rules
    assert ("uniform" in {rule.name for rule in rules.values()}) != held
    assert (gate in rules) != held


def test_a_table_that_needs_bounds_says_so_and_serves_the_first_layer() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)).eval()
    pixels = torch.rand(1, 1, 8, 8)
    with pytest.raises(lxt_fx.InputError, match=r"'epsilon_gamma_box' needs arguments: .*_gamma_box\(low, high\)"):
        lxt_fx.transform(net, (pixels,), rules="epsilon_gamma_box")
    with pytest.raises(lxt_fx.InputError, match="low must be a number or a tensor"):
        tables.epsilon_gamma_box()
    with pytest.raises(lxt_fx.InputError, match="gamma must be a number of at least 0"):
        tables.attnlrp_gamma(conv=-1.0)
    explained = lxt_fx.transform(net, (pixels,), rules=tables.epsilon_gamma_box(0.0, 1.0))
    found = list(rules_by_module(explained, "convolution").values()), list(rules_by_module(explained, "linear").values())
    assert found == (["z-box (first linear map)", "gamma"], ["epsilon"])
    flat = lxt_fx.transform(net, (pixels,), rules=tables.epsilon_plus(first=linear_rules.flat()))
    assert list(rules_by_module(flat, "convolution").values()) == ["flat (first linear map)", "z-plus"]


@one_worker("vit")
def test_tables_switch_by_layer() -> None:
    """The rules of another table at a place: as if the whole model had it, there."""
    mixed = lxt_fx.TABLES["attnlrp"].override("*.layers.0", lxt_fx.TABLES["cp_lrp"])
    assert mixed.overrides == ("*.layers.0",)
    stage = compiled("vit", rules=mixed).record.stages["rules"]
    found = [stage.rules[n.name].name for n in stage.graph.nodes if "sdpa" in str(n.target)]
    assert found == ["weights held", "attention"]
    pixels, weights = torch.randn(2, 1, 8, 8), torch.randn(2, 5)
    everywhere = {"vit": lxt_fx.TABLES["cp_lrp"]}
    by_place = relevance(compiled("vit", rules=everywhere), "pixel_values", pixels, weights)
    by_name = relevance(compiled("vit", rules="cp_lrp"), "pixel_values", pixels, weights)
    assert_same(by_place, by_name)


def test_a_table_prints_itself(capsys: pytest.CaptureFixture[str]) -> None:
    lxt_fx.TABLES["attnlrp_gamma"].show()
    printed = capsys.readouterr().out
    assert printed.startswith("attnlrp_gamma: attnlrp, gamma 0.25 in convolutions and 0.05 in linear layers")
    assert "epsilon (attention projection)" in printed and "Montavon et al." in printed


def test_every_table_has_a_summary_and_a_paper() -> None:
    without = {name for name, table in lxt_fx.TABLES.items() if not table.summary or not table.paper}
    assert without == set()


@pytest.mark.parametrize("form", ["gradient", "explicit"])
@pytest.mark.parametrize("name", each_model(["llama", "gemma3", "bert"]))
def test_an_explained_module_is_put_under_another_table_without_a_capture(
    name: str, form: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = torch.randn(2, 5, 1, dtype=torch.float64) if name != "bert" else torch.randn(2, 1, dtype=torch.float64)
    direct, explained = compiled(name, torch.float64, rules="cp_lrp", form=form), compiled(name, torch.float64)
    monkeypatch.setattr(lxt_fx.compiler.captures, "captured_with_backwards", lambda *_, **__: pytest.fail("captured again"))
    switched = lxt_fx.transform(explained, kwargs={"inputs_embeds": EMBEDS}, rules="cp_lrp", form=form)
    assert switched.record.table_name == "cp_lrp" and explained.record.table_name == "attnlrp"
    assert switched.record.model_class == direct.record.model_class == type(tiny.MODELS[name]()).__name__
    assert (switched.record.inputs, switched.record.leaves) == (direct.record.inputs, direct.record.leaves)
    assert switched.record.method == direct.record.method and switched.record.sizes == direct.record.sizes
    same, other = (relevance(module, "inputs_embeds", EMBEDS, weights) for module in (switched, direct))
    assert_same(same, other)
    assert relative(relevance(explained, "inputs_embeds", EMBEDS, weights), same) > 1e-3
    ids = torch.tensor([[3, 1, 2]])
    assert torch.equal(lxt_fx.embed(switched, ids), lxt_fx.embed(explained, ids))
    for module in (switched, explained):  # other sizes, after the other was made
        assert module(inputs_embeds=EMBEDS[:1, :3]).logits.shape[0] == 1


def test_a_table_that_merged_batch_norms_is_not_taken_over() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU()).eval()
    x = torch.randn(2, 1, 6, 6)
    explained = lxt_fx.transform(net, (x,), rules=tables.attnlrp_gamma(conv=0.25))
    with pytest.raises(lxt_fx.InputError, match=r"merged batch norms .*; give the model that it was made from"):
        lxt_fx.transform(explained, (x,))
    assert lxt_fx.transform(lxt_fx.transform(net, (x,)), (x,), rules=tables.attnlrp_gamma(conv=0.25)).record.merged
