"""Each method of the referee against a run of the model by hand."""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from referee_nets import Weighted, llama_case, llama_subject, weighted_case
from torch import Tensor, nn
from transformers import LlamaForCausalLM
from transformers.models.llama import modeling_llama

import lxt_fx
from lxt_fx.base.errors import InputError
from lxt_fx.referee.case import Case, Subject, seed_of
from lxt_fx.referee.contest import Method, NotForThisError
from lxt_fx.referee.cpu_seconds import cpu_seconds
from lxt_fx.referee.methods import METHODS, by_removal, rollout
from lxt_fx.referee.methods.by_gradient import Averaged, IntegratedGradients, TableMethod
from lxt_fx.referee.methods.by_removal import LeaveOneOut
from lxt_fx.referee.methods.of_lxt import LxtMethod
from lxt_fx.referee.methods.own import OwnMethod, own_method


@pytest.fixture(scope="module")
def llama() -> Subject:
    return llama_subject()


def found_by(method: Method, subject: Subject, case: Case) -> Tensor:
    return subject.by_unit(case, method.prepare(subject)(case))


def by_hand(model: nn.Module, case: Case, embedded: Tensor) -> Tensor:
    """The explained number for embeddings [n, tokens, hidden]."""
    return case.value(model(inputs_embeds=embedded))


@pytest.mark.parametrize("name", ["attnlrp", "cp_lrp"])
def test_a_table_gives_its_relevance_for_texts_of_any_length(llama: Subject, name: str) -> None:
    explain = TableMethod(name, name).prepare(llama)
    explained = lxt_fx.transform(llama.model, rules=name)
    for case in (llama_case(), llama_case((3, 1, 2), token=9), llama_case((8,) * 9)):
        output, leaves = explained.with_leaves(**case.inputs)
        (leaf,) = leaves.values()
        (gradient,) = torch.autograd.grad(case.value(output).sum(), [leaf])
        wanted = (leaf * gradient).sum(-1)[0].detach()
        torch.testing.assert_close(llama.by_unit(case, explain(case)), wanted, atol=1e-10, rtol=1e-8)


def test_gradients_of_the_model_itself(llama: Subject) -> None:
    case = llama_case()
    leaf = llama.leaf(case).requires_grad_(True)
    (gradient,) = torch.autograd.grad(by_hand(llama.model, case, leaf).sum(), [leaf])
    product = (leaf * gradient).sum(-1)[0].detach()
    torch.testing.assert_close(found_by(METHODS["gradient"], llama, case), product)
    torch.testing.assert_close(found_by(METHODS["|gradient|"], llama, case), product.abs())
    torch.testing.assert_close(found_by(METHODS["gradient_norm"], llama, case), gradient.norm(dim=-1)[0])


def test_integrated_gradients_by_a_slow_loop_and_exact_for_a_square(llama: Subject) -> None:
    case, total = llama_case(), torch.zeros(5, 32, dtype=torch.float64)
    embedded = llama.leaf(case)
    for step in range(4):
        leaf = ((step + 0.5) / 4 * embedded).requires_grad_(True)
        (gradient,) = torch.autograd.grad(by_hand(llama.model, case, leaf).sum(), [leaf])
        total += gradient[0] / 4
    wanted = (embedded[0] * total).sum(-1)
    torch.testing.assert_close(found_by(IntegratedGradients(steps=4, batch=3), llama, case), wanted)
    square = Subject("square", Weighted([1, 2], pair=4))
    relevance = found_by(IntegratedGradients(steps=3, batch=2), square, weighted_case(2))
    assert relevance.tolist() == pytest.approx([1 + 2, 2 + 2])  # half of the product to each


