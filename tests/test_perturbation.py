"""Removal curves against a slow loop, their units and targets, what they refuse, and that they leave no trace."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

import lxt_fx
from lxt_fx import Removal
from lxt_fx.base.errors import InputError, NonFiniteError

STEPS = 4


def slow_curve(
    answer: Callable[[Tensor], float], example: Tensor, units: list[Any], order: list[int], baseline: Any
) -> list[float]:
    """One example at a time, one step at a time; `units` are indices into the example, removed in this order."""
    curve = []
    for step in range(STEPS + 1):
        perturbed = example.clone()
        for unit in order[: round(step * len(units) / STEPS)]:
            perturbed[units[unit]] = baseline
        curve.append(answer(perturbed[None]))
    return curve


def check_against_slow_loop(
    curves: lxt_fx.PerturbationCurves,
    answers: list[Callable[[Tensor], float]],
    leaf: Tensor,
    units: list[Any],
    relevance: Tensor,
    baseline: Any = 0.0,
) -> None:
    """`relevance` is [batch, units]."""
    for example, answer in enumerate(answers):
        least_first = sorted(range(len(units)), key=relevance[example].tolist().__getitem__)
        with torch.no_grad():
            found = [slow_curve(answer, leaf[example], units, o, baseline) for o in (least_first[::-1], least_first)]
        torch.testing.assert_close(curves.morf[example], torch.tensor(found[0]).double(), atol=2e-5, rtol=0)
        torch.testing.assert_close(curves.lerf[example], torch.tensor(found[1]).double(), atol=2e-5, rtol=0)
        heights = [low - high for high, low in zip(*found, strict=True)]
        area = sum((a + b) / 2 for a, b in zip(heights, heights[1:], strict=False)) / STEPS
        assert float(curves.area[example]) == pytest.approx(area, abs=5e-5)


@pytest.fixture(scope="module")
def llama() -> nn.Module:
    return tiny.llama()


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    return tiny.vit()


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("batch", [1, 3, 32])
def test_tokens_go_in_the_order_of_their_relevance(llama: nn.Module, batch: int) -> None:
    ids = torch.tensor([[5, 9, 17, 23, 2, 40, 7], [1, 2, 3, 4, 5, 6, 7]])
    embeds = lxt_fx.embed(llama, ids).detach()
    relevance = random(*embeds.shape)
    removal = Removal(steps=STEPS, batch=batch)
    curves = lxt_fx.perturbation_curves(llama, {"input_ids": ids}, relevance, removal=removal)
    with torch.no_grad():
        tokens = llama(inputs_embeds=embeds).logits[:, -1].argmax(-1).tolist()
    answers = [lambda x, t=t: float(llama(inputs_embeds=x).logits[0, -1, t]) for t in tokens]
    check_against_slow_loop(curves, answers, embeds, list(range(7)), relevance.sum(-1))
    assert curves.removed.tolist() == [[0, 2, 4, 5, 7]] * 2
    summed = lxt_fx.perturbation_curves(llama, {"input_ids": ids}, relevance.sum(-1), removal=removal)
    assert torch.equal(summed.morf, curves.morf)


def test_patches_of_an_image_become_the_baseline(vit: nn.Module) -> None:
    pixels, relevance = random(2, 1, 8, 8), random(2, 1, 8, 8).flip(0)
    removal = Removal(unit=2, baseline=torch.full((1, 1, 1), 0.3), steps=STEPS)
    curves = lxt_fx.perturbation_curves(vit, pixels, relevance, [4, (1, 2)], removal=removal)
    squares = [(slice(None), slice(2 * i, 2 * i + 2), slice(2 * j, 2 * j + 2)) for i in range(4) for j in range(4)]
    by_patch = torch.stack([torch.stack([r[s].sum() for s in squares]) for r in relevance])
    answers = [
        lambda x: float(vit(pixel_values=x).logits[0, 4]),
        lambda x: float(vit(pixel_values=x).logits[0, 1] - vit(pixel_values=x).logits[0, 2]),
    ]
    check_against_slow_loop(curves, answers, pixels, squares, by_patch, 0.3)
    assert curves.units == "2 x 2 patches" and "minus" in curves.explained[1]
    summed = lxt_fx.perturbation_curves(vit, pixels, relevance.sum(1), [4, (1, 2)], removal=removal)
    assert torch.equal(summed.lerf, curves.lerf)


def test_a_vision_transformers_own_patches_are_the_default(vit: nn.Module) -> None:
    pixels = random(1, 1, 8, 8)
    assert lxt_fx.perturbation_curves(vit, pixels, pixels, removal=Removal(steps=2)).units == "4 x 4 patches"


def test_single_features_with_a_function_of_the_output() -> None:
    net, x, relevance = tiny.Mlp(), random(3, 6), random(3, 6).flip(0)
    removal = Removal(steps=STEPS, batch=5)
    curves = lxt_fx.perturbation_curves(net, x, relevance, lambda out: out[:, 2] - out[:, 0], removal=removal)
    answers = [lambda x: float(net(x)[0, 2] - net(x)[0, 0])] * 3
    check_against_slow_loop(curves, answers, x, list(range(6)), relevance)


def test_for_a_linear_model_exact_relevance_has_the_largest_area() -> None:
    x, weight = random(4, 8), random(8)
    net = nn.Linear(8, 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(weight[None])
    exact = lxt_fx.perturbation_curves(net, x, x * weight, 0, removal=Removal(steps=8)).area
    for seed in range(5):
        other = x * weight + torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))
        assert bool((lxt_fx.perturbation_curves(net, x, other, 0, removal=Removal(steps=8)).area <= exact + 1e-9).all())
    torch.testing.assert_close(lxt_fx.perturbation_curves(net, x, -x * weight, 0, removal=Removal(steps=8)).area, -exact)


def test_an_explained_module_gives_the_curves_of_its_model_also_with_a_fixed_batch(vit: nn.Module) -> None:
    pixels = random(3, 1, 8, 8)
    of_model = lxt_fx.perturbation_curves(vit, {"pixel_values": pixels}, pixels, removal=Removal(steps=STEPS))
    for example in (pixels[:1], pixels[:2]):
        explained = lxt_fx.transform(vit, kwargs={"pixel_values": example}, dynamic=False)
        found = lxt_fx.perturbation_curves(explained, {"pixel_values": pixels}, pixels, removal=Removal(steps=STEPS))
        torch.testing.assert_close(found.morf, of_model.morf, atol=2e-5, rtol=0)
        assert found.explained == of_model.explained


def test_padding_and_spared_tokens_stay(llama: nn.Module) -> None:
    ids, mask = torch.tensor([[5, 9, 17, 23, 2], [1, 2, 3, 0, 0]]), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    relevance, first = random(2, 5), torch.tensor([True, False, False, False, False])
    inputs = {"input_ids": ids, "attention_mask": mask}
    curves = lxt_fx.perturbation_curves(llama, inputs, relevance, removal=Removal(spared=first, steps=2))
    assert curves.removed.tolist() == [[0, 2, 4], [0, 1, 2]]
    assert "after ' 3'" in curves.explained[1]
    embeds = lxt_fx.embed(llama, ids[1:, :3]).detach()
    alone = {"inputs_embeds": embeds, "attention_mask": mask[1:, :3]}
    spared = Removal(spared=first[:3], steps=2)
    unpadded = lxt_fx.perturbation_curves(llama, alone, relevance[1:, :3], removal=spared)
    torch.testing.assert_close(unpadded.morf, curves.morf[1:], atol=2e-5, rtol=0)
    assert float((unpadded.morf[0, 2] - unpadded.morf[0, 0]).abs()) > 1e-3


def test_the_printed_curves_say_what_was_removed_and_explained(vit: nn.Module) -> None:
    pixels = random(3, 1, 8, 8)
    text = str(lxt_fx.perturbation_curves(vit, pixels, pixels, 3, removal=Removal(steps=2)))
    assert text.splitlines()[0].startswith("3 examples, 4 x 4 patches removed; logit of class 3 (rank")
    assert [line.split()[0] for line in text.splitlines() if "%" in line] == ["0", "50", "100"]
    assert "area between the curves" in text and "±" in text
    assert "±" not in str(lxt_fx.perturbation_curves(vit, pixels[:1], pixels[:1], 3, removal=Removal(steps=2)))


class Counting(nn.Module):
    """Dropout, and a failure from some call on. The count is no attribute that changes: those are put back."""

    def __init__(self, fails_at: int = 10**9) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.5))
        self.calls, self.fails_at = itertools.count(1), fails_at

    def forward(self, x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        if next(self.calls) >= self.fails_at:
            raise ArithmeticError("on purpose")
        out: Tensor = self.inner(x)
        return out


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("fails_at", [1, 2, 10**9])
def test_modes_are_as_before_also_after_an_error(grad: bool, fails_at: int) -> None:
    net = Counting(fails_at)
    net.inner[0].eval()
    modes = [module.training for module in net.modules()]
    assert modes == [True, True, False, True]
    x = random(2, 6)
    with torch.set_grad_enabled(grad):
        if fails_at < 10:
            with pytest.raises(ArithmeticError):
                lxt_fx.perturbation_curves(net, x, x, 0)
        else:
            dropped = lxt_fx.perturbation_curves(net, x, x, 0)
            assert torch.equal(dropped.morf, lxt_fx.perturbation_curves(net, x, x, 0).morf)
        assert torch.is_grad_enabled() is grad
    assert [module.training for module in net.modules()] == modes


def test_a_relevance_that_was_asked_before_costs_nothing() -> None:
    """The ends of both curves are shared; a batch is full."""
    net, x = Counting(), random(2, 6)
    lxt_fx.perturbation_curves(net, x, x, 0, removal=Removal(steps=3, batch=4))
    assert next(net.calls) - 1 == 1 + math.ceil(2 * (2 * 3) / 4)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"removal": Removal(unit=3)}, "patches of 3 x 3 pixels divide"),
    ({"removal": Removal(unit="pixel")}, "unit must be 'token', 'feature' or the side of a patch, got 'pixel'"),
    ({"relevance": torch.ones(2, 8)}, r"relevance has shape \[2, 8\], but the leaf has \[2, 1, 8, 8\]"),
    ({"relevance": torch.full((2, 1, 8, 8), math.nan)}, "relevance has NaN or infinity"),
    ({"relevance": [1.0]}, "relevance is a list"),
    ({"removal": Removal(baseline=torch.zeros(3, 1, 1))}, r"baseline \[3, 1, 1\] must be finite and broadcast"),
    ({"removal": Removal(baseline=math.inf)}, "must be finite"),
    ({"removal": Removal(spared=torch.ones(4))}, r"spared must be .* bools, .* \[2, 4\] or \[4\]; got torch.float32"),
    ({"removal": Removal(spared=torch.ones(4, dtype=torch.bool))}, "no unit of example 0 may be removed"),
    ({"inputs": torch.ones(2, 1, 8, 8, dtype=torch.long)}, "floating-point"),
    ({"leaf": "bool_masked_pos"}, "leaf='bool_masked_pos' is none of the floating-point inputs: pixel_values"),
    ({"target": [1]}, "1 targets for 2 examples"),
    ({"target": [1, lambda out: out.logits[:, 0]]}, "is for all examples"),
    ({"target": lambda out: out.logits[0]}, r"one number for each example .* here \[16\]; got a tensor of shape \[5\]"),
    ({"target": 17}, "there is no class 17"),
    ({"model": 3}, "model must be a torch.nn.Module"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_what_does_not_fit_is_refused(vit: nn.Module, change: dict[str, Any], message: str) -> None:
    given = {"model": vit, "inputs": random(2, 1, 8, 8), "relevance": random(2, 1, 8, 8), "target": 0} | change
    with pytest.raises(InputError, match=f"^(perturbation_curves|transform): .*{message}"):
        lxt_fx.perturbation_curves(given.pop("model"), given.pop("inputs"), given.pop("relevance"), **given)


@pytest.mark.parametrize("function", ["perturbation_curves", "tune"])
def test_arguments_that_moved_to_removal_say_so(vit: nn.Module, function: str) -> None:
    pixels = random(2, 1, 8, 8)
    given = [vit, pixels, pixels] if function == "perturbation_curves" else [vit, pixels]
    call = getattr(lxt_fx, function)
    for moved in ({"unit": 2}, {"spared": None}, {"baseline": 0.0}, {"steps": 4}, {"batch": 8}):
        (name,) = moved
        with pytest.raises(InputError, match=rf"^{function}: {name} moved .* removal=lxt_fx\.Removal\({name}=\.\.\.\)"):
            call(*given, **moved)
    with pytest.raises(InputError, match=r"steps, batch moved .* removal=lxt_fx\.Removal\(steps=\.\.\., batch=\.\.\.\)"):
        call(*given, batch=8, steps=4)
    with pytest.raises(InputError, match=f"^{function}: removal must be a lxt_fx.Removal, .*, got int"):
        call(*given, removal=4)
    with pytest.raises(TypeError, match="unexpected keyword argument 'step'"):
        call(*given, step=4)


@pytest.mark.parametrize("count", [0, 0.5, True, -1])
def test_counts_of_a_removal_are_whole_numbers(count: Any) -> None:
    for name in ("steps", "batch"):
        with pytest.raises(InputError, match=f"^Removal: {name} must be a whole number of at least 1, got {count}"):
            Removal(**{name: count})


def test_an_image_needs_the_size_of_its_patches_where_the_model_does_not_say() -> None:
    net, x = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3)), random(2, 1, 8, 8)
    with pytest.raises(InputError, match="say how large a removed patch is: unit=8"):
        lxt_fx.perturbation_curves(net, x, x)
    removal = Removal(unit="feature", steps=1)
    assert lxt_fx.perturbation_curves(net, x, x, removal=removal).removed.tolist() == [[0, 64]] * 2


def test_several_float_inputs_need_a_leaf() -> None:
    class Two(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a * b + a

    a, b = random(2, 3), random(2, 3) + 1
    with pytest.raises(InputError, match="several floating-point inputs: a, b; say which one by leaf="):
        lxt_fx.perturbation_curves(Two(), (a, b), a, 0)
    found = lxt_fx.perturbation_curves(Two(), (a, b), a, 0, leaf="b", removal=Removal(steps=1))
    torch.testing.assert_close(found.morf[:, 1], a[:, 0].double())


def test_an_answer_that_is_not_finite_is_refused() -> None:
    class Inverse(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 1 / (x.sum(1, keepdim=True) - 1)

    x = torch.tensor([[3.0, 3.0], [1.0, 1.0]])
    with pytest.raises(NonFiniteError, match="example 1 is inf with 1 of 2 features set to the baseline"):
        lxt_fx.perturbation_curves(Inverse(), x, x, 0, removal=Removal(steps=2, batch=1))


def test_tokens_of_several_sentences_are_no_images() -> None:
    class Sentences(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.last = nn.Embedding(9, 4), nn.Linear(4, 2)

        def forward(self, ids: Tensor) -> Tensor:
            out: Tensor = self.last(self.table(ids).tanh().mean((1, 2)))
            return out

    ids = torch.tensor([[[1, 2, 5], [8, 2, 1]]])
    explained = lxt_fx.transform(Sentences().eval(), (ids,))
    relevance = torch.rand(1, 2, 3, 4)
    with pytest.raises(InputError, match="looked up by tokens of more dims .* unit='token' removes all along dim 1"):
        lxt_fx.perturbation_curves(explained, {"ids": ids}, relevance, 0)
    curves = lxt_fx.perturbation_curves(explained, {"ids": ids}, relevance, 0, removal=Removal(unit="token"))
    assert curves.morf.shape[0] == 1
