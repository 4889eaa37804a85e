"""A rule whose op does not conserve what the rule claims is found, at the one node of a model where it stands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from shared_captures import explained, one_worker
from torch import Tensor
from torch._ops import OpOverload
from torch.library import Library

import lxt_fx
from lxt_fx.ops import products
from lxt_fx.rule_table import conditions as on
from lxt_fx.rule_table.rule import Conserves, GroupKind, Role, Rule

aten = torch.ops.aten

LIBRARY = Library("lxt_fx_broken", "DEF")

IDS = torch.tensor([[5, 9, 17, 23, 11, 2], [3, 4, 7, 1, 40, 8]])


def op(schema: str) -> Callable[[Callable[..., Tensor]], OpOverload]:
    """Decorator: an op `lxt_fx_broken::<schema>`."""

    def register(kernel: Callable[..., Tensor]) -> OpOverload:
        name = schema.split("(", 1)[0]
        LIBRARY.define(schema)
        LIBRARY.impl(name, kernel, "CompositeImplicitAutograd")
        overload: OpOverload = getattr(torch.ops.lxt_fx_broken, name).default
        return overload

    return register


def scaled(x: Tensor, factor: float) -> Tensor:
    """y = x, the gradient times a factor."""
    return x.detach() + factor * (x - x.detach())


class AcrossQueries(torch.autograd.Function):
    """softmax over keys whose backward sums over queries."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, dtype: torch.dtype | None) -> Tensor:
        s = torch.softmax(x, dim, dtype)
        ctx.save_for_backward(s)
        return s

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (s,) = ctx.saved_tensors
        g = gradients[0]
        return s * (g - (g * s).sum(-2, keepdim=True)), None, None


@op("quarter_each(Tensor self, Tensor other) -> Tensor")
def quarter_each(self: Tensor, other: Tensor) -> Tensor:
    return scaled(self * other, 0.25)


