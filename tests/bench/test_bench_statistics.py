"""Statistics against values known from elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from mtlbench import statistics as stats


def test_t_interval_of_three_values():
    # mean 2, s = 1, n = 3: 2 +- 4.302653 / sqrt(3)
    found = stats.t_interval([1.0, 2.0, 3.0])
    assert found.estimate == 2.0
    assert found.high - 2.0 == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert 2.0 - found.low == pytest.approx(4.302653 / 3**0.5, rel=1e-6)


def test_one_value_has_no_interval():
    assert stats.t_interval([1.0]).low is None
    assert stats.paired([[1.0]]).verdict == "not enough runs"


def test_interquartile_mean_ignores_the_outer_quarters():
    assert stats.interquartile_mean([-1000.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 1000.0]) == 3.5
    assert stats.interquartile_mean([1.0, 2.0, 6.0]) == 3.0


def test_sign_flip_test_is_exact():
    # All five differences positive: only the two extreme of the 32 sign patterns are as far from zero.
    assert stats.sign_flip_test([1.0, 2.0, 3.0, 4.0, 5.0]) == 2 / 32
    # Three pairs can never do better than 2/8, which is why a t-test is used there.
    assert stats.sign_flip_test([10.0, 10.1, 10.2]) == 0.25


def test_sign_flip_test_samples_for_many_pairs():
    rng = np.random.default_rng(0)
    null = stats.sign_flip_test(rng.normal(0, 1, 20))
    shifted = stats.sign_flip_test(rng.normal(2, 1, 20))
    assert shifted < 0.001 < 0.05 < null


def test_holm_against_the_textbook():
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])


def test_paired_t_equals_scipy():
    d = [0.4, 0.7, 0.2, 0.5]
    found = stats.paired([d])
    assert found.p == pytest.approx(scipy_stats.ttest_1samp(d, 0.0).pvalue)
    assert found.verdict == "worse"
    assert found.test == "paired t-test"


def test_detectable_difference_is_the_half_width():
    found = stats.paired([[0.4, -0.7, 0.2]])
    assert found.verdict == "no significant difference"
    assert found.detectable == pytest.approx(found.difference.high - found.difference.estimate)


def test_the_level_of_holms_step_is_that_of_the_step_it_stops_at():
    assert stats.holm_level([]) == pytest.approx(0.05)
    assert stats.holm_level([0.9, 0.04, 0.9]) == pytest.approx(0.05 / 4)  # nothing else passes: Bonferroni
    assert stats.holm_level([0.9, 0.01, 0.9]) == pytest.approx(0.05 / 3)
    assert stats.holm_level([0.9, 0.01, 0.016]) == pytest.approx(0.05 / 2)
    assert stats.holm_level([0.001, 0.01, 0.016]) == pytest.approx(0.05)


@pytest.mark.parametrize("others", [[], [0.3], [0.9, 0.01, 0.016], [0.02, 0.02, 0.02], [0.0, 0.012, 0.016, 0.5]])
def test_holm_rejects_exactly_below_its_level(others):
    level = stats.holm_level(others)
    assert stats.holm([*others, level * (1 - 1e-9)])[-1] < 0.05
    assert stats.holm([*others, level * (1 + 1e-9)])[-1] >= 0.05


def test_a_difference_as_large_as_the_detectable_one_is_just_significant_after_correction():
    spread = np.array([0.3, -0.2, -0.1])
    others = {f"b{i}": stats.paired([[0.1, -0.1, 0.05]]) for i in range(4)} | {
        "c": stats.paired([[1.0, 1.0001, 0.9999]])
    }
    found = stats.corrected({"a": stats.paired([spread]), **others})["a"]
    # Six comparisons, of which one is significant: 0.05 / 5, and t of 0.005 with two degrees of freedom is 9.9248.
    assert found.detectable == pytest.approx(9.9248 * np.std(spread, ddof=1) / 3**0.5, rel=1e-4)
    for factor, verdict in ((0.999, "no significant difference"), (1.001, "worse")):
        moved = stats.paired([spread + factor * found.detectable])
        assert stats.corrected({"a": moved, **others})["a"].verdict == verdict


def test_enough_pairs_for_resampling_are_enough_for_many_comparisons():
    def family(pairs, size):
        return stats.corrected({f"m{i}": stats.paired([np.linspace(0.9, 1.1, pairs)]) for i in range(size)})

    assert {c.verdict for c in family(stats.SMALL, 25).values()} == {"worse"}
    assert {c.verdict for c in family(stats.SMALL - 1, 25).values()} == {"worse"}
    assert {c.verdict for c in family(20, 25).values()} == {"worse"}
    assert family(stats.SMALL, 26)["m0"].detectable == float("inf")
    assert family(stats.SMALL, 26)["m0"].verdict == "no significant difference"
    assert stats.sign_flip_test(np.ones(stats.SMALL).tolist()) == stats.smallest_sign_flip_p(stats.SMALL)
    assert stats.sign_flip_test(np.ones(40).tolist()) == stats.smallest_sign_flip_p(40)


def test_equal_runs_are_no_difference_and_not_an_error():
    assert stats.paired([[0.0, 0.0, 0.0]]).verdict == "no significant difference"
    assert stats.paired([[-1.0, -1.0, -1.0]]).verdict == "better"


def test_correction_can_take_a_verdict_back():
    alone = stats.paired([[0.4, 0.7, 0.2, 0.5]])
    assert alone.verdict == "worse"
    family = {"a": alone, **{f"b{i}": stats.paired([[0.1, -0.1, 0.05]]) for i in range(9)}}
    assert stats.corrected(family)["a"].verdict == "no significant difference"
    assert stats.corrected(family)["a"].p_holm == pytest.approx(10 * alone.p)


def test_stratified_bootstrap_keeps_strata_apart():
    # Two tasks without any spread inside: resampling within tasks cannot move the mean; pooled it would.
    found = stats.stratified_bootstrap([[0.0] * 5, [10.0] * 5])
    assert (found.low, found.estimate, found.high) == (5.0, 5.0, 5.0)


def test_stratified_bootstrap_covers_about_95_percent():
    rng = np.random.default_rng(3)
    hits = 0
    for i in range(100):
        found = stats.stratified_bootstrap([rng.normal(0, 1, 20), rng.normal(4, 1, 20)], seed=i)
        hits += found.low <= 2.0 <= found.high
    assert 88 <= hits <= 99


@pytest.mark.parametrize("runs", [[8], [3, 3], [3, 3, 3], [3, 3, 3, 3], [5, 5], [2, 5], [9, 3], [6, 3, 3]])
def test_intervals_of_a_few_runs_a_task_cover_about_95_percent(runs):
    rng = np.random.default_rng(4)
    hits = 0
    for _ in range(300):
        found = stats.interval([rng.normal(10.0 * i, 1.0, n) for i, n in enumerate(runs)])
        hits += found.low <= np.mean(10.0 * np.arange(len(runs))) <= found.high
    assert 0.89 <= hits / 300 <= 0.985


def test_a_difference_between_tasks_is_not_noise():
    # The same gain in every seed of a task, small on one task and large on the other: that is a gain.
    assert stats.paired([[-1.0, -1.1, -0.9], [-9.0, -9.1, -8.9]]).verdict == "better"
    assert stats.paired([[-1.0, -1.0], [1.0, 1.0]]).verdict == "no significant difference"


@pytest.mark.parametrize("runs", [3, 12])
def test_a_task_with_fewer_runs_counts_like_the_others(runs):
    # Tasks at 1 and at 5: whatever their numbers of runs, the mean over tasks is 3.
    strata = [np.linspace(0.9, 1.1, runs).tolist(), [4.9, 5.1]]
    assert stats.interval(strata).estimate == pytest.approx(3.0)
    assert stats.stratified_bootstrap(strata).estimate == pytest.approx(3.0)
    assert stats.paired(strata).difference.estimate == pytest.approx(3.0)
    # A gain on one task and an equal loss on the other, with five times the runs, are no difference.
    level = stats.paired([[-1.0, -1.1, -0.9] * (runs // 3 * 5), [1.0, 1.1, 0.9] * (runs // 3)])
    assert level.p > 0.5


@pytest.mark.parametrize("tasks", [2, 9])
def test_one_run_a_task_has_no_interval(tasks):
    one_each = [[float(i)] for i in range(tasks)]
    assert stats.interval(one_each).low is None
    assert stats.stratified_bootstrap(one_each, trimmed=True).low is None
    assert stats.paired(one_each).verdict == "not enough runs"


def test_nothing_at_all_is_not_an_error():
    assert stats.stratified_bootstrap([[], []]).n == 0
    assert stats.interval([[], []]).low is None


def test_few_runs_get_students_t_and_many_the_bootstrap():
    assert stats.interval([[1.0, 2.0, 3.0]]).kind == "Student's t"
    assert stats.interval([[1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 3.0, 4.0, 5.0]]).kind == "stratified bootstrap"


def test_probability_of_improvement_counts_ties_half_and_averages_tasks():
    assert stats.probability_of_improvement([[1.0, 2.0]], [[3.0, 4.0]]) == 1.0
    assert stats.probability_of_improvement([[1.0, 2.0]], [[1.0, 2.0]]) == 0.5
    assert stats.probability_of_improvement([[1.0], [1.0]], [[2.0], [0.0]]) == 0.5


def test_performance_profile():
    assert stats.performance_profile([3.0, 1.0, 2.0, 2.0], [0.0, 1.0, 2.0, 5.0]) == [0.0, 0.25, 0.75, 1.0]
