"""Methods of papers as tables: each against its authors' formulas, written again by hand, on two architectures."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import methods_page
import papers_by_hand as by_hand
import pytest
import torch
import torch.nn.functional as F
from golden_cases import relative
from papers_by_hand import Method
from rounding import assert_same
from shared_captures import each_model, one_worker, shared_model
from shared_captures import explained as compiled
from torch import Tensor, nn

import lxt_fx
from lxt_fx.rule_table import shares, tables
from lxt_fx.rule_table.rule import Conserves

EMBEDS = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
WEIGHTS = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

DUAL_PATH = (0.1, 0.3, 0.6, 0.3, 0.7)
FORWARDS = {"llama": by_hand.decoder, "qwen3-attn": by_hand.decoder, "gpt2": by_hand.gpt2}
"""Models of `shared_captures` with the forward that is written by hand: with gates, with norms of queries and keys too, and
with biases, learned positions and a GELU that is written out."""


def gradient_of(logits: Tensor, leaf: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad((logits * WEIGHTS).sum(), leaf)
    return gradient


def by_table(explained: lxt_fx.Explained) -> tuple[Tensor, Tensor]:
    """Logits, and the table's gradient of the embeddings."""
    leaf = EMBEDS.clone().requires_grad_()
    logits = explained(inputs_embeds=leaf).logits
    return logits.detach(), gradient_of(logits, leaf)


def by_paper(name: str, method: Method) -> tuple[Tensor, Tensor]:
    """The same by the forward that is written by hand."""
    leaf = EMBEDS.clone().requires_grad_()
    logits = FORWARDS[name](shared_model(name, torch.float64), leaf, method)
    return logits.detach(), gradient_of(logits, leaf)


def assert_follows(name: str, attention: str, table: Any, method: Method, tolerance: float = 1e-6) -> None:
    """The table's gradient is that of the method, and its ledger closes. Norms of these models are float32."""
    explained = compiled(name, torch.float64, attention, rules=table)
    (logits, gradient), (expected_logits, expected) = by_table(explained), by_paper(name, method)
    assert relative(logits, expected_logits) <= tolerance
    assert relative(gradient, expected) <= tolerance
    lxt_fx.audit(explained, {"inputs_embeds": EMBEDS}, lambda output: (output.logits * WEIGHTS).flatten(1).sum(1)).check()


both_attentions = pytest.mark.parametrize("attention", ["sdpa", "eager"])


@both_attentions
@pytest.mark.parametrize("name", each_model(["llama", "qwen3-attn", "gpt2"], alike=True))
def test_gim_is_its_four_changes_of_the_gradient(name: str, attention: str) -> None:
    """Edin et al. 2025: softmax at temperature 2, a quarter to q and k, half to v, gate and up; norms held; activations
    native. Measured: 2e-7, of the models' own casts to float32."""
    assert_follows(name, attention, "gim", by_hand.GIM)
    assert relative(by_table(compiled(name, torch.float64, attention))[1], by_paper(name, by_hand.GIM)[1]) > 1e-3


@both_attentions
@pytest.mark.parametrize("name", each_model(["llama", "qwen3-attn"], alike=True))
def test_dual_path_attribution_scales_its_five_paths(name: str, attention: str) -> None:
    """Jantsch et al. 2026, with factors that are all different."""
    assert_follows(name, attention, tables.dpa(*DUAL_PATH), by_hand.dual_path(*DUAL_PATH))


@both_attentions
@pytest.mark.parametrize("name", each_model(["llama", "qwen3-attn", "gemma3", "gpt2"], alike=True))
def test_dual_path_attribution_is_attnlrp_at_the_factors_of_its_paper(name: str, attention: str) -> None:
    found, ours = (by_table(compiled(name, torch.float64, attention, rules=rules))[1] for rules in ("dpa", "attnlrp"))
    assert_same(found, ours, 1e-12)


@both_attentions
@pytest.mark.parametrize("name", each_model(["llama", "qwen3-attn"], alike=True))
def test_the_detached_jacobian_holds_every_factor(name: str, attention: str) -> None:
    """Golden 2025: norms, attention weights and the activation of gates are detached."""
    assert_follows(name, attention, "detached_jacobian", by_hand.DETACHED)


