"""Indicators of fronts against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mtlbench import pareto


def test_hypervolume_of_two_tasks_by_hand():
    # Boxes 0.8 x 0.5 and 0.5 x 0.8, which share 0.5 x 0.5.
    assert pareto.hypervolume([[0.2, 0.5], [0.5, 0.2]]) == pytest.approx(0.4 + 0.4 - 0.25)


def test_hypervolume_of_three_tasks_by_hand():
    # Three boxes 0.5 x 0.5 x 1: each two share 0.5^3, as all three do.
    points = [[0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]]
    assert pareto.hypervolume(points) == pytest.approx(3 * 0.25 - 3 * 0.125 + 0.125)


def test_the_single_task_networks_have_hypervolume_one_and_what_is_better_has_more():
    assert pareto.hypervolume([[0.0, 0.0, 0.0]]) == 1.0
    assert pareto.hypervolume([[-0.1, 0.2]]) == pytest.approx(1.1 * 0.8)


def test_what_is_at_or_beyond_the_reference_point_adds_nothing():
    assert pareto.hypervolume([[1.0, -3.0]]) == 0.0
    assert pareto.hypervolume([[2.0, -3.0], [0.5, 0.5]]) == pytest.approx(0.25)


def test_hypervolume_does_not_see_duplicates_dominated_points_or_order_and_grows_with_every_other_point():
    points = np.random.default_rng(0).uniform(-0.2, 0.8, (6, 3))
    whole = pareto.hypervolume(points)
    assert pareto.hypervolume(np.concatenate([points, points, points + 0.1])) == pytest.approx(whole)
    assert pareto.hypervolume(points[::-1]) == pytest.approx(whole)
    ideal = points.min(axis=0)
    ideal[0] -= 0.1
    assert pareto.hypervolume([*points[:-1]]) <= whole < pareto.hypervolume([*points, ideal])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_point_that_is_none_has_no_hypervolume(value):
    with pytest.raises(ValueError, match="must be finite"):
        pareto.hypervolume([[0.1, value]])


def test_of_equal_points_one_is_not_dominated():
    assert pareto.nondominated([[0.0, 1.0], [0.0, 1.0], [0.5, 1.0], [1.0, 0.0]]).tolist() == [[0.0, 1.0], [1.0, 0.0]]


def test_spread_is_the_mean_range_of_what_is_not_dominated():
    # (0.9, 0.9) is dominated. First task: 0.1 to 0.3; second: 0.2 to 0.8.
    assert pareto.spread([[0.1, 0.8], [0.2, 0.4], [0.3, 0.2], [0.9, 0.9]]) == pytest.approx((0.2 + 0.6) / 2)
    assert pareto.spread([[0.1, 0.8]]) == 0.0