def test_integrated_gradients_from_the_mean_by_a_slow_loop(llama: Subject) -> None:
    case, embedded = llama_case(), llama.leaf(llama_case())
    begin = llama.model.get_input_embeddings().weight.detach().mean(0)
    total = torch.zeros(5, 32, dtype=torch.float64)
    for step in range(4):
        leaf = (begin + (step + 0.5) / 4 * (embedded - begin)).requires_grad_(True)
        (gradient,) = torch.autograd.grad(by_hand(llama.model, case, leaf).sum(), [leaf])
        total += gradient[0] / 4
    wanted = ((embedded[0] - begin) * total).sum(-1)
    method = IntegratedGradients("own", steps=4, batch=3, baseline="mean")
    torch.testing.assert_close(found_by(method, llama, case), wanted)
    whole = float((by_hand(llama.model, case, embedded) - by_hand(llama.model, case, begin.expand_as(embedded))).detach())
    errors = [abs(float(found_by(replace(method, steps=steps), llama, case).sum()) - whole) for steps in (2, 200)]
    assert errors[1] < 1e-3 * abs(whole) < errors[0], "complete in the limit of many steps"
    known = METHODS["integrated_gradients_mean"]
    assert isinstance(known, IntegratedGradients) and known.baseline == "mean" and known.name == "integrated_gradients_mean"


def test_integrated_gradients_begin_at_the_mean_of_a_picture_and_at_no_other_mean() -> None:
    class Top(torch.nn.Module):
        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return pixel_values[:, 0, 0, 0] ** 2 + 3 * pixel_values[:, 1, 1, 1]

    picture = torch.arange(8.0).view(1, 2, 2, 2)  # the means of both channels are 1.5 and 5.5
    case = Case("0", {"pixel_values": picture}, lambda out: out, "corners", ("a", "b", "c", "d"), torch.zeros(4) > 0)
    method = IntegratedGradients("own", steps=4, baseline="mean")
    found = found_by(method, Subject("top", Top(), "image", unit=1), case)
    assert found.tolist() == pytest.approx([0 - 1.5**2, 0, 0, 3 * (7 - 5.5)])
    with pytest.raises(NotForThisError, match="own: the input is neither token ids nor pictures"):
        found_by(method, Subject("square", Weighted([1, 2], pair=4)), weighted_case(2))


