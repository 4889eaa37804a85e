"""Bad input gets a clear error that says what, why and what to do."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from shared_captures import explained as compiled
from tiny import Mlp, bert, llama, vit
from torch import Tensor, nn
from transformers import BatchEncoding

import lxt_fx
from lxt_fx import CallError, CaptureError, InputError, NoRuleError, UnknownNameError


def test_a_model_must_be_a_module() -> None:
    with pytest.raises(InputError, match=r"model must be a torch.nn.Module, got str"):
        lxt_fx.transform("gpt2")  # type: ignore[arg-type]


def test_a_plain_module_needs_an_example() -> None:
    with pytest.raises(InputError, match=r"Mlp is not a transformers model.*transform\(net, \(x,\)\)"):
        lxt_fx.transform(Mlp().eval())


def test_a_bare_tensor_as_args_is_answered_with_the_tuple() -> None:
    with pytest.raises(InputError, match=r"args must be a tuple.*transform\(model, \(x,\)\)"):
        lxt_fx.transform(Mlp().eval(), torch.randn(2, 6))  # type: ignore[arg-type]


def test_a_dict_as_args_is_answered_with_kwargs() -> None:
    with pytest.raises(InputError, match=r"args must be a tuple.*got dict; write transform\(model, kwargs=inputs\)"):
        lxt_fx.transform(Mlp().eval(), {"x": torch.randn(2, 6)})  # type: ignore[arg-type]


def test_examples_that_do_not_fit_the_signature_are_named() -> None:
    with pytest.raises(InputError, match=r"do not fit Mlp.forward\(x.*missing a required argument: 'x'"):
        lxt_fx.transform(Mlp().eval(), kwargs={"y": torch.randn(2, 6)})


def test_whole_number_inputs_of_a_plain_module_are_named() -> None:
    class Counts(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            return tokens * 2

    with pytest.raises(InputError, match="no floating-point input of Counts reaches its output"):
        lxt_fx.transform(Counts(), (torch.tensor([1, 2]),))
    with pytest.raises(InputError, match=r"none of the example inputs \['tokens'\] of Counts is a tensor"):
        lxt_fx.transform(Counts(), ([1, 2],))


def test_an_example_that_the_model_refuses_is_reported_with_its_own_words() -> None:
    with pytest.raises(InputError, match=r"Mlp itself fails on the example inputs \(x\): RuntimeError: mat1 and mat2"):
        lxt_fx.transform(Mlp().eval(), (torch.randn(2, 5),))


def test_a_model_that_drops_values_at_random_must_be_in_eval_mode() -> None:
    model = bert().train()
    with pytest.raises(InputError, match=r"training mode: %dropout.* drops values at random.*call model.eval\(\) first"):
        lxt_fx.transform(model)
    assert model.training


def test_batch_statistics_need_eval_mode() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    with pytest.raises(InputError, match=r"uses batch statistics.*model.eval\(\)"):
        lxt_fx.transform(net, (torch.randn(3, 4),))


def test_a_training_mode_model_without_randomness_is_taken_as_it_is() -> None:
    model = llama().train()
    explained = lxt_fx.transform(model)
    embeds = torch.randn(1, 4, 32)
    torch.testing.assert_close(explained(inputs_embeds=embeds).logits, model(inputs_embeds=embeds).logits)


def test_an_unknown_table_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"no rule table 'atnlrp'; did you mean 'attnlrp'\? Tables: attnlrp, cp_lrp"):
        lxt_fx.transform(llama(), rules="atnlrp")


def test_rules_of_another_type_are_refused() -> None:
    with pytest.raises(InputError, match="rules must be a name, a RuleTable, or a dict of places and rules, got int"):
        lxt_fx.transform(llama(), rules=3)  # type: ignore[arg-type]


def test_an_explained_module_is_not_put_under_another_table_without_inputs() -> None:
    explained = lxt_fx.transform(Mlp().eval(), (torch.randn(2, 6),))
    with pytest.raises(InputError, match=r"already explained; .* transform\(explained, kwargs=\{'x': ...\}, rules=...\)"):
        lxt_fx.transform(explained, rules="gradient")


class Lgamma(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.i0(self.linear(x))


def test_an_op_without_a_rule_is_an_error_that_names_it() -> None:
    with pytest.raises(NoRuleError) as raised:
        lxt_fx.transform(Lgamma().eval(), (torch.randn(2, 4),))
    text = str(raised.value)
    assert "no rule for %i0 = aten.i0.default   (test_errors.py:" in text
    assert "none of table attnlrp lists this op" in text and "strict=False" in text and "docs/adding_a_rule.md" in text


def test_without_strict_the_op_keeps_its_gradient_and_is_listed() -> None:
    net = Lgamma().eval()
    explained = lxt_fx.transform(net, (torch.randn(2, 4),), strict=False)
    assert list(explained.record.unknown) == ["i0"]
    x = torch.randn(2, 4, requires_grad=True)
    (native,) = torch.autograd.grad(net(x).sum(), x)
    (ours,) = torch.autograd.grad(explained(x).sum(), x)
    torch.testing.assert_close(ours, native)


def test_a_refusing_rule_is_named_with_its_reason() -> None:
    class Bilinear(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.conv_transpose1d(x, x[:, :, :2])

    with pytest.raises(NoRuleError, match=r"closest rule: linear: weight carries too"):
        lxt_fx.transform(Bilinear(), (torch.randn(3, 3, 4),))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            {"inputs_embeds": torch.randn(1, 3, 32), "past": torch.randn(1)},
            r"input past was not captured \(captured: input_ids",
        ),
        ({"attention_mask": torch.ones(1, 3)}, r"the call has no input_ids"),
        ({}, r"the call has no input_ids; the module was captured with input_ids"),
        ({"input_ids": "the cat"}, r"input_ids must be a tensor of token ids, got str; a tokenizer makes one"),
        ({"input_ids": [[5, 9]]}, r"input_ids must be a tensor of token ids, got list"),
        ({"input_ids": torch.tensor([5, 9])}, r"input_ids must be \[batch, tokens\], got \[2\]; one text is a batch of 1"),
        ({"inputs_embeds": torch.randn(1, 3, 16)}, r"shape \[1, 3, 16\], the graph was captured for \['any', 'any', 32\]"),
        (
            {"inputs_embeds": torch.randn(2, 3, 32), "attention_mask": torch.ones(2, 4).long()},
            r"the graph is valid only if",
        ),
    ],
)
def test_a_call_with_inputs_that_were_not_captured_says_so(call: dict[str, Tensor], message: str) -> None:
    explained = compiled("llama")
    with pytest.raises(CallError, match=message):
        explained(**call)


def test_the_inputs_of_a_call_given_as_one_dict_are_answered_with_two_stars() -> None:
    with pytest.raises(CallError, match=r"a dict with input_ids was given as one input; .*explained\(\*\*inputs\)"):
        compiled("llama")({"input_ids": torch.tensor([[5, 9]])})


def test_a_misspelt_input_is_answered_with_the_name_of_the_model() -> None:
    explained = lxt_fx.transform(llama())
    with pytest.raises(CallError, match=r"the model has no input inputs_ids; .*did you mean input_ids\?"):
        explained(inputs_ids=torch.tensor([[5, 9]]))
    with pytest.raises(CallError, match=r"the call has no input_ids"):  # and captures nothing for it
        explained()
    with pytest.raises(CallError, match=r"cannot be captured for this call: transform: LlamaForCausalLM itself fails"):
        explained(attention_mask=torch.ones(1, 3))
    assert len(repr(explained.record)) < 4000  # the stages are not printed


class IdsInside(nn.Module):
    """Takes one dict of ids and a mask, and reads the ids a second time, as a SentenceTransformer does."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(10, 4), nn.Linear(4, 3)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        x = self.table(features["input_ids"]) * features["attention_mask"][..., None]
        return {"input_ids": features["input_ids"] * 1, "out": self.head(x).sum(1)}