class Plain(nn.Module):
    """A transformer without biases, with norms in its own dtype."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        for block in ("0", "1"):
            for name in "qkvo":
                setattr(self, name + block, nn.Linear(8, 8, bias=False))
            self.add_module("gate" + block, nn.Linear(8, 12, bias=False))
            self.add_module("up" + block, nn.Linear(8, 12, bias=False))
            self.add_module("down" + block, nn.Linear(12, 8, bias=False))
            self.add_module("before" + block, nn.RMSNorm(8))
            self.add_module("between" + block, nn.RMSNorm(8))

    def forward(self, x: Tensor) -> Tensor:
        for block in ("0", "1"):
            part = {name: getattr(self, name + block) for name in ("q", "k", "v", "o", "gate", "up", "down")}
            n = getattr(self, "before" + block)(x)
            q, k, v = (part[name](n).unflatten(-1, (2, 4)).transpose(1, 2) for name in "qkv")
            x = x + part["o"](F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
            n = getattr(self, "between" + block)(x)
            x = x + part["down"](F.silu(part["gate"](n)) * part["up"](n))
        return x


def test_a_network_without_biases_is_the_sum_of_its_detached_jacobians_times_its_tokens() -> None:
    """h_L = sum_t J_t x_t, exactly."""
    net, x = Plain().double().eval(), torch.randn(1, 5, 8, dtype=torch.float64)
    explained = lxt_fx.transform(net, (x,), rules="detached_jacobian")
    leaf = x.clone().requires_grad_()
    hidden = explained(leaf)[0, -1]
    (jacobian,) = torch.autograd.grad(hidden, leaf, torch.eye(8, dtype=torch.float64), is_grads_batched=True)
    rebuilt = torch.einsum("jbti,bti->j", jacobian, x)
    assert_same(rebuilt, hidden.detach(), 1e-12)
    plain = lxt_fx.transform(net, (x,), rules="gradient")
    (other,) = torch.autograd.grad(plain(leaf)[0, -1], leaf, torch.eye(8, dtype=torch.float64), is_grads_batched=True)
    assert relative(torch.einsum("jbti,bti->j", other, x), hidden.detach()) > 1e-2


@cache
def tables_as_leaves(name: str) -> tuple[Method, list[Tensor]]:
    """AttnLRP with the tables of each layer and head as leaves, whose products share by the uniform rule."""
    model: Any = shared_model(name, torch.float64)
    cos, sin = model.model.rotary_emb(EMBEDS, torch.arange(EMBEDS.shape[1])[None])
    leaves: list[Tensor] = []
    for _ in model.model.layers:
        for heads in (model.config.num_attention_heads, model.config.num_key_value_heads):
            by_head = (table[:1].expand(2, heads, *table.shape[1:]).clone() for table in (cos, sin))
            leaves += [table.requires_grad_() for table in by_head]
    return replace(by_hand.ATTNLRP, tables=list(zip(leaves[::2], leaves[1::2], strict=True))), leaves


@pytest.mark.parametrize("form", ["gradient", "explicit"])
@both_attentions
@pytest.mark.parametrize("name", each_model(["llama", "qwen3-attn"], alike=True))
def test_positions_and_tokens_share_by_position_aware_lrp(name: str, attention: str, form: Any) -> None:
    """Bakish et al. 2025: the tables are leaves of the graph, and get half of each product with them. Measured: 3e-7."""
    method, leaves = tables_as_leaves(name)
    embeds = EMBEDS.clone().requires_grad_()
    value = (by_hand.decoder(shared_model(name, torch.float64), embeds, method)[:, -1, 3]).sum()
    gradient, *of_tables = torch.autograd.grad(value, [embeds, *leaves])
    expected = [(leaf.detach() * g).sum(-1) for leaf, g in zip(leaves, of_tables, strict=True)]
    by_table = [cos + sin for cos, sin in zip(expected[::2], expected[1::2], strict=True)]
    queries, keys = torch.stack(by_table[::2], 1), torch.stack(by_table[1::2], 1)

    explained = compiled(name, torch.float64, attention, rules="pa_lrp", form=form, epsilon=0.0)
    found = lxt_fx.position_relevance(explained, {"inputs_embeds": EMBEDS}, 3)
    assert relative(found.queries, queries) <= 1e-6 and relative(found.keys, keys) <= 1e-6
    assert found.layers == ("model.layers.0.self_attn", "model.layers.1.self_attn")
    groups = keys.shape[2]
    assert_same(found.by_head(), found.queries.unflatten(2, (groups, -1)).sum(3) + found.keys)
    assert relative(found.by_position(), queries.sum((1, 2)) + keys.sum((1, 2))) <= 1e-6
    tokens = torch.stack([explanation.parts[0].values for explanation in found.explanations])
    assert relative(tokens.double(), (EMBEDS * gradient).sum(-1)) <= 1e-6
    if form == "gradient":
        ledger = lxt_fx.audit(explained, {"inputs_embeds": EMBEDS}, 3)
        ledger.check()
        of_positions = ledger.by_cause()[lxt_fx.Cause.POSITION]
        assert relative(of_positions, found.by_position().double().sum(1)) <= 1e-6
        assert relative(ledger.constants()["model.rotary_emb.inv_freq"], of_positions) <= 1e-9


class Rotating(nn.Module):
    """An attention whose queries and keys are rotated in one of the ways in which models write it, or only look so."""

    cos: Tensor
    sin: Tensor

    def __init__(self, spelling: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.spelling = spelling
        self.q, self.k, self.v = (nn.Linear(8, 8, bias=False) for _ in range(3))
        angles = torch.arange(5)[:, None] * torch.tensor([1.0, 0.1])
        self.register_buffer("cos", torch.cos(angles))
        self.register_buffer("sin", torch.sin(angles))
        self.first, self.second = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4))

    def rotated(self, x: Tensor) -> Tensor:
        tokens = x.shape[-2]
        cos, sin = self.cos[:tokens], self.sin[:tokens]
        if self.spelling == "half":
            return x * cos.repeat(1, 2) + by_hand.half_turned(x) * sin.repeat(1, 2)
        if self.spelling == "four products":
            first, second = x.chunk(2, -1)
            return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
        if self.spelling == "interleaved":
            turned = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
            return x * cos.repeat_interleave(2, -1) + turned * sin.repeat_interleave(2, -1)
        if self.spelling == "complex":
            pairs = torch.view_as_complex(x.unflatten(-1, (2, 2))) * torch.complex(cos, sin)
            return torch.view_as_real(pairs).flatten(-2)
        if self.spelling == "part":
            first, second = x[..., :2].chunk(2, -1)
            turned = torch.cat([-second, first], -1)
            return torch.cat([x[..., :2] * cos[:, :1] + turned * sin[:, :1], x[..., 2:]], -1)
        if self.spelling == "learned":
            return x * self.first + by_hand.half_turned(x) * self.second
        return x * cos.repeat(1, 2)  # scaled by its place

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (2, 4)).transpose(1, 2) for part in (self.q, self.k, self.v))
        y: Tensor = F.scaled_dot_product_attention(self.rotated(q), self.rotated(k), v).transpose(1, 2).flatten(2)
        return y


@pytest.mark.parametrize("form", ["gradient", "explicit"])
@pytest.mark.parametrize(("spelling", "products"), [
    ("half", 4), ("four products", 8), ("interleaved", 4), ("complex", 2), ("part", 4),
])  # fmt: skip
def test_a_rotation_is_found_however_it_is_written(spelling: str, products: int, form: Any) -> None:
    """R_pos is half of q.g_q + k.g_k at the rotation, for the part that is rotated; the tokens get the other half."""
    net, x = Rotating(spelling).double().eval(), torch.randn(1, 5, 8, dtype=torch.float64)
    explained = lxt_fx.transform(net, (x,), rules="pa_lrp", form=form, epsilon=0.0)
    taken = [rule for rule in explained.record.stages["rules"].rules.values() if rule.name == "position"]
    assert len(taken) == products
    leaf = x.clone().requires_grad_()
    q, k, v = (part(leaf).unflatten(-1, (2, 4)).transpose(1, 2) for part in (net.q, net.k, net.v))
    turned = [net.rotated(part) for part in (q, k)]
    size = 2 if spelling == "part" else 4
    halves = [by_hand.scaled(0.5)(part[..., :size]) for part in turned]
    given = [torch.cat([half, part[..., size:]], -1) for half, part in zip(halves, turned, strict=True)]
    scaled = [by_hand.scaled(0.25)(part) for part in given]
    value = F.scaled_dot_product_attention(*scaled, by_hand.scaled(0.5)(v)).transpose(1, 2).flatten(2)[0, -1, 3]
    gradient, *of_halves = torch.autograd.grad(value, [leaf, *halves])
    expected = [(half.detach() * g).sum(-1) / 2 for half, g in zip(halves, of_halves, strict=True)]
    found = lxt_fx.position_relevance(explained, {"x": x}, lambda output: output[0, -1, 3])
    assert_same(found.queries[:, 0].double(), expected[0])
    assert_same(found.keys[:, 0].double(), expected[1])
    own = x.clone().requires_grad_()
    y = explained(own)[0, -1, 3]
    (passed,) = torch.autograd.grad(y, own, None if form == "gradient" else y.detach())
    assert_same(passed * x if form == "gradient" else passed, leaf.detach() * gradient, 1e-9)
    if form == "gradient":
        lxt_fx.audit(explained, x, lambda output: output[:, -1, 3]).check()


@pytest.mark.parametrize("spelling", ["learned", "scaled"])
def test_what_only_looks_like_a_rotation_shares_with_no_position(spelling: str) -> None:
    net, x = Rotating(spelling).double().eval(), torch.randn(1, 5, 8, dtype=torch.float64)
    explained = lxt_fx.transform(net, (x,), rules="pa_lrp", dynamic=False)
    assert "position" not in {rule.name for rule in explained.record.stages["rules"].rules.values()}
    (reason,) = {
        reason for match in explained.record.matches.values() for rule, reason in match.refusals if rule == "position"
    }
    assert reason == "not a product with a table in a rotation by position"
    with pytest.raises(lxt_fx.InputError, match=r"no product of Rotating under table 'pa_lrp' gives positions a share"):
        lxt_fx.position_relevance(explained, {"x": x}, 0)


@one_worker("llama")
def test_positions_have_a_share_under_their_own_table_only() -> None:
    ids = {"input_ids": torch.tensor([[3, 1, 4]])}
    with pytest.raises(lxt_fx.InputError, match="'attnlrp' gives positions a share: transform with rules='pa_lrp'"):
        lxt_fx.position_relevance(compiled("llama"), ids, 3)
    explained = compiled("llama", rules="pa_lrp")
    with pytest.raises(lxt_fx.InputError, match="one target at a time"):
        lxt_fx.position_relevance(explained, ids, [3, 4])
    found = lxt_fx.position_relevance(explained, ids, 3)
    assert found.queries.shape == (1, 2, 4, 3) and found.keys.shape == (1, 2, 2, 3) and found.by_position().shape == (1, 3)
    assert "model.layers.1.self_attn" in str(found)
    text = lxt_fx.show(explained, module="model.layers.0.self_attn")
    assert "lxt_fx.mul(" in text and "| position" in text and "R_position = R_out / 2" in text
    assert "rotate(" in lxt_fx.show(explained, "fused", module="model.layers.0.self_attn")


@one_worker("llama")
def test_the_printed_graph_has_the_numbers_of_a_rule() -> None:
    gim, dual = compiled("llama", rules="gim"), compiled("llama", attention="eager", rules=tables.dpa(*DUAL_PATH))
    text = lxt_fx.show(gim, module="model.layers.0")
    assert "temperature=2" in text and "| softmax at a temperature" in text and "| native activation" in text
    text = lxt_fx.show(dual, module="model.layers.0")
    assert "self_share=0.25, other_share=0.75" in text and "self_share=0.4, other_share=0.6" in text
    assert "| scores by shares" in text and "| values by shares" in text and "| gate by shares" in text
    assert "self_share=0.3, other_share=0.7" in text


EACH_ONCE = (("llama", "sdpa"), ("llama", "eager"), ("gemma3", "sdpa"), ("gpt2", "eager"))
LATER = pytest.mark.slow("the other attention of a model, which llama has both ways")


@pytest.mark.parametrize("rules", ["gim", "pa_lrp", tables.dpa(*DUAL_PATH), "detached_jacobian"])
@pytest.mark.parametrize(
    ("name", "attention"),
    [
        pytest.param(name, attention, marks=[one_worker(name), *([] if (name, attention) in EACH_ONCE else [LATER])])
        for name in ("llama", "gemma3", "gpt2")
        for attention in ("sdpa", "eager")
    ],
)
def test_both_forms_of_a_method_give_the_same(name: str, attention: str, rules: Any) -> None:
    fast, exact = (
        compiled(name, torch.float64, attention, rules=rules, form=form, epsilon=0.0) for form in ("gradient", "explicit")
    )
    leaves = [EMBEDS.clone().requires_grad_() for _ in range(2)]
    value, same = (module(inputs_embeds=leaf).logits[0, -1, 3] for module, leaf in zip((fast, exact), leaves, strict=True))
    (gradient,) = torch.autograd.grad(value, leaves[0])
    (relevance,) = torch.autograd.grad(same, leaves[1], same.detach())
    assert relative(relevance, EMBEDS * gradient) <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rules", ["gim", "pa_lrp", "dpa"])
@one_worker("llama")
def test_methods_are_finite_and_near_in_half_precision(rules: str, dtype: torch.dtype) -> None:
    wide, narrow = compiled("llama", rules=rules), compiled("llama", dtype, rules=rules)
    found = []
    for module in (wide, narrow):
        leaf = EMBEDS.to(next(module.parameters()).dtype).requires_grad_()
        (gradient,) = torch.autograd.grad(module(inputs_embeds=leaf).logits[0, -1, 3], leaf)
        found.append((leaf.detach() * gradient).double())
    assert found[1].isfinite().all() and relative(found[1], found[0]) <= 0.1


def test_a_temperature_of_1_is_no_temperature() -> None:
    net, x = Plain().double().eval(), torch.randn(1, 5, 8, dtype=torch.float64)
    table = lxt_fx.TABLES["attnlrp"].with_rules("one", shares.temperature(1.0), summary="")
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    for leaf, rules in zip(leaves, (table, "attnlrp"), strict=True):
        lxt_fx.transform(net, (x,), rules=rules)(leaf)[0, -1, 3].backward()
    assert torch.equal(leaves[0].grad, leaves[1].grad)  # type: ignore[arg-type]


@both_attentions
@one_worker("llama")
def test_shares_and_a_temperature_go_together(attention: str) -> None:
    numbers = shares.attention(0.1, 0.3, 0.6, temperature=3.0)
    table = lxt_fx.TABLES["attnlrp"].with_rules("mine", *numbers, summary="")
    method = replace(by_hand.dual_path(0.1, 0.3, 0.6, 0.5, 0.5), softmax=lambda x: by_hand.SoftmaxAt.apply(x, 3.0))
    assert_follows("llama", attention, table, method)


def test_numbers_that_do_not_fit_are_refused() -> None:
    for temperature in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(lxt_fx.InputError, match="must be a number above 0"):
            shares.temperature(temperature)
    with pytest.raises(lxt_fx.InputError, match=r"add up to 1.*query 0.5, key 0.25, value 0.5, which give 1.25"):
        tables.dpa(query=0.5)
    with pytest.raises(lxt_fx.InputError, match="attention: the temperature of a softmax must be a number above 0"):
        shares.attention(temperature=0.0)
    with pytest.raises(lxt_fx.InputError, match="got gate 0.5, up 0.6, which give 1.1"):
        shares.gate(0.5, 0.6)
    with pytest.raises(lxt_fx.InputError, match="no share may be below 0, got gate 1.5, up -0.5"):
        shares.gate(1.5, -0.5)


class Constant(nn.Module):
    """An attention with some constant operands."""

    def __init__(self, carries: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.carries = carries
        for name in "qkv":
            self.register_buffer(name, torch.randn(1, 2, 5, 4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (x * (1 + index) if name in self.carries else getattr(self, name) for index, name in enumerate("qkv"))
        return F.scaled_dot_product_attention(q, k, v)


@pytest.mark.parametrize("form", ["gradient", "explicit"])
@pytest.mark.parametrize(("carries", "shared"), [
    ("qkv", {"q": 0.1, "k": 0.3, "v": 0.6}), ("qk", {"q": 0.25, "k": 0.75}), ("kv", {"k": 0.4, "v": 0.6}),
    ("qv", {"q": 0.4, "v": 0.6}), ("k", {"k": 1.0}), ("v", {"v": 1.0}),
])  # fmt: skip
def test_the_share_of_a_constant_goes_to_its_partner(carries: str, shared: dict[str, float], form: Any) -> None:
    net, x = Constant(carries).double().eval(), torch.randn(1, 2, 5, 4, dtype=torch.float64)
    explained = lxt_fx.transform(net, (x,), rules=tables.dpa(*DUAL_PATH), form=form, epsilon=0.0, dynamic=False)
    leaf, own = x.clone().requires_grad_(), x.clone().requires_grad_()
    parts = [
        by_hand.scaled(shared[name])(leaf * (1 + index)) if name in carries else getattr(net, name)
        for index, name in enumerate("qkv")
    ]
    (expected,) = torch.autograd.grad(F.scaled_dot_product_attention(*parts)[0, 0, 2, 1], leaf)
    y = explained(own)[0, 0, 2, 1]
    (found,) = torch.autograd.grad(y, own, None if form == "gradient" else y.detach())
    assert_same(found * x if form == "gradient" else found, expected * x, 1e-9)


@pytest.mark.parametrize("values_first", [False, True])
@pytest.mark.parametrize("einsum", [False, True])
def test_shares_find_the_weights_on_either_side_of_the_product(einsum: bool, values_first: bool) -> None:
    """Some models write v^T weights^T; shares stay with what they are for."""

    class Written(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            scores = torch.einsum("bid,bjd->bij", q, k) if einsum else q @ k.mT
            weights = torch.softmax(scores, -1)
            if einsum and values_first:
                return torch.einsum("bjd,bij->bid", v, weights)
            if einsum:
                return torch.einsum("bij,bjd->bid", weights, v)
            return (v.mT @ weights.mT).mT if values_first else weights @ v

    given = tuple(torch.randn(1, 5, 4, dtype=torch.float64) for _ in range(3))
    explained = lxt_fx.transform(Written(), given, rules=tables.dpa(*DUAL_PATH))
    own, leaves = ([x.clone().requires_grad_() for x in given] for _ in range(2))
    scaled = [by_hand.scaled(share)(leaf) for share, leaf in zip(DUAL_PATH, leaves, strict=False)]
    expected = torch.autograd.grad((torch.softmax(scaled[0] @ scaled[1].mT, -1) @ scaled[2])[0, 2, 1], leaves)
    found = torch.autograd.grad(explained(*own)[0, 2, 1], own)
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other, 1e-9)


class Factors(nn.Module):
    """silu(a) b c, multiplied in either order: one function."""

    def __init__(self, gate_first: bool) -> None:
        super().__init__()
        self.gate_first = gate_first

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return F.silu(a) * b * c if self.gate_first else F.silu(a) * (b * c)


def test_half_to_each_factor_depends_on_how_a_product_is_written_and_holding_the_gate_does_not() -> None:
    """You et al. 2025: the same function, another factorisation, another relevance."""
    given = tuple(torch.randn(3, 4, dtype=torch.float64) for _ in range(3))

    def parts(rules: str, gate_first: bool) -> list[float]:
        """The part of the whole that each input gets."""
        explained = lxt_fx.transform(Factors(gate_first), given, rules=rules)
        leaves = [x.clone().requires_grad_() for x in given]
        y = explained(*leaves)
        found = torch.autograd.grad(y.sum(), leaves, allow_unused=True, materialize_grads=True)
        return [round(float((x * g).sum() / y.detach().sum()), 12) for x, g in zip(given, found, strict=True)]

    assert parts("attnlrp", True) == [0.25, 0.25, 0.5] and parts("attnlrp", False) == [0.5, 0.25, 0.25]
    assert parts("cp_lrp", True) == parts("cp_lrp", False) == [0.0, 0.5, 0.5]


def test_the_table_of_methods_is_made_of_the_tables() -> None:
    text = methods_page.PAGE.read_text(encoding="utf-8")
    assert methods_page.table() in text, "the page is not of these tables: python tests/methods_page.py"
    for name in lxt_fx.TABLES:
        assert f"`{name}`" in text


def test_every_method_has_a_test_that_is_there() -> None:
    assert methods_page.missing_tests() == []


def test_tables_that_are_the_same_are_said_to_be() -> None:
    assert lxt_fx.TABLES["detached_jacobian"].rules == lxt_fx.TABLES["cp_lrp"].rules
    assert lxt_fx.TABLES["libragrad"].rules == lxt_fx.TABLES["relp"].rules
    position, *others = lxt_fx.TABLES["pa_lrp"].rules
    assert position.conserves is Conserves.ALL_BUT_POSITIONS and tuple(others) == lxt_fx.TABLES["attnlrp"].rules