def test_leave_one_out_from_a_prefix_equals_whole_variants(llama: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    case = llama_case()
    leaf = llama.leaf(case)
    wanted = []
    with torch.no_grad():
        for position in range(leaf.shape[1]):
            without = leaf.clone()
            without[:, position] = 0
            wanted.append(float(by_hand(llama.model, case, leaf) - by_hand(llama.model, case, without)))
    assert found_by(LeaveOneOut(prefix=None), llama, case).tolist() == pytest.approx(wanted, rel=1e-6)
    explain = LeaveOneOut(prefix=1).prepare(llama)
    explain(case)
    monkeypatch.setattr(by_removal, "_whole", lambda *_: pytest.fail("the prefix was not used"))
    assert explain(case).tolist() == pytest.approx(wanted, rel=1e-6)
    with pytest.raises(pytest.fail.Exception):  # a short case runs whole variants
        LeaveOneOut(prefix=6).prepare(llama)(case)


def test_leave_one_out_takes_whole_variants_where_a_prefix_would_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    bert = Subject("bert", tiny.bert().double())
    case = Case(
        "0",
        {"input_ids": torch.tensor([[5, 9, 17]])},
        lambda out: out.logits[:, 1],
        "",
        ("a", "b", "c"),
        torch.zeros(3) > 0,
    )
    leaf = bert.leaf(case)
    without = leaf.clone()
    without[:, 1] = 0
    with torch.no_grad():
        lost = float(by_hand(bert.model, case, leaf) - by_hand(bert.model, case, without))
    assert float(LeaveOneOut(prefix=1).prepare(bert)(case)[1]) == pytest.approx(lost)

    wrong = copy.deepcopy(llama_subject().model)
    wrong.config.use_cache = False
    forward = wrong.forward
    monkeypatch.setattr(wrong, "forward", lambda **named: forward(**{**named, "position_ids": None}))
    subject = Subject("wrong", wrong)
    text = llama_case()
    assert LeaveOneOut(prefix=1).prepare(subject)(text).tolist() == pytest.approx(
        LeaveOneOut(prefix=None).prepare(subject)(text).tolist()
    )


def test_spared_units_are_not_left_out(llama: Subject) -> None:
    from dataclasses import replace

    case = replace(llama_case(), spared=torch.tensor([True, False, False, False, False]))
    assert float(LeaveOneOut(prefix=1).prepare(llama)(case)[0]) == 0


def test_rollout_is_the_product_of_attentions(llama: Subject) -> None:
    case = llama_case()
    before = llama.model.config._attn_implementation
    eager = tiny.llama("eager").double()
    weights = eager(**case.inputs, output_attentions=True).attentions
    product = torch.eye(5, dtype=torch.float64)
    for weight in weights:
        product = (weight[0].mean(0) + torch.eye(5)) / 2 @ product
    torch.testing.assert_close(found_by(METHODS["attention_rollout"], llama, case), product[-1].detach())
    assert llama.model.config._attn_implementation == before
    with pytest.raises(NotForThisError, match="has no set_attn_implementation"):
        METHODS["attention_rollout"].prepare(Subject("weighted", Weighted([1, 2])))


def test_rollout_refuses_a_model_of_another_s_code_that_takes_no_output_attentions() -> None:
    class Narrow(LlamaForCausalLM):
        def forward(self, input_ids: Tensor) -> Any:  # type: ignore[override]
            return super().forward(input_ids=input_ids)

    with pytest.raises(NotForThisError, match="Narrow takes no output_attentions"):
        METHODS["attention_rollout"].prepare(Subject("narrow", Narrow(tiny.llama().config)))


def test_rollout_of_a_picture_is_read_at_the_class_token() -> None:
    subject = Subject("vit", tiny.vit().double(), "image", unit=4)
    case = Case(
        "0",
        {"pixel_values": torch.rand(1, 1, 8, 8, dtype=torch.float64)},
        lambda out: out.logits[:, 1],
        "",
        ("a", "b", "c", "d"),
        torch.zeros(4) > 0,
    )
    found = found_by(METHODS["attention_rollout"], subject, case)
    assert found.shape == (4,)
    assert 0 < float(found.sum()) < 1  # the rest is the class token's own


def test_random_orders_are_those_of_the_case(llama: Subject) -> None:
    method = METHODS["random"]
    first, again, other = (found_by(method, llama, llama_case(key=key)) for key in ("a", "a", "b"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert seed_of("a") == 57024525917363133  # the same in every process


def test_orders_by_position_alone(llama: Subject) -> None:
    case = llama_case()
    assert found_by(METHODS["first_tokens"], llama, case).argmax() == 0
    assert found_by(METHODS["last_tokens"], llama, case).argmax() == 4
    with pytest.raises(NotForThisError, match="for pictures only"):
        METHODS["centre"].prepare(llama)
    marks = torch.zeros(9) > 0
    picture = Case("0", {"x": torch.zeros(1, 1, 3, 3)}, lambda out: out, "", tuple("abcdefghi"), marks)
    centre = METHODS["centre"].prepare(Subject("image", nn.Identity(), "image", unit=1))(picture)
    assert centre.argsort(descending=True).tolist()[0] == 4
    assert centre[[0, 2, 6, 8]].unique().tolist() == [7]


def test_positions_count_positive_from_either_end(llama: Subject) -> None:
    """What is negative has no mass: the first tokens would have none on gold, and the last ones nearly all."""
    case = llama_case()
    first, last = (found_by(METHODS[name], llama, case) for name in ("first_tokens", "last_tokens"))
    assert torch.equal(first.flip(0), last) and float(first.min()) > 0


def test_a_case_whose_cache_cannot_be_cropped_runs_whole_variants() -> None:
    """The first case fits into the window of four tokens, the second does not."""
    subject = Subject("window", tiny.gemma3().double())
    short, long = llama_case((5, 9, 7)), llama_case((5, 9, 17, 23, 4, 8, 2), key="1")
    fast, plain = LeaveOneOut(prefix=1).prepare(subject), LeaveOneOut(prefix=None).prepare(subject)
    for case in (short, long):
        torch.testing.assert_close(fast(case), plain(case))


@pytest.mark.parametrize("name", ["attnlrp", "gradient", "attention_rollout", "captum_input_x_gradient"])
def test_methods_are_called_with_what_saves_work(name: str, llama: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that their seconds can be compared: the logits of all positions are most of the work of a small model."""
    seen: list[int] = []
    case = llama_case()

    def value(output: Any) -> Tensor:
        seen.append(output.logits.shape[1])
        return case.value(output)

    explain = METHODS[name].prepare(llama)
    if name == "attention_rollout":  # which asks no number
        monkeypatch.setattr(rollout, "answer_of", lambda model, call: (output := call(), value(output))[0])
    explain(replace(case, value=value))
    assert seen == [1]


def test_averages_over_no_noise_are_the_table(llama: Subject) -> None:
    case = llama_case()
    wanted = found_by(TableMethod("attnlrp", "attnlrp"), llama, case)
    torch.testing.assert_close(found_by(Averaged("a", "attnlrp", sigma=0.0, draws=3), llama, case), wanted)
    noisy = found_by(Averaged("a", "attnlrp", sigma=0.05, draws=3), llama, case)
    assert 1e-6 < float((noisy - wanted).abs().max()) < float(wanted.abs().max())


def test_captum_gives_its_own_numbers(llama: Subject) -> None:
    pytest.importorskip("captum")
    case = llama_case()
    torch.testing.assert_close(
        found_by(METHODS["captum_input_x_gradient"], llama, case), found_by(METHODS["gradient"], llama, case)
    )
    found = found_by(METHODS["captum_gradient_shap"], llama, case)
    assert torch.equal(found, found_by(METHODS["captum_gradient_shap"], llama, case))
    state = torch.random.get_rng_state()
    found_by(METHODS["captum_gradient_shap"], llama, case)
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_method_of_ones_own(llama: Subject) -> None:
    def mine(model: nn.Module, inputs: Any, value: Any) -> Tensor:
        number = value(model(**inputs))
        (gradient,) = torch.autograd.grad(number.sum(), [inputs["inputs_embeds"]])
        return inputs["inputs_embeds"] * gradient

    case = llama_case()
    torch.testing.assert_close(found_by(own_method(mine), llama, case), found_by(METHODS["gradient"], llama, case))
    assert own_method(mine).name == "mine"
    assert own_method("operator:add").name == "add"
    for bad in ("operator:nothing", "no_such_module:f", "operator", "sys:path"):
        with pytest.raises(InputError, match="bench"):
            own_method(bad)
    with pytest.raises(InputError, match="nothing must return a tensor"):
        found_by(OwnMethod("nothing", lambda *_: None), llama, case)  # type: ignore[arg-type, return-value]


LXT_STAND_IN = """
def monkey_patch(module, verbose=False):
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)).detach() * self.up_proj(x))
    module.LlamaMLP.forward = forward
"""


def test_the_patches_of_lxt_stay_in_its_process(llama: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for LXT, which is not installed here: gates are detached."""
    Path(tmp_path, "lxt").mkdir()
    Path(tmp_path, "lxt", "__init__.py").touch()
    Path(tmp_path, "lxt", "efficient.py").write_text(LXT_STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path))
    before, begun = modeling_llama.LlamaMLP.forward, cpu_seconds() - time.process_time()
    explain = LxtMethod().prepare(llama)
    assert modeling_llama.LlamaMLP.forward is before
    assert 0.01 < cpu_seconds() - time.process_time() - begun < 600  # what the process worked counts for the method
    for case in (llama_case(), llama_case((3, 1, 2), token=9)):
        leaf = llama.leaf(case).requires_grad_(True)
        with monkeypatch.context() as patched:
            own: dict[str, Any] = {}
            exec(LXT_STAND_IN, own)
            patched.setattr(modeling_llama.LlamaMLP, "forward", before)  # what is put back
            own["monkey_patch"](modeling_llama)
            (gradient,) = torch.autograd.grad(by_hand(llama.model, case, leaf).sum(), [leaf])
        torch.testing.assert_close(explain(case), (leaf * gradient).detach())
    assert float((explain(llama_case()) - METHODS["gradient"].prepare(llama)(llama_case())).abs().max()) > 1e-3


def test_lxt_says_why_it_cannot_run() -> None:
    with pytest.raises(NotForThisError, match="lxt_package: "):
        LxtMethod().prepare(Subject("weighted", Weighted([1.0, 2.0])))


def test_methods_are_called_by_their_names_and_leave_the_model(llama: Subject) -> None:
    assert all(method.name == name for name, method in METHODS.items())
    before = {name: value.clone() for name, value in llama.model.state_dict().items()}
    case = llama_case()
    for name in ("attnlrp", "gradient", "integrated_gradients", "leave_one_out", "attention_rollout", "random"):
        found_by(METHODS[name], llama, case)
    assert all(torch.equal(value, before[name]) for name, value in llama.model.state_dict().items())
    assert all(parameter.grad is None for parameter in llama.model.parameters())
    assert all(parameter.requires_grad for parameter in llama.model.parameters())