def test_ids_inside_an_object_that_are_read_again_are_found() -> None:
    net = IdsInside().eval()
    inputs = BatchEncoding({"input_ids": torch.tensor([[1, 2, 3]]), "attention_mask": torch.ones(1, 3).long()})
    explained = lxt_fx.transform(net, (inputs,))
    torch.testing.assert_close(explained(inputs)["out"], net(inputs)["out"])
    with pytest.raises(CallError, match=r"input_ids is inside the input features; give that input whole"):
        explained(**inputs)


def test_switches_that_match_the_capture_are_accepted() -> None:
    explained = compiled("llama")
    embeds = torch.randn(1, 3, 32)
    expected = explained(inputs_embeds=embeds).logits
    assert torch.equal(explained(inputs_embeds=embeds, use_cache=False, return_dict=True, labels=None).logits, expected)


class Scaled(torch.nn.Module):
    """Takes a setting and two inputs."""

    def forward(self, x: Tensor, y: Tensor, scale: float = 1.0) -> Tensor:
        return torch.tanh(x) * y * scale


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((torch.ones(2, 3), torch.ones(2, 3)), {"y": torch.zeros(2, 3)}, "y is given by position and by name"),
        ((torch.ones(2, 3), torch.ones(2, 3)), {"factor": 2.0}, "no input factor"),
        ((torch.ones(2, 3), torch.ones(2, 3)), {"scail": 2.0}, "no input scail; .* did you mean scale"),
    ],
)
def test_a_call_that_would_be_answered_in_part_is_refused(
    args: tuple[Tensor, ...], kwargs: dict[str, object], message: str
) -> None:
    explained = lxt_fx.transform(Scaled(), (torch.randn(2, 3), torch.randn(2, 3)))
    with pytest.raises(lxt_fx.CallError, match=message):
        explained(*args, **kwargs)


