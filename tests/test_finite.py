"""Where relevance is not finite, the error names the node that broke it, with what it read."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_text
import torch
from tiny import MODELS
from torch import Tensor, nn
from torch.library import Library

import lxt_fx

aten = torch.ops.aten


class Overflow(nn.Module):
    """In float16 the product is beyond 65504, in float32 it is not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False)
        with torch.no_grad():
            self.first.weight.fill_(60.0)
            self.second.weight.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        return self.second(hidden * hidden)


def test_an_overflow_in_half_precision_is_named_with_ranges_and_rule() -> None:
    x = torch.full((1, 4), 2.0)
    lxt_fx.audit(lxt_fx.transform(Overflow().eval(), (x,)), x, 0)
    explained = lxt_fx.transform(Overflow().half().eval(), (torch.full((1, 4), 0.01).half(),))
    with pytest.raises(lxt_fx.NonFiniteError) as caught:
        lxt_fx.audit(explained, x.half(), 0)
    message = str(caught.value)
    for words in ("the first is %pow_1 = lxt_fx.pow", "test_finite.py", "f16[1, 4] from 480 to 480", "4 inf", "float()"):
        assert words in message, message


def test_a_nan_weight_is_named() -> None:
    model = MODELS["llama"]()
    explained = lxt_fx.transform(model)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 3] = float("nan")
    with pytest.raises(lxt_fx.NonFiniteError, match=r"model\.layers\.1\.mlp\.up_proj.*rule 'linear'.*1 NaN"):
        lxt_fx.audit(explained, {"input_ids": torch.tensor([[5, 9, 17]])})


LIBRARY = Library("lxt_fx_infinite", "DEF")
LIBRARY.define("broken_square(Tensor self, Scalar exponent) -> Tensor")
LIBRARY.impl("broken_square", lambda self, exponent: BrokenSquare.apply(self), "CompositeImplicitAutograd")

class BrokenSquare(torch.autograd.Function):
    """x^2 whose backward divides by x without a limit at 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradients[0] * (x * x) / x


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return ((2 * x) ** 2).sum(-1)


def test_a_rule_that_divides_by_zero_is_named_in_the_backward() -> None:
    ops = {aten.pow.Tensor_Scalar: torch.ops.lxt_fx_infinite.broken_square.default}
    broken = lxt_fx.Rule(name="broken", ops=ops, formula="0 / 0", source="a test", conserves=lxt_fx.Conserves.ALL)
    table = lxt_fx.TABLES["attnlrp"].override(aten.pow.Tensor_Scalar, broken)
    x = torch.tensor([[1.0, 0.0, 2.0]])
    explained = lxt_fx.transform(Square().eval(), (x,), rules=table)
    with pytest.raises(lxt_fx.NonFiniteError) as caught:
        lxt_fx.audit(explained, x, lambda output: output)
    message = str(caught.value)
    reached = "the gradient that reached it is f32[1, 3] from 1 to 1"
    for words in ("lxt_fx_infinite.broken_square", "rule 'broken'", reached, "1 NaN"):
        assert words in message, message


def test_explain_names_the_node_too() -> None:
    tokenizer = tiny_text.byte_tokenizer()
    model = tiny_text.llama(len(tokenizer))
    explained = lxt_fx.transform(model)
    with torch.no_grad():
        model.model.layers[0].self_attn.v_proj.weight.mul_(float("inf"))
    with pytest.raises(lxt_fx.NonFiniteError, match=r"explain: .*the first is %linear.*layers\.0\.self_attn\.v_proj"):
        lxt_fx.explain(explained, tokenizer, "ab")


def test_an_input_that_is_not_finite_is_said_to_be_so() -> None:
    x = torch.tensor([[1.0, float("nan"), 2.0, 0.0]])
    explained = lxt_fx.transform(Overflow().eval(), (torch.ones(1, 4),))
    with pytest.raises(lxt_fx.NonFiniteError, match="the input itself is not"):
        lxt_fx.audit(explained, x, 0)


def test_masks_of_minus_infinity_are_no_fault() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            scores = (x @ x.mT).masked_fill(torch.ones(3, 3, dtype=torch.bool).triu(1), float("-inf"))
            return (scores.softmax(-1) @ x).sum(-1)[:, -1]

    x = torch.randn(2, 3, 4, dtype=torch.float64)
    lxt_fx.audit(lxt_fx.transform(Masked().eval(), (x,)), x, lambda output: output).check()
