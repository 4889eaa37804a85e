"""Means, intervals, paired tests and Holm's correction: by hand, and by what they promise over many experiments."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from lxt_fx.base.errors import InputError
from lxt_fx.referee.statistics import cases_needed, compared, holm, interval, sign_flip_p


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_mean_and_its_standard_error_by_hand() -> None:
    found = interval(torch.tensor([1.0, 2.0, 6.0]))
    assert found.mean == 3 and found.cases == 3
    assert found.error == pytest.approx(math.sqrt((4 + 1 + 9) / 2 / 3))


def test_the_interval_is_that_of_all_resamples_of_three_values() -> None:
    """Of three values there are 27 equally likely resamples; 1 and 6 have each a probability of 1/27 > 2.5 %."""
    values = (1.0, 2.0, 6.0)
    means = sorted(sum(each) / 3 for each in itertools.product(values, repeat=3))
    assert (means[0], means[-1], 1 / 27 > 0.025) == (1, 6, True)
    found = interval(torch.tensor(values), resamples=20_000)
    assert (found.low, found.high) == (1, 6)
    wide = drawn(400)  # nearly normal: the skewness of these 400 and the noise of the resamples are each a few percent
    found = interval(wide, resamples=20_000)
    error = float(wide.std(correction=0)) / 20
    assert found.low == pytest.approx(float(wide.mean()) - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(float(wide.mean()) + 1.96 * error, abs=0.1 * error)


def test_an_interval_is_the_same_each_time_and_another_with_another_seed() -> None:
    values, state = drawn(50), torch.get_rng_state()
    assert interval(values) == interval(values) and interval(values) != interval(values, seed=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_one_case_has_no_interval_and_what_is_no_number_is_refused() -> None:
    found = interval(torch.tensor([2.0]))
    assert found.mean == 2 and math.isnan(found.low) and math.isnan(found.high) and math.isnan(found.error)
    for wrong in (torch.tensor([]), torch.tensor([1.0, math.nan]), torch.ones(2, 2)):
        with pytest.raises(InputError, match="one finite number a case"):
            interval(wrong)


def test_the_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    """Of a skewed distribution, whose mean is 1: 95 % in the long run, a little less for few cases (Efron 1993)."""
    experiments = 1000
    for cases, low, high in ((50, 0.90, 0.955), (400, 0.93, 0.965)):
        values = torch.empty(experiments, cases, dtype=torch.float64)
        values.exponential_(generator=torch.Generator().manual_seed(1))
        found = [interval(each, resamples=500) for each in values]
        assert low < sum(one.low <= 1 <= one.high for one in found) / experiments < high


def test_the_sign_flip_test_by_hand() -> None:
    """Of 16 flips of 4 equal differences 2 reach the sum on either side."""
    assert sign_flip_p(torch.ones(4)) == sign_flip_p(-torch.ones(4)) == 2 / 16
    values = torch.tensor([3.0, 1.0, -1.0])
    sums = [abs(sum(s * v for s, v in zip(signs, values.tolist(), strict=True)))
            for signs in itertools.product((1, -1), repeat=3)]  # fmt: skip
    assert sign_flip_p(values) == sum(one >= 3 for one in sums) / 8
    assert sign_flip_p(torch.zeros(5)) == 1


def test_groups_are_drawn_whole() -> None:
    """Of three groups there are 27 resamples of whole groups: the mean is that of all their cases."""
    values, groups = (1.0, 2.0, 6.0, 7.0, 11.0), ("a", "b", "a", "", "b")
    whole = ((1.0, 6.0), (2.0, 11.0), (7.0,))
    means = sorted({sum(map(sum, each)) / sum(map(len, each)) for each in itertools.product(whole, repeat=3)})
    found = interval(torch.tensor(values), groups, resamples=20_000)
    assert (found.low, found.high) == pytest.approx((means[0], means[-1])) and (found.cases, found.groups) == (5, 3)
    sums = [7 - 2 * 5.4, 13 - 2 * 5.4, 7 - 5.4]
    assert found.error == pytest.approx(math.sqrt(3 / 2 * sum(each**2 for each in sums)) / 5)
    assert interval(torch.tensor(values), ("",) * 5) == interval(torch.tensor(values))
    one = interval(torch.tensor(values), ("a",) * 5)
    assert one.mean == 5.4 and all(map(math.isnan, (one.low, one.high, one.error)))


def test_the_same_case_again_in_its_group_is_no_evidence() -> None:
    """Each of 12 cases comes four times: with groups the interval, the test and the cases needed are those of 12."""
    once, often = drawn(12), drawn(12).repeat(4)
    groups = [f"{at % 12}" for at in range(48)]
    plain, grouped = interval(once), interval(often, groups)
    assert (grouped.low, grouped.high, grouped.error) == pytest.approx((plain.low, plain.high, plain.error))
    assert interval(often).error < 0.55 * plain.error
    assert sign_flip_p(often, groups) == sign_flip_p(once)
    assert cases_needed(often, 10, groups=groups) == pytest.approx(4 * (cases_needed(once, 10) or 0), abs=4)
    assert cases_needed(often, 10, groups=["a"] * 48) is None


def test_the_interval_of_groups_covers_the_true_mean_and_that_of_cases_does_not() -> None:
    """40 groups of 5 cases that share half of their variance."""
    experiments, count, of = 600, 40, 5
    values = drawn(experiments, count, 1, seed=1) + drawn(experiments, count, of, seed=2)
    groups = [str(at // of) for at in range(count * of)]
    covered = []
    for known in (groups, []):
        found = [interval(each.flatten(), known, 500) for each in values]
        covered.append(sum(one.low <= 0 <= one.high for one in found) / experiments)
    assert 0.91 < covered[0] < 0.97 and covered[1] < 0.83


def test_a_whole_group_flips() -> None:
    """Of 8 flips of three groups two reach the sum; of single cases 2 of 32."""
    values = torch.ones(5)
    assert sign_flip_p(values, ("a", "a", "b", "b", "")) == 2 / 8 and sign_flip_p(values) == 2 / 32


def test_a_comparison_goes_by_the_groups_of_its_common_cases() -> None:
    method = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.5, "x": 1.0}
    reference = {"a": 0.0, "b": 0.5, "c": 1.0, "d": 0.0}
    found = compared(method, reference, "higher", {"a": "one", "b": "one", "x": "two"})
    assert found is not None and (found.difference.cases, found.difference.groups) == (4, 3)
    assert found.p == 2 / 8 and found.wins == 4


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([0.5, 0.9]) == (1.0, 1.0) and holm([]) == ()
    assert holm([0.04]) == (0.04,)


def test_holm_finds_something_false_in_no_more_than_one_family_of_twenty() -> None:
    """Six methods that are no better than the reference, in 400 families; without the correction it is one of four."""
    families, methods, cases = 400, 6, 20
    noise = drawn(families, methods, cases, seed=3)
    chances = [[sign_flip_p(each) for each in family] for family in noise]
    plain = sum(min(family) < 0.05 for family in chances) / families
    corrected = sum(min(holm(family)) < 0.05 for family in chances) / families
    assert plain > 0.2 and corrected < 0.05 + 2 * math.sqrt(0.05 * 0.95 / families)


def test_cases_needed_by_hand() -> None:
    """A spread of 2 and a mean of 10: two standard errors are 0.5 where 2 * 2 / sqrt(n) = 0.5."""
    spread = torch.tensor([-2.0, 2.0]).repeat(50) * math.sqrt(99 / 100)
    assert cases_needed(spread, 10) == cases_needed(spread, -10) == 64
    assert cases_needed(spread, 0) is None and cases_needed(spread[:1], 10) is None


def test_a_comparison_is_on_common_cases_and_counts_wins_the_way_the_metric_counts() -> None:
    method, reference = {"a": 1.0, "b": 5.0, "c": 3.0, "x": 90.0}, {"c": 3.0, "b": 2.0, "a": 2.0, "y": -90.0}
    found = compared(method, reference, "higher")
    assert found is not None and found.difference.cases == 3 and found.difference.mean == pytest.approx(2 / 3)
    assert (found.wins, found.losses, found.ties) == (1, 1, 1)
    turned = compared({"a": 1.0, "b": 1.0}, {"a": 2.0, "b": 3.0}, "lower")
    assert turned is not None and (turned.wins, turned.losses) == (2, 0)
    assert compared({"a": 1.0}, {"b": 1.0}, "higher") is None


def test_a_verdict_takes_evidence_and_the_direction() -> None:
    values = {str(at): 1 + 0.1 * at for at in range(10)}
    more = {key: value + 1 for key, value in values.items()}
    found = compared(more, values, "higher")
    assert found is not None and found.verdict("higher") == "better" and found.verdict("lower") == "worse"
    few = compared(dict(list(more.items())[:3]), values, "higher")
    assert few is not None and few.verdict("higher") == "no evidence"


def test_rounding_is_a_tie_however_steady() -> None:
    values = {str(at): 3.0 + at for at in range(20)}
    found = compared({key: value * (1 + 1e-8) for key, value in values.items()}, values, "higher")
    assert found is not None and (found.wins, found.ties, found.p) == (0, 20, 1.0)
    assert found.verdict("higher") == "no evidence"
