"""A certificate lists every node that relevance passes with the reason for its rule, and what nothing vouches for."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from shared_captures import each_model, one_worker
from shared_captures import explained as compiled
from tiny import MODELS, Mlp
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import lxt_fx
from lxt_fx.ops import products
from lxt_fx.passes.capture.example import made_example
from lxt_fx.rule_table import basic_rules as basic
from lxt_fx.rule_table import conditions as on
from lxt_fx.rule_table.rule import statement

aten = torch.ops.aten


@functools.cache
def explained(name: str, rules: str = "attnlrp", attention: str = "sdpa") -> lxt_fx.Explained:
    return compiled(name, attention=attention, rules=rules)


def with_record(module: lxt_fx.Explained, **changes: object) -> lxt_fx.Explained:
    """The module with another record."""
    twin = copy.deepcopy(module)
    twin.record = replace(module.record, **changes)  # type: ignore[arg-type]
    return twin


@pytest.mark.parametrize("rules", ["attnlrp", "cp_lrp"])
@pytest.mark.parametrize("name", each_model(MODELS))
def test_every_node_that_relevance_passes_has_an_entry_and_nothing_is_open(name: str, rules: str) -> None:
    """The path is that of autograd, which knows nothing of flows and rules."""
    module = explained(name, rules)
    found = lxt_fx.certificate(module)
    made = made_example(MODELS[name]()).kwargs
    _, inputs = module._prepared((), {name: value for name, value in made.items() if name in module.record.called_with})
    assert [entry.node for entry in found.entries] == nodes_with_gradient(module, inputs)
    assert found.proven and found.not_proven == () and found.not_followed == ()
    assert found.carrying == len(found.entries) <= found.nodes
    assert sum(found.counts.values()) == len(found.entries) + len(found.cuts)
    assert all(entry.line and entry.block and entry.why and entry.rule.formula for entry in found.entries)


def nodes_with_gradient(module: lxt_fx.Explained, inputs: Mapping[str, Tensor]) -> list[str]:
    """The calls that autograd passes on the way from the output to the inputs, found by running the graph."""
    alive: list[torch.fx.Node] = []

    class Recording(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            value = super().run_node(n)
            if n.op == "call_function" and any(
                isinstance(t, Tensor) and t.requires_grad for t in pytree.tree_leaves(value)
            ):
                alive.append(n)
            return value

    leaves = {name: x.clone().requires_grad_() if x.is_floating_point() else x for name, x in inputs.items()}
    order = [str(node.target) for node in module.graph.nodes if node.op == "placeholder"]
    Recording(module).run(*(leaves[name] for name in order), enable_io_processing=False)
    reaching = set(next(node for node in module.graph.nodes if node.op == "output").all_input_nodes)
    for node in reversed(alive):
        if node in reaching:
            reaching.update(node.all_input_nodes)
    return [node.name for node in alive if node in reaching]


@one_worker("llama")
def test_an_entry_says_what_matched_and_why_earlier_rules_refused() -> None:
    entries = {entry.node: entry for entry in lxt_fx.certificate(explained("llama")).entries}
    sdpa, silu, scale = entries["sdpa"], entries["silu"], entries["mul_4"]
    assert (sdpa.op, sdpa.original, sdpa.rule.name) == ("lxt_fx.sdpa", "aten.scaled_dot_product_attention", "attention")
    assert sdpa.carrying == ("query", "key", "value")
    assert sdpa.refusals == (("attention of a constant", "key, query carries too"),)
    assert sdpa.module == "model.layers.0.self_attn" and sdpa.line.startswith("modeling_llama.py:")
    assert silu.why == "Lists aten.silu.default." and silu.module == "model.layers.0.mlp.act_fn"
    assert silu.rule.conserves is lxt_fx.Conserves.ALL and silu.rule.source.startswith("AttnLRP")
    assert scale.why == "Lists aten.mul.Tensor. Only one operand carries."
    assert scale.refusals == (
        ("parameter held", "not a step of a recurrence"), ("uniform", "only one operand carries"),
    )  # fmt: skip
    norm = entries["rms_norm"]
    assert norm.original == "group rms_norm" and norm.why.startswith("Lists group rms_norm.")


@one_worker("gemma3")
def test_rules_of_cp_lrp_are_listed_where_they_refused() -> None:
    found = lxt_fx.certificate(explained("gemma3", "cp_lrp", "eager"))
    refused = {(entry.original, *refusal) for entry in found.entries for refusal in entry.refusals}
    assert ("aten.mul.Tensor", "gate held", "only one operand carries") in refused
    assert ("group rms_norm", "gate held", "which operand gates the other is not clear") in refused


@one_worker("qwen3_moe-attn")
def test_a_rule_of_attention_weights_is_listed_at_a_router_where_it_refused() -> None:
    table = lxt_fx.TABLES["attnlrp"].with_rules("weights only", basic.ATTENTION_WEIGHTS_HELD, summary="for this test")
    router = lxt_fx.certificate(compiled("qwen3_moe-attn", rules=table))
    softmax = [entry for entry in router.entries if entry.rule.name == "softmax"]
    assert {entry.refusals for entry in softmax} == {(("weights held", "not attention weights"),)}


@one_worker("llama")
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_weights_and_gates_are_held_under_cp_lrp(attention: str) -> None:
    found = lxt_fx.certificate(explained("llama", "cp_lrp", attention))
    ends = {item.by: {(end.op, end.operand) for end in item.ends} for item in found.held}
    fused = {("lxt_fx.sdpa_held", "query"), ("lxt_fx.sdpa_held", "key")}
    assert ends["weights held"] == (fused if attention == "sdpa" else {("lxt_fx.softmax", "self")})
    assert ends["gate held"] == {("aten.mul.Tensor", "self")}
    assert ends["norm statistic"] == {("lxt_fx.rms_norm", "statistic")}
    assert [entry.rule.name for entry in found.cuts] == ([] if attention == "sdpa" else ["weights held"] * 2)
    assert {item.by for item in lxt_fx.certificate(explained("llama")).held} == {"norm statistic"}
    gates = [entry for entry in found.entries if entry.rule.name == "gate held"]
    assert {(entry.held, entry.carrying) for entry in gates} == {(("self",), ("other",))}


@pytest.mark.parametrize("name", each_model(MODELS))
def test_every_hold_on_the_path_is_accounted_for(name: str) -> None:
    module = explained(name, "cp_lrp")
    found = lxt_fx.certificate(module)
    path = {entry.node for entry in found.entries} | set(module.record.leaves)
    held = {node.args[0].name for node in module.graph.nodes if node.target is products.hold and node.args[0].name in path}
    assert held and held <= {item.value for item in found.held}


class Branching(nn.Module):
    """Reads a value as a constant, by a comparison, and by rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y, z = self.first(x), self.second(x)
        steps = torch.round(y) + torch.where(2 * y + 1 > 0, 1.0, 0.0) + torch.zeros_like(z)
        with torch.no_grad():
            scale = y.exp()
        return y + z * y.detach() + scale * z + steps


