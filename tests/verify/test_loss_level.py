"""The laws of loss-level methods on hyper-parameters that the ledger does not list, and what the laws can see."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import mtlcore
from mtlverify import Example, check
from mtlverify.laws.loss_level import coefficient_identity, one_backward_pass
from mtlverify.laws.scaling import loss_unit_invariant
from mtlverify.laws.symmetry import permutation_equivariant
from mtlverify.laws.weights import conic_combination
from mtlverify.mutants.aggregators import AbsoluteProgress
from mtlverify.references import objectives

BALANCERS = [
    {"normalisation": normalisation, "discrepancy": discrepancy, "pareto_safe": False}
    for normalisation in ("identical", "rescaled", "log")
    for discrepancy in ("adjacent", "all-pairs", "sorted-adjacent")
] + [
    {"tau": "one", "lamb": 0.4, "pareto_safe": True},
    {"divide_by": "sum", "squash": "softmax", "lamb": 0.3},
    {"divide_by": "one", "router_optimizer": "sgd", "router_lr": 0.1},
    {"squash": "relu-sigmoid", "clamp_low": 0.55, "clamp_high": 0.7},
    {"normalisation": "log", "log_reference_every": 2, "beta1": 0.5, "eps": 1e-3},
    {"tau": "one", "divide_by": "sum", "discrepancy": "all-pairs", "router_lr": 0.1},
    {"normalisation": "log", "log_reference_every": 2, "beta2": 0.0},
    {"preset": "celeba"},
]


def verdict(plugin, law, max_examples=40):
    (result,) = check(plugin, [law], max_examples)
    assert result.examples > 0
    return result.status


@pytest.mark.parametrize("options", BALANCERS, ids=lambda o: "-".join(map(str, o.values())))
def test_bilb4mtl_follows_autograd_of_its_objective_whatever_the_options(options):
    plugin = mtlcore.create("aggregator", "bilb4mtl", **options)
    assert "coefficient-identity" in plugin.claims
    assert verdict(plugin, "coefficient-identity") == "verified"


def test_terms_that_cancel_in_a_weight_leave_their_rounding():
    """17 equal losses: the discrepancies of all pairs add up to nothing for one of them, or to 7e-18."""
    options = {"tau": "one", "divide_by": "sum", "discrepancy": "all-pairs", "router_lr": 0.1}
    plugin = mtlcore.create("aggregator", "bilb4mtl", **options)
    equal = Example(torch.zeros(17, 2), torch.full((17,), 0.125, dtype=torch.float64))
    assert coefficient_identity.measure(plugin, equal) >= 0.0


def test_a_router_that_has_gone_to_zero_may_do_so_in_either_way():
    """sigmoid(-7e9) is 0 in torch and 1e-304 in the method: both have left the range of float64."""
    plugin = mtlcore.create("aggregator", "bilb4mtl", divide_by="one", router_optimizer="sgd", router_lr=0.1)
    huge = Example(torch.zeros(1, 1, dtype=torch.float64), torch.full((1,), 2.0**37, dtype=torch.float64))
    assert coefficient_identity.measure(plugin, huge) >= 0.0


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("stch", {"form": "plain", "mu": 3.0}),
        ("stch", {"form": "log", "mu": 0.3, "warmup_steps": 1, "nadir_steps": 2}),
        ("uw", {"start": -0.5, "lr": 0.2}),
        ("famo", {"gamma": 0.01, "lr": 0.1}),
        ("imtl-l", {"lr": 0.3}),
    ],
)
def test_other_options_of_other_methods(name, options):
    assert verdict(mtlcore.create("aggregator", name, **options), "coefficient-identity") == "verified"


def test_the_smooth_maximum_of_huge_equal_losses_shares_equally():
    plugin = mtlcore.create("aggregator", "stch", form="plain", mu=3.0)
    huge = torch.full((2,), 2.0**37, dtype=torch.float64)
    weights = objectives.SmoothMaximum(plugin, 2).weights(huge, 0)
    assert weights.tolist() == [0.5, 0.5]


def test_fixed_weights_and_preferences_are_part_of_the_objective():
    example = Example(torch.eye(3).double(), torch.tensor([1.0, 5.0, 0.2], dtype=torch.float64))
    for name, options in (
        ("ls", {"weights": (1.0, 2.0, 0.5)}),
        ("stch", {"form": "plain", "preferences": (1.0, 3.0, 2.0), "ideal": (0.1, 0.0, 0.1)}),
    ):
        plugin = mtlcore.create("aggregator", name, **options)
        assert coefficient_identity.measure(plugin, example) > 0.9


@dataclasses.dataclass(frozen=True)
class _Stale:
    """A method of which the reference is asked with another hyper-parameter: the law must see the difference."""

    name: str
    options: dict
    other: dict


@pytest.mark.parametrize(
    "wrong",
    [
        _Stale("bilb4mtl", {}, {"lamb": 0.0501}),
        _Stale("bilb4mtl", {}, {"router_lr": 1.1e-3}),
        _Stale("bilb4mtl", {"normalisation": "log"}, {"normalisation": "rescaled"}),
        _Stale("bilb4mtl", {}, {"beta2": 0.99}),
        _Stale("famo", {}, {"gamma": 2e-3}),
        _Stale("uw", {}, {"lr": 0.026}),
        _Stale("stch", {"nadir_steps": 1}, {"nadir_steps": 2}),
    ],
    ids=lambda w: f"{w.name}-{next(iter(w.other))}",
)
def test_a_slightly_different_method_is_not_taken_for_this_one(wrong, monkeypatch):
    plugin = mtlcore.create("aggregator", wrong.name, **wrong.options)
    other = mtlcore.create("aggregator", wrong.name, **{**wrong.options, **wrong.other})
    right = objectives.objective_of
    example = Example(
        torch.tensor([[1.0, 0.0], [-1.0, 2.0], [3.0, 1.0]], dtype=torch.float64),
        torch.tensor([1.0, 5.0, 0.2], dtype=torch.float64),
    )
    assert coefficient_identity.measure(plugin, example) > 0.9
    monkeypatch.setattr(objectives, "objective_of", lambda _, k: right(other, k))
    assert coefficient_identity.measure(plugin, example) < 0


def test_routers_that_the_reference_does_not_follow_are_not_promised():
    for options in ({"preset": "qm9"}, {"router": "linear"}):
        plugin = mtlcore.create("aggregator", "bilb4mtl", **options)
        assert "coefficient-identity" not in plugin.claims
        assert "router" in objectives.missing(plugin)


def test_the_count_of_passes_sees_the_inner_loop():
    example = Example(torch.eye(2).double(), torch.ones(2, dtype=torch.float64))
    assert one_backward_pass.measure(mtlcore.create("aggregator", "bilb4mtl"), example) == 1.0
    double = mtlcore.create("aggregator", "bilb4mtl-double-loop", inner_steps=1)
    assert one_backward_pass.measure(double, example) == -1.0
    assert "one-backward-pass" not in double.claims


def test_the_unit_law_sees_what_the_first_step_does_not_show(monkeypatch):
    example = Example(
        torch.tensor([[1.0, 0.0], [-1.0, 2.0]], dtype=torch.float64),
        torch.tensor([1.0, 2.0], dtype=torch.float64),
        extra={"factors": [1024.0, 1.0]},
    )
    assert loss_unit_invariant.measure(AbsoluteProgress(), example) < 0
    monkeypatch.setattr("mtlverify.laws.scaling.steps", lambda example: 1)
    assert loss_unit_invariant.measure(AbsoluteProgress(), example) == 1.0


def test_the_order_and_the_signs_of_bilb4mtl_show_after_the_first_step_only(monkeypatch):
    """At the reference losses all tasks are tied, so nobody is pulled."""
    rows = torch.eye(3, dtype=torch.float64)
    example = Example(rows, torch.ones(3, dtype=torch.float64), extra={"permutation": [1, 0, 2]})
    published = mtlcore.create("aggregator", "bilb4mtl", pareto_safe=False, lamb=1.0)
    order_free = mtlcore.create("aggregator", "bilb4mtl", discrepancy="all-pairs")
    assert permutation_equivariant.measure(published, example) < 0
    assert conic_combination.measure(published, example) < 0
    assert permutation_equivariant.measure(order_free, example) > 0
    monkeypatch.setattr("mtlverify.laws.runs.STEPS", 1)
    assert permutation_equivariant.measure(published, example) > 0
    assert conic_combination.measure(published, example) > 0
