"""The law in distribution: its bound holds for distributions of every kind, and it sees a preference."""

from __future__ import annotations

import pytest
import torch

import mtlcore
from mtlverify import Example, check, tolerance
from mtlverify.answer import uses_randomness
from mtlverify.laws.distribution import equivariant_in_distribution, excess
from mtlverify.mutants.aggregators import SortedDraws
from mtlverify.mutants.twins import Shuffled


def test_the_distance_of_two_samples_by_hand():
    left, right = torch.arange(1, 5).double(), torch.arange(2, 6).double()
    assert excess(left, right, 0.0) == 0.25
    assert excess(right, left, 0.0) == 0.0
    assert excess(left, right, 1.0) == 0.0, "shifted by one, they are the same sample"
    ones = torch.ones(4, dtype=torch.float64)
    assert excess(ones + 1e-12, ones, 1e-9) == excess(ones, ones + 1e-12, 1e-9) == 0.0
    assert excess(0 * ones, ones, 0.5) == 1.0


@pytest.mark.parametrize("kind", ["normal", "atoms", "heavy"])
def test_samples_of_one_distribution_stay_far_within_the_bound(kind):
    generator = torch.Generator().manual_seed(0)

    def sample():
        if kind == "atoms":
            return torch.randint(0, 3, (tolerance.DRAWS,), generator=generator).double()
        drawn = torch.randn(tolerance.DRAWS, generator=generator, dtype=torch.float64)
        return drawn if kind == "normal" else 1.0 / drawn

    worst = max(excess(sample(), sample(), 0.0) for _ in range(1000))
    assert 0.05 < worst < 0.5 * tolerance.chance(1)


@pytest.mark.parametrize("name", ["pcgrad", "rlw"])
def test_random_methods_are_recognised_and_promise_it(name):
    plugin = mtlcore.create("aggregator", name)
    assert uses_randomness(plugin)
    assert "equivariant-in-distribution" in plugin.claims
    (result,) = check(plugin, ["equivariant-in-distribution"], 40)
    assert (result.status, result.examples) == ("verified", 4)


def test_a_preference_for_the_first_task_is_seen_and_the_absence_of_one_is_not():
    example = Example(torch.eye(2).double(), torch.ones(2, dtype=torch.float64), extra={"permutation": [1, 0]})
    assert equivariant_in_distribution.measure(SortedDraws(), example) < -0.1
    assert equivariant_in_distribution.measure(Shuffled(), example) > 0.1
    (result,) = check("mgda", ["equivariant-in-distribution"], 10)
    assert result.status == "not-applicable"