def test_detach_no_grad_and_ops_without_a_gradient_are_listed() -> None:
    found = lxt_fx.certificate(lxt_fx.transform(Branching().eval(), (torch.randn(3, 4),)))
    assert {item.by for item in found.held} == {"the model's own detach or no_grad"}
    assert {end.op for item in found.held for end in item.ends} == {"aten.mul.Tensor"}
    assert sorted(item.op for item in found.not_followed) == ["aten.gt.Scalar", "aten.round"]
    assert {item.value for item in found.not_followed} == {"linear"} and found.proven


@one_worker("qwen3_moe-attn")
def test_a_router_does_not_follow_the_indices_that_it_selects() -> None:
    found = lxt_fx.certificate(compiled("qwen3_moe-attn"))
    assert [item.op for item in found.not_followed] == ["aten.topk[1]"] * 2
    assert "2 x into aten.topk[1], which has no gradient, in model.layers.0-1.mlp.gate" in found.summary()
    native = lxt_fx.certificate(compiled("qwen3_moe-attn", rules="lxt")).not_proven
    assert [item.why for item in native] == ["rule native router (nothing is claimed: native gradient)"] * 2


@one_worker("llama")
def test_of_the_plain_gradient_nothing_is_proven() -> None:
    found = lxt_fx.certificate(explained("llama", "gradient"))
    assert [item.node for item in found.not_proven] == [entry.node for entry in found.entries] and not found.proven
    assert {item.why for item in found.not_proven} == {"rule native (nothing is claimed: native gradient)"}
    assert f"{found.carrying} x rule native (nothing is claimed" in found.summary()