def test_quantised_weights_that_have_no_gradient_are_named() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = torch.ao.quantization.quantize_dynamic(Mlp().eval(), {nn.Linear})
    with pytest.raises(NoRuleError, match=r"quantized.linear_dynamic(.|\n)*load the model unquantised"):
        lxt_fx.transform(net, (torch.randn(2, 6),))


def test_a_model_that_no_tracer_takes_ends_in_one_error_with_what_each_way_said() -> None:
    calls = itertools.count(1)  # an attribute of the model would be put back

    class ChangesItself(nn.Module):
        """Fails from its third call on, as capture needs several."""

        def forward(self, x: Tensor) -> Tensor:
            if next(calls) > 2:
                raise RuntimeError("kernel needs packed weights")
            return x * 2

    with pytest.raises(CaptureError) as raised:
        lxt_fx.transform(ChangesItself(), (torch.randn(2, 4),))
    text = str(raised.value)
    assert "ChangesItself could not be captured as a graph" in text and "load the model unquantised" in text
    ways = ("torch.export", "torch.export, dynamic", "make_fx")
    assert all(f"  {way}: RuntimeError: kernel needs" in text for way in ways)


def test_a_stage_or_module_that_does_not_exist_is_answered_with_the_nearest() -> None:
    explained = lxt_fx.transform(vit())
    with pytest.raises(UnknownNameError, match="no stage 'rule'; did you mean 'rules'"):
        lxt_fx.show(explained, "rule")
    with pytest.raises(UnknownNameError, match=r"no module 'vit.encoder.layer.9'; nearest: vit"):
        lxt_fx.show(explained, module="vit.encoder.layer.9")
    with pytest.raises(UnknownNameError, match="selects nothing that carries relevance"), lxt_fx.watch(explained, "nope"):
        pass


def test_embed_says_what_it_needs() -> None:
    with pytest.raises(InputError, match="whole numbers"):
        lxt_fx.embed(llama(), torch.randn(1, 3))
    with pytest.raises(InputError, match="no token embedding"):
        lxt_fx.embed(Mlp(), torch.tensor([[1]]))