@op("softmax_across_queries(Tensor self, int dim, ScalarType? dtype=None) -> Tensor")
def softmax_across_queries(self: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    found: Tensor = AcrossQueries.apply(self, dim, dtype)  # type: ignore[no-untyped-call]
    return found


@op("matmul_half_to_one(Tensor self, Tensor other) -> Tensor")
def matmul_half_to_one(self: Tensor, other: Tensor) -> Tensor:
    return torch.matmul(scaled(self, 0.5), other.detach())


@op("matmul_half_and_all(Tensor self, Tensor other) -> Tensor")
def matmul_half_and_all(self: Tensor, other: Tensor) -> Tensor:
    return torch.matmul(scaled(self, 0.5), other)


@op("rms_norm_not_held(Tensor self, int[] dims, float eps) -> Tensor")
def rms_norm_not_held(self: Tensor, dims: list[int], eps: float) -> Tensor:
    return self * torch.rsqrt(self.pow(2).mean(dims, keepdim=True) + eps)


def broken_rule(ops: dict[Any, OpOverload | None], conserves: Conserves, **settings: Any) -> Rule:
    """A rule that is not what it says."""
    return Rule("broken", ops, "wrong", "nowhere", conserves, **settings)


@dataclass(frozen=True, slots=True)
class Break:
    """A broken rule in one module of a tiny model."""

    name: str
    model: str
    attention: str
    where: str
    rule: Rule


SDPA = aten.scaled_dot_product_attention.default
MLP, ATTENTION = "model.layers.1.mlp", "model.layers.0.self_attn"

BREAKS = (
    Break(
        "a_product_that_gives_a_quarter_to_each", "llama", "sdpa", MLP,
        broken_rule({aten.mul.Tensor: quarter_each}, Conserves.ALL),
    ),
    Break(
        "a_gate_that_was_missed", "llama", "sdpa", MLP,
        broken_rule({aten.mul.Tensor: None}, Conserves.ALL, when=on.two_carry),
    ),
    Break(
        "a_softmax_along_the_wrong_axis", "llama", "eager", ATTENTION,
        broken_rule({aten.softmax.int: softmax_across_queries}, Conserves.ALL_BUT_OFFSET),
    ),
    Break(
        "a_matmul_that_gives_half_to_one_operand_only", "llama", "eager", ATTENTION,
        broken_rule({aten.matmul.default: matmul_half_to_one}, Conserves.ALL, when=on.role_is(Role.OUTPUT)),
    ),
    Break(
        "a_matmul_that_halves_one_operand_only", "llama", "eager", ATTENTION,
        broken_rule({aten.matmul.default: matmul_half_and_all}, Conserves.ALL, when=on.role_is(Role.SCORES)),
    ),
    Break(
        "a_layer_norm_that_is_not_held", "bert", "sdpa", "bert.encoder.layer.0.output.LayerNorm",
        broken_rule({aten.layer_norm.default: None}, Conserves.ALL_BUT_CONSTANTS),
    ),
    Break(
        "an_rms_norm_that_is_not_held", "llama", "sdpa", "model.layers.1.input_layernorm",
        broken_rule({GroupKind.RMS_NORM: rms_norm_not_held}, Conserves.ALL_BUT_CONSTANTS),
    ),
    Break(
        "a_silu_with_its_own_gradient", "llama", "sdpa", "model.layers.0.mlp.act_fn",
        broken_rule({aten.silu.default: None}, Conserves.ALL),
    ),
    Break(
        "a_gelu_with_its_own_gradient", "bert", "sdpa", "bert.encoder.layer.1.intermediate",
        broken_rule({aten.gelu.default: None}, Conserves.ALL),
    ),
    Break(
        "an_attention_that_gives_half_to_queries_and_half_to_keys", "llama", "sdpa", ATTENTION,
        broken_rule(
            {SDPA: products.sdpa}, Conserves.ALL_BUT_OFFSET, settings=lambda site: {"query_share": 0.5, "key_share": 0.5}
        ),
    ),
    Break(
        "an_attention_that_gives_all_to_values", "bert", "sdpa", "bert.encoder.layer.0.attention.self",
        broken_rule({SDPA: products.sdpa}, Conserves.ALL_BUT_OFFSET, settings=lambda site: {"value_share": 1.0}),
    ),
)  # fmt: skip

every_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


@every_dtype
@pytest.mark.parametrize(
    "broken", [pytest.param(broken, id=broken.name, marks=one_worker(broken.model)) for broken in BREAKS]
)
def test_a_broken_rule_is_found_at_its_node(broken: Break, dtype: torch.dtype) -> None:
    """All other nodes conserve what they claim, and the books still close: the leak is booked where it is."""
    table = lxt_fx.TABLES["attnlrp"].override(broken.where, broken.rule)
    module = explained(broken.model, dtype, broken.attention, rules=table)
    (node,) = (name for name, rule in module.record.stages["lowered"].rules.items() if rule.name == "broken")
    ledger = lxt_fx.audit(module, {"input_ids": IDS})
    faults = ledger.faults()
    assert faults[0].place.node == node
    assert {fault.place.node for fault in faults} == {node}
    with pytest.raises(lxt_fx.LedgerError, match=rf"^ledger: %{node} = .*its rule 'broken' claims to conserve"):
        ledger.check()
    assert (ledger.residual.abs() <= (1e-9 if dtype is torch.float64 else 1e-4) * ledger.scale()).all()


@every_dtype
@pytest.mark.parametrize(
    ("name", "attention"),
    [pytest.param(*pair, marks=one_worker(pair[0])) for pair in sorted({(b.model, b.attention) for b in BREAKS})],
)
def test_the_same_model_unbroken_has_no_fault(name: str, attention: str, dtype: torch.dtype) -> None:
    ledger = lxt_fx.audit(explained(name, dtype, attention), {"input_ids": IDS})
    assert ledger.faults() == ()
    ledger.check()