def test_a_node_without_a_rule_is_not_proven() -> None:
    class Net(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            return torch.i0(super().forward(x))

    found = lxt_fx.certificate(lxt_fx.transform(Net().eval(), (torch.randn(2, 6),), strict=False))
    (item,) = found.not_proven
    assert item.op == "aten.i0" and "no rule matched" in item.why and item.line.startswith("test_certificate.py:")
    assert found.carrying == len(found.entries) + 1


@one_worker("llama")
def test_a_node_that_the_record_forgot_is_found() -> None:
    module = explained("llama")
    stage = module.record.stages["lowered"]
    rules = {name: rule for name, rule in stage.rules.items() if name != "silu_1"}
    stages = {**module.record.stages, "lowered": replace(stage, rules=rules)}
    (item,) = lxt_fx.certificate(with_record(module, stages=stages)).not_proven
    assert item.node == "silu_1" and "bug of lxt_fx" in item.why
    matches = {name: match for name, match in module.record.matches.items() if name != "sdpa"}
    (item,) = lxt_fx.certificate(with_record(module, matches=matches)).not_proven
    assert item.node == "sdpa"


@one_worker("llama")
@pytest.mark.parametrize("loaded", [False, True])
def test_a_graph_that_was_changed_afterwards_is_not_proven(loaded: bool, tmp_path: Path) -> None:
    module = copy.deepcopy(explained("llama"))
    if loaded:
        lxt_fx.save(module, tmp_path / "module.safetensors")
        module = lxt_fx.load(tmp_path / "module.safetensors")
    node = next(node for node in module.graph.nodes if node.name == "silu")
    node.target = aten.silu.default
    (item,) = lxt_fx.certificate(module).not_proven
    assert item.why == "the graph was changed after transform at %silu"


@one_worker("llama")
def test_a_forward_that_differs_and_a_traced_example_are_not_proven() -> None:
    far = lxt_fx.certificate(with_record(explained("llama"), forward_difference=1e-3))
    assert [item.why for item in far.not_proven] == ["the forward differs from the model's by 0.001 of its largest value"]
    near = lxt_fx.certificate(with_record(explained("llama"), forward_difference=1e-7))
    assert near.proven and "within 1.0e-07 of the model's largest output" in near.summary()
    traced = lxt_fx.certificate(with_record(explained("llama"), method="make_fx"))
    assert [item.why.split(":")[0] for item in traced.not_proven] == ["captured by make_fx"]


class Typed(nn.Module):
    """Looks up tokens and types; refuses texts with a token 0."""

    def __init__(self, refuses: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.types, self.last = nn.Embedding(9, 4), nn.Embedding(3, 4), nn.Linear(4, 2)
        self.refuses = refuses

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        if self.refuses and not torch.compiler.is_compiling() and bool((input_ids == 0).any()):
            raise ValueError("no padding, please")
        out: Tensor = self.last(torch.tanh(self.tokens(input_ids) + self.types(token_type_ids)))
        return out


@pytest.mark.parametrize("refuses", [False, True])
def test_inputs_taken_for_no_tokens_and_padding_that_was_not_compared_are_named(refuses: bool, tmp_path: Path) -> None:
    ids = torch.tensor([[1, 2, 5], [8, 2, 1]])
    module = lxt_fx.transform(Typed(refuses).eval(), kwargs={"input_ids": ids, "token_type_ids": ids % 3})
    lxt_fx.save(module, tmp_path / "saved")
    again = lxt_fx.transform(module, kwargs={"input_ids": ids, "token_type_ids": ids % 3}, rules="cp_lrp")
    for each in (module, again, lxt_fx.load(tmp_path / "saved")):
        found = lxt_fx.certificate(each)
        assert found.no_tokens == ("token_type_ids",) and found.to_dict()["no_tokens"] == ("token_type_ids",)
        assert "no tokens     token_type_ids: by its name no token, so what it looks up is a constant" in found.summary()
        why = "padded texts were not compared with the model's answers to them: the model refuses them: ValueError"
        assert [item.why.startswith(why) for item in found.not_proven] == [True] * refuses


@pytest.mark.parametrize(
    ("name", "rules", "attention"),
    [
        pytest.param("llama", "cp_lrp", "eager", marks=one_worker("llama")),
        pytest.param("vit", "attnlrp", "sdpa", marks=one_worker("vit")),
    ],
)
def test_reasons_survive_save_and_load(name: str, rules: str, attention: str, tmp_path: Path) -> None:
    before = lxt_fx.certificate(explained(name, rules, attention))
    lxt_fx.save(explained(name, rules, attention), tmp_path / "module.safetensors")
    assert lxt_fx.certificate(lxt_fx.load(tmp_path / "module.safetensors")) == before


@one_worker("llama")
def test_a_certificate_goes_to_json_and_back(tmp_path: Path) -> None:
    found = lxt_fx.certificate(explained("llama", "cp_lrp", "eager"))
    found.to_json(tmp_path / "certificate.json")
    read = json.loads((tmp_path / "certificate.json").read_text(encoding="utf-8"))
    assert read == json.loads(json.dumps(found.to_dict()))
    assert read["proven"] is True and read["table"] == "cp_lrp" and len(read["entries"]) == found.carrying
    assert {entry["rule"] for entry in read["cuts"]} == {"weights held"}
    assert sum(row["count"] for row in read["counts"]) == found.carrying + 2
    assert read["entries"][0]["refusals"] == [list(pair) for pair in found.entries[0].refusals]


@one_worker("llama")
def test_the_summary_fits_an_appendix_and_equal_layers_stand_once() -> None:
    found = lxt_fx.certificate(explained("llama"))
    summary, text = found.summary(), str(found)
    assert len(summary.splitlines()) <= 25 and max(map(len, summary.splitlines())) <= 160
    assert summary.startswith("certificate   LlamaForCausalLM") and text.startswith(summary.rstrip())
    assert "not proven    nothing" in summary and "Achtibat et al." in summary
    assert "model.layers.0-1.mlp (LlamaMLP)   2 x 5 nodes" in text and "model.layers.1" not in text


@one_worker("llama")
def test_layers_that_differ_stand_apart() -> None:
    table = lxt_fx.TABLES["attnlrp"].override("model.layers.1.mlp.act_fn", basic.NATIVE)
    found = lxt_fx.certificate(compiled("llama", rules=table))
    text = str(found)
    assert "model.layers.0.mlp (LlamaMLP)" in text and "model.layers.1.mlp (LlamaMLP)" in text
    assert "model.layers.0-1.self_attn" in text
    assert "Put first at model.layers.1.mlp.act_fn. Takes any op." in text
    assert "not native: node is not in model.layers.1.mlp.act_fn" in text
    assert "attnlrp, overridden at model.layers.1.mlp.act_fn" in found.summary()
    assert [item.node for item in found.not_proven] == ["silu_1"]


def test_a_condition_says_what_it_ensures() -> None:
    def documented(site: object) -> None:
        """It is
        fine.

        More."""

    def bare(site: object) -> None:
        return None

    assert statement(on.two_carry) == "Both operands of a product carry."
    assert statement(on.all_of(on.in_evaluation, on.only("input"))) == (
        "Batch norm uses fixed statistics. Only input carries."
    )
    assert statement(documented) == "It is fine."
    assert statement(bare) == "Its condition bare holds."
    assert statement(lambda site: None) == "Its condition lambda holds."
    assert statement(functools.partial(bare)) == "Its condition holds."
    conditions = {rule.when for table in lxt_fx.TABLES.values() for rule in table.rules}
    assert all("condition" not in statement(condition) for condition in conditions)


def test_a_module_that_transform_did_not_make_is_refused() -> None:
    with pytest.raises(lxt_fx.InputError, match=r"Mlp was not made by lxt_fx.transform .* give it what lxt_fx.transform"):
        lxt_fx.certificate(Mlp())  # type: ignore[arg-type]
