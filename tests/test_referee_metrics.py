"""Each metric of the referee against a slow loop or a value worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from referee_nets import Weighted, judged, weighted_case
from scipy.stats import spearmanr
from torch import Tensor

from lxt_fx.base.errors import InputError, NonFiniteError
from lxt_fx.referee.answers import Answers
from lxt_fx.referee.case import Subject
from lxt_fx.referee.contest import NotForThisError
from lxt_fx.referee.metrics import METRICS
from lxt_fx.referee.metrics.gold import GoldMass, GoldRank, GoldRecall, Pointing
from lxt_fx.referee.metrics.removal import (
    Area,
    Deletion,
    LeaveOneOutCorrelation,
    MagnitudeAligned,
    mean_ranks,
    present_in,
    spearman,
)
from lxt_fx.referee.metrics.sanity import OtherModel, RandomisedWeights, shuffled
from lxt_fx.referee.metrics.shapley import ShapleyCorrelation, shapley
from lxt_fx.referee.metrics.soft import SoftRemoval, probabilities

# Answers


def test_absent_units_become_each_draw_and_the_numbers_are_averaged() -> None:
    answers = judged([1, 2, 3], [0, 0, 0], baselines=(0.0, 1.0)).answers  # 0 and 2 a token, where 1 stands
    present = torch.tensor([[True, True, True], [False, True, True], [True, False, False]])
    assert answers.whole() == 6
    assert answers.numbers(present, "token").tolist() == [6.0, (5 + 7) / 2, (1 + 11) / 2]
    assert answers.numbers(present, "zero").tolist() == [6.0, 5.0, 1.0]


def test_the_same_question_is_asked_once() -> None:
    answers = judged([1, 2, 3], [0, 0, 0]).answers
    calls: list[int] = []
    answers.subject.model.register_forward_hook(lambda *_: calls.append(1))
    present = torch.tensor([[True, False, True]])
    for _ in range(3):
        answers.numbers(present, "token")
    answers.numbers(present.expand(5, 3), "token")
    assert calls == [1]
    answers.numbers(present, "zero")
    assert calls == [1, 1]


def test_nan_answers_are_an_error_that_names_the_case() -> None:
    answers = judged([1, math.nan, 1], [0, 0, 0]).answers
    with pytest.raises(NonFiniteError, match="weighted answers nan to a variant of case 0"):
        answers.whole()


def test_relevance_of_another_shape_or_with_nan_is_refused() -> None:
    subject, case = Subject("weighted", Weighted([1, 2])), weighted_case(2)
    assert subject.by_unit(case, torch.ones(1, 2, 2)).tolist() == [2, 2]
    assert subject.by_unit(case, torch.tensor([3.0, 4.0])).tolist() == [3, 4]
    with pytest.raises(InputError, match="relevance has shape"):
        subject.by_unit(case, torch.ones(3))
    for wrong in (torch.tensor([math.nan, 0]), torch.tensor([[[math.inf, 0], [0, 0]]])):
        with pytest.raises(NonFiniteError, match="NaN or infinity"):
            subject.by_unit(case, wrong)


# Removal


def by_hand(weights: list[float], order: list[int], steps: int) -> list[float]:
    gone = [round(step * len(order) / steps) for step in range(steps + 1)]
    return [sum(w for unit, w in enumerate(weights) if unit not in order[:count]) for count in gone]


def trapezoid(heights: list[float]) -> float:
    return sum((a + b) / 2 for a, b in zip(heights, heights[1:], strict=False)) / (len(heights) - 1)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-5, 5).map(float), min_size=3, max_size=7), st.randoms(use_true_random=False))
def test_area_by_a_slow_loop(weights: list[float], random: object) -> None:
    relevance = [float(unit) for unit in range(len(weights))]
    random.shuffle(relevance)  # type: ignore[attr-defined]
    most = sorted(range(len(weights)), key=lambda unit: -relevance[unit])
    morf, lerf = by_hand(weights, most, 4), by_hand(weights, most[::-1], 4)
    assert Area(steps=4).of(judged(weights, relevance)) == pytest.approx(trapezoid(lerf) - trapezoid(morf))


def test_the_right_order_has_the_largest_area_and_its_reverse_the_negative() -> None:
    weights = [3.0, -1.0, 2.0, 0.5]
    best = Area().of(judged(weights, weights))
    assert best > Area().of(judged(weights, [1, 2, 3, 4]))
    assert Area().of(judged(weights, [-w for w in weights])) == pytest.approx(-best)


def test_spared_units_stay_and_are_not_ranked() -> None:
    assert Area(steps=2).of(judged([100, 1, 2], [9, 0, 1], spared=[0])) == Area(steps=2).of(judged([1, 2], [0, 1]))
    assert LeaveOneOutCorrelation().of(judged([100, 1, 2, 3], [-9, 1, 2, 3], spared=[0])) == pytest.approx(1)


def test_another_replacement_needs_the_task_to_have_it() -> None:
    assert Area("area_zero", "zero").of(judged([1, 2], [1, 2], baselines=(9.0,))) == pytest.approx(
        Area().of(judged([1, 2], [1, 2]))
    )
    with pytest.raises(NotForThisError, match="replaces units by token, zero, not by mean"):
        Area("area_mean", "mean").of(judged([1, 2], [1, 2]))


def test_leave_one_out_correlation_is_one_for_the_losses_themselves_and_minus_one_for_their_reverse() -> None:
    weights, losses = [1.0, 2.0, 5.0, -1.0], [1.0 + 3, 2.0 + 3, 5.0, -1.0]  # 3 times the product of the first two
    metric = LeaveOneOutCorrelation()
    assert metric.of(judged(weights, losses, pair=3.0)) == pytest.approx(1)
    assert metric.of(judged(weights, [-loss for loss in losses], pair=3.0)) == pytest.approx(-1)
    assert metric.of(judged(weights, weights, pair=3.0)) == pytest.approx(
        spearmanr(weights, losses).statistic  # the product counts for both tokens
    )


def test_shapley_values_share_what_two_do_together() -> None:
    """An order and its reverse are enough for products of two; spared units are always there, and get nothing."""
    one = judged([1.0, 2.0, 5.0, -1.0, 7.0], [0.0] * 5, pair=3.0, spared=[4])
    for permutations in (1, 3):
        assert shapley(one.answers, "token", permutations).tolist() == pytest.approx([2.5, 3.5, 5, -1, 0])
    first = judged([1.0, 2.0, 5.0], [0.0] * 3, pair=3.0, spared=[0])  # beside a spared one, the product is the other's
    assert shapley(first.answers, "token", 2).tolist() == pytest.approx([0, 5, 5])


def test_shapley_correlation_is_one_for_the_values_themselves() -> None:
    weights = [1.0, 2.0, 2.2, -1.0]
    values = [1.0 + 1.5, 2.0 + 1.5, 2.2, -1.0]
    metric = ShapleyCorrelation()
    assert metric.of(judged(weights, values, pair=3.0)) == pytest.approx(1)
    assert metric.of(judged(weights, weights, pair=3.0)) == pytest.approx(spearmanr(weights, values).statistic)
    with pytest.raises(NotForThisError, match="fewer than three units"):
        metric.of(judged([1, 2, 3], [1, 2, 3], spared=[1]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=12))
def test_spearman_equals_scipy_with_ties(pairs: list[tuple[int, int]]) -> None:
    a, b = (torch.tensor(list(side), dtype=torch.float64) for side in zip(*pairs, strict=True))
    if len(a.unique()) == 1 or len(b.unique()) == 1:
        assert spearman(a, b) == 0
    else:
        assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)


def test_equal_numbers_share_their_mean_rank() -> None:
    assert mean_ranks(torch.tensor([7, 3, 7, 1])).tolist() == [2.5, 1, 2.5, 0]


def test_deletion_by_hand() -> None:
    # the number: 4, then 1 (3 removed), then 0; scaled: 1, 1/4, 0
    assert Deletion(steps=2).of(judged([3, 1], [5, 1])) == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert Deletion(steps=2).of(judged([3, 1], [1, 5])) == pytest.approx((1 / 2 + 3 / 4) / 2)
    with pytest.raises(NotForThisError, match="not larger for the whole input"):
        Deletion().of(judged([-3, 1], [1, 5]))


def test_mas_adds_what_sizes_miss() -> None:
    exact, flat = judged([3, 1], [6, 2]), judged([3, 1], [2.001, 2])
    assert MagnitudeAligned(steps=2).of(exact) == pytest.approx(Deletion(steps=2).of(exact))  # sizes as the number falls
    assert MagnitudeAligned(steps=2).of(flat) == pytest.approx((1 / 2 + 1 / 4 + 1 / 4) / 2, abs=1e-3)  # 1/2 left, 1/4 is
    assert 0 <= MagnitudeAligned().of(judged([3, 1], [-1, -2])) <= 1


# Ties


def test_a_constant_relevance_is_no_order_by_position() -> None:
    """Whatever stands where, its area is 0 over cases; by positions it would be that of the first units first."""
    weights, steps = [8.0, 4.0, 2.0, 1.0, 0.0, 0.0], 3
    for metric, expected in ((Area(steps=steps), 0.0), (Deletion(steps=steps), 0.5)):
        found = [metric.of(judged(weights, [1.0] * 6, key=f"{key}")) for key in range(300)]
        assert abs(sum(found) / 300 - expected) < 0.1 * abs(metric.of(judged(weights, weights)) - expected)


def test_units_of_equal_relevance_go_in_the_order_of_the_case() -> None:
    """The same one for all methods, and the other way round where the least relevant go first; all else is by relevance."""
    for key in ("a", "b", "c"):
        flat, other = (present_in(judged([1] * 6, [value] * 6, key=key), 6) for value in (0.0, 7.0))
        assert torch.equal(flat, other)
        assert torch.equal(flat[1], ~flat[0].flip(0))
        two = present_in(judged([1] * 6, [5, 0, 0, 9, 0, 0], spared=[1], key=key), 5)
        assert two[0, :, 1].all() and two[1, :, 1].all()
        assert (two[0].sum(0)[[3, 0]].tolist(), two[1].sum(0)[[3, 0]].tolist()) == ([1, 2], [5, 4])
    orders = {tuple(present_in(judged([1] * 6, [0] * 6, key=str(key)), 6)[0].sum(0).tolist()) for key in range(20)}
    assert len(orders) > 15


def test_gold_units_among_equal_ones_are_expected() -> None:
    for place in (0, 9):
        flat = judged([1] * 10, [0] * 10, gold=[place])
        found = [metric.of(flat) for metric in (GoldRecall(share=0.2), GoldRank(), Pointing())]
        assert found == pytest.approx([0.2, 0.1, 0.1])
    some = judged([1] * 5, [3, 1, 1, 1, 0], gold=[1, 2, 4])
    assert GoldRank().of(some) == pytest.approx(2 * (2 / 3) / 3)  # two of the three equal ones fit
    assert Pointing().of(judged([1] * 3, [2, 2, 0], gold=[1])) == 0.5


# Soft


def test_probabilities_have_the_mean_and_follow_the_scores() -> None:
    for scores in ([0.0, 1, 2, 10], [5.0, 5, 5], [0.0, 0, 0, 1], [-3.0, 100]):
        for mean in (0.1, 0.5, 0.9):
            found = probabilities(torch.tensor(scores, dtype=torch.float64), mean)
            assert float(found.mean()) == pytest.approx(mean, abs=1e-9)
            assert bool(((found >= 0) & (found <= 1)).all())
            assert sorted(found.tolist()) == [p for _, p in sorted(zip(scores, found.tolist(), strict=True))]


def test_soft_metrics_do_not_reward_larger_scores() -> None:
    for metric in (SoftRemoval("c", "comprehensiveness"), SoftRemoval("s", "sufficiency")):
        small = metric.of(judged([3, 1, 0, 2], [3, 1, 0, 2]))
        assert metric.of(judged([3, 1, 0, 2], [300, 100, 0, 200])) == pytest.approx(small)
        assert metric.of(judged([3, 1, 0, 2], [1003, 1001, 1000, 1002])) == pytest.approx(small)
        assert small > metric.of(judged([3, 1, 0, 2], [0, 2, 3, 1]))


def test_soft_metrics_by_hand_where_nothing_is_random() -> None:
    # scores 0 and 1, kept with probabilities 0 and 1: the relevant unit goes, or stays alone
    assert SoftRemoval("c", "comprehensiveness").of(judged([3, 1], [1, 0])) == pytest.approx(3 / 4)
    assert SoftRemoval("s", "sufficiency").of(judged([3, 1], [1, 0])) == pytest.approx(3 / 4)
    with pytest.raises(NotForThisError, match="not larger"):
        SoftRemoval("s", "sufficiency").of(judged([-3, 1], [1, 0]))


def test_a_number_that_hardly_falls_is_divided_by_by_none() -> None:
    """0.09 in all, of a number of 100: less than the floor of 0.1. What is removed at random is then noise."""
    metrics = (SoftRemoval("c", "comprehensiveness"), SoftRemoval("s", "sufficiency"), Deletion(), MagnitudeAligned())
    low, high = (judged([0.05, size, 100], [2, 1, 3], spared=[2]) for size in (0.04, 0.06))
    for metric in metrics:
        with pytest.raises(NotForThisError, match=f"{metric.name}: .* with all removed, by at least 0.1"):
            metric.of(low)
        assert metric.of(high) == pytest.approx(replace(metric, floor=0.0).of(high))
        assert math.isfinite(replace(metric, floor=0.01).of(low))
        with pytest.raises(NotForThisError, match="by at least 0,"):
            replace(metric, floor=0.0).of(judged([0.0, 0.0, 100], [2, 1, 3], spared=[2]))


# Gold


def test_gold_metrics_by_hand() -> None:
    found = judged([1] * 10, [9, 1, 2, 8, 7, 0, 0, 0, -5, 0], gold=[3, 4, 8])
    assert GoldRecall(share=0.1).of(found) == 0
    assert GoldRecall(share=0.2).of(found) == 1 / 2
    assert GoldRecall(share=0.3).of(found) == 2 / 3
    assert GoldMass().of(found) == pytest.approx(15 / 27)
    assert GoldRank().of(found) == 2 / 3
    assert Pointing().of(found) == 0
    assert Pointing().of(judged([1, 1], [0, 1], gold=[1])) == 1


def test_gold_metrics_leave_spared_units_out() -> None:
    found = judged([1] * 4, [9, 1, 2, 0], gold=[2], spared=[0])
    assert Pointing().of(found) == 1
    assert GoldMass().of(found) == pytest.approx(2 / 3)
    for metric in (GoldRecall(), GoldMass(), GoldRank(), Pointing()):
        with pytest.raises(NotForThisError, match="does not say"):
            metric.of(judged([1, 2], [1, 2]))
        with pytest.raises(NotForThisError, match="does not say"):
            metric.of(judged([1, 2, 3], [1, 2, 3], gold=[0], spared=[0]))


def test_no_positive_relevance_has_no_mass_on_gold() -> None:
    assert GoldMass().of(judged([1, 1], [-1, -2], gold=[0])) == 0


# Sanity


def test_randomised_weights_compares_with_a_copy_and_leaves_the_model() -> None:
    found = judged([1, 2, 3, 4], [1, 2, 3, 5])
    before = found.subject.model.state_dict()["weights"].clone()
    seen: list[Tensor] = []

    def explain_with(other: Subject) -> Tensor:
        weights: Tensor = other.model.state_dict()["weights"]
        seen.append(weights)
        return -weights

    metric = RandomisedWeights(seed=1)
    value = metric.of(replace(found, explain_with=explain_with))
    assert sorted(seen[0].tolist()) == [1, 2, 3, 4]
    assert seen[0].tolist() != [1, 2, 3, 4]
    assert value == pytest.approx(abs(spearmanr([1, 2, 3, 5], seen[0]).statistic))
    assert torch.equal(found.subject.model.state_dict()["weights"], before)
    assert OtherModel(Weighted([1, 2, 3, 4])).of(replace(found, explain_with=explain_with)) == pytest.approx(1)


def test_an_order_that_does_not_change_with_the_model_is_no_explanation_of_it() -> None:
    """A constant has no rank correlation, and is the same under every model."""
    flat = replace(judged([1, 2, 3], [2, 2, 2]), explain_with=lambda other: torch.ones(3, dtype=torch.float64))
    assert RandomisedWeights().of(flat) == 1
    assert RandomisedWeights().of(replace(flat, relevance=torch.tensor([1.0, 2.0, 3.0]))) == 0


def test_nan_under_other_weights_is_no_number_and_no_end() -> None:
    found = judged([1, 2, 3], [1, 2, 3])

    def explain_with(other: Subject) -> Tensor:
        return other.by_unit(found.case, torch.tensor([1.0, math.inf, 2.0]))

    for metric in (RandomisedWeights(), OtherModel(Weighted([3, 2, 1]))):
        with pytest.raises(NotForThisError, match=f"{metric.name}: under the other weights relevance has NaN"):
            metric.of(replace(found, explain_with=explain_with))


def test_shuffled_weights_keep_embeddings_and_ties() -> None:
    import tiny

    model = tiny.llama()
    model.tie_weights()
    made = shuffled(model, 0)
    old, new = model.state_dict(), made.state_dict()
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    assert "model.embed_tokens.weight" not in moved
    assert "model.layers.0.mlp.up_proj.weight" in moved
    assert all(torch.equal(old[name].flatten().sort().values, new[name].flatten().sort().values) for name in old)


def test_every_metric_has_its_name_and_says_which_way_is_better() -> None:
    assert all(metric.name == name and metric.better in ("higher", "lower") for name, metric in METRICS.items())


def test_answers_take_the_unit_of_the_subject() -> None:
    from torch import nn

    from lxt_fx.referee.case import Case

    class Top(nn.Module):
        def forward(self, pixel_values: Tensor) -> Tensor:
            return pixel_values[:, 0, 0, 0] + 10 * pixel_values[:, 0, 3, 3]

    picture = torch.ones(1, 1, 4, 4)
    case = Case("0", {"pixel_values": picture}, lambda out: out, "corners", ("a", "b", "c", "d"), torch.zeros(4) > 0)
    answers = Answers(Subject("top", Top(), "image", unit=2), case, {"zero": [torch.zeros(())]})
    assert answers.numbers(~torch.eye(4, dtype=torch.bool), "zero").tolist() == [10, 11, 11, 1]
