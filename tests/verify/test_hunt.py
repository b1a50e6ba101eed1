"""The second engine finds what sampling does not, and what it finds is exact, small and inside the law."""

from __future__ import annotations

import dataclasses
import math

import torch

from mtlcore import Needs
from mtlverify.example import Example
from mtlverify.hunt import CHARTS, _aligned, _closing, _escapable, _free, _Hunt, _strategy
from mtlverify.laws.conflict import non_conflicting
from mtlverify.laws.stationarity import strongly_stationary_zero
from mtlverify.laws.weights import simplex_weights
from mtlverify.mutants import twins
from mtlverify.predicates import aligned, exactly_strongly_stationary, not_stationary
from mtlverify.runner import examine
from mtlverify.search import Search
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


def hunt_for(law, chart):
    return _Hunt(Search(law, twins.Mean()), chart, 1.0)


def test_a_hunt_moves_the_losses_too():
    """Weights that are wrong where one loss is a million times another one: no family draws it with these gradients."""

    @dataclasses.dataclass(frozen=True)
    class Unbalanced(twins.Mean):
        needs = Needs.LOSSES
        claims = frozenset({"simplex-weights"})

        def weigh(self, view):
            apart = float(view.losses.abs().max() / view.losses.abs().min())
            return super().weigh(view) * (1.0 + 1e-3 * max(0.0, math.log10(apart) - 5.0))

    tame = dataclasses.replace(
        simplex_weights,
        within=lambda rows: True,
        examples=lambda: jacobians((generic.aligned,)).map(lambda e: e.with_(losses=torch.ones_like(e.losses))),
    )
    assert examine(Unbalanced(), tame, 20, 0).status == "verified"
    assert examine(Unbalanced(), tame, 2, 0, hunt=60.0).status == "refuted"


def test_the_smallest_margin_of_a_hunt_is_told_and_sampling_is_not_needed():
    found = examine(twins.MinNorm(), dataclasses.replace(non_conflicting, universal=True), 0, 0, hunt=0.3)
    assert (found.status, found.examples) == ("verified", 0)
    assert found.hunted > 0
    assert 0 <= found.hunt_margin < 0.1


def test_gradients_stay_within_what_their_dtype_allows():
    ones = torch.ones(2, dtype=torch.float64)
    for dtype, end in ((torch.float32, 20), (torch.float64, 150)):
        for power in (-end, 0, end):
            rows = torch.tensor([[1.0, 2.0], [-3.0, 0.5]], dtype=torch.float64) * 10.0**power
            start = Example(rows.to(dtype), ones)
            hunt, strategy = hunt_for(non_conflicting, _free), _strategy(start, 0)
            for _ in range(20):
                norms = hunt.at(strategy.ask() * 4.0, start).jacobian.double().norm(dim=1)
                assert bool((norms[norms > 0].log10().abs() < end + 2).all()), (dtype, power)


def test_what_is_stationary_stays_so_in_every_dtype():
    rows = torch.tensor([[1.0, 2.0], [-3.0, 0.5], [1.0, 1.0]])
    start = Example(rows, torch.ones(3, dtype=torch.float64))
    hunt, strategy = hunt_for(strongly_stationary_zero, _closing), _strategy(start, 0)
    for _ in range(20):
        assert exactly_strongly_stationary(hunt.at(strategy.ask(), start).jacobian)
