"""The second engine finds what sampling does not, and what it finds is exact, small and inside the law."""

from __future__ import annotations

import dataclasses

import torch

from mtlverify.hunt import CHARTS, _aligned, _closing, _escapable
from mtlverify.laws.conflict import non_conflicting
from mtlverify.laws.stationarity import strongly_stationary_zero
from mtlverify.mutants import twins
from mtlverify.predicates import aligned, exactly_strongly_stationary, not_stationary
from mtlverify.runner import examine
from mtlverify.strategies import generic, jacobians


@dataclasses.dataclass(frozen=True)
class Promising(twins.Mean):
    """A mean that promises too much."""

    claims = frozenset({"non-conflicting"})


def test_a_hunt_leaves_the_family_it_started_from_and_finds_what_was_not_drawn():
    """All that is drawn is aligned, where the mean harms nobody."""
    tame = dataclasses.replace(non_conflicting, examples=lambda: jacobians((generic.aligned,)))
    quiet = examine(Promising(), tame, 2, 0)
    assert (quiet.status, quiet.hunted) == ("verified", 0)
    found = examine(Promising(), tame, 2, 0, hunt=60.0)  # ends with the first find
    assert found.status == "refuted"
    assert found.hunted > 0
    assert found.examples == 2
    rows = torch.tensor(found.counterexample["example"]["jacobian"])
    assert bool((rows == rows.round()).all())
    assert rows.numel() <= 4


def test_what_nobody_promised_is_not_hunted():
    assert examine(twins.MinNorm(), non_conflicting, 5, 0, hunt=60.0).hunted == 0


def test_charts_stay_inside_the_domain_of_their_law():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        entries = torch.randn(4, 3, dtype=torch.float64, generator=generator)
        logs = torch.randn(4, dtype=torch.float64, generator=generator)
        assert exactly_strongly_stationary(_closing(entries, logs))
        assert aligned(_aligned(entries, logs))
        assert not_stationary(_escapable(entries, logs))
    assert CHARTS[strongly_stationary_zero.domain] is _closing
