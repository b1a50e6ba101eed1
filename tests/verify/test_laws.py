"""The harness itself: results, seeds, shrinking, replay, honest counts, attribution."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import types
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from mtlcore import Aggregation
from mtlcore.errors import ConfigurationError, UnknownPluginError
from mtlcore.registry import create, registry
from mtlverify import Example, check, replay
from mtlverify.law import WORST, Margin, OutsideLaw, given, law, worst
from mtlverify.laws.conflict import non_conflicting
from mtlverify.laws.scaling import loss_unit_invariant
from mtlverify.mutants import aggregators, twins
from mtlverify.runner import chosen, examine
from mtlverify.strategies import ALL, Strata, jacobians
from mtlverify.strategies.generic import single_task, small


def only(plugin, law_id, max_examples=100, seed=0):
    (result,) = check(plugin, [law_id], max_examples, seed)
    return result


@dataclasses.dataclass(frozen=True)
class Promising(twins.Mean):
    """A mean that promises too much."""

    claims = frozenset({"non-conflicting"})


def test_a_correct_method_is_verified_with_an_honest_count():
    result = only(twins.ConeMean(), "non-conflicting", max_examples=60)
    assert (result.status, result.examples, result.counterexample) == ("verified", 60, None)
    assert result.worst_margin >= 0


def test_a_violation_of_size_1e_minus_4_is_found_shrunk_and_replayed():
    """Comparing norms would see 1e-8 here; the cosine sees it, and the counterexample survives a file."""
    result = only(aggregators.SlightlyConflicting(), "non-conflicting")
    assert result.status == "refuted"
    assert result.worst_margin < 0
    stored = json.loads(json.dumps(result.counterexample))
    again = replay(aggregators.SlightlyConflicting(), stored)
    assert (again.status, again.worst_margin) == ("refuted", result.worst_margin)
    assert replay(twins.ConeMean(), stored).status == "verified"


def test_counterexamples_are_shrunk_to_a_few_small_integers():
    result = only(Promising(), "non-conflicting")
    rows = torch.tensor(result.counterexample["example"]["jacobian"])
    assert rows.shape[0] <= 3
    assert bool((rows == rows.round()).all())
    assert float(rows.abs().max()) <= 100
    assert float((rows @ rows.mean(0)).min()) < 0


def test_the_seed_decides_everything():
    first, second = (only(twins.Mean(), "descent-lower-bound", seed=3).to_json() for _ in range(2))
    assert first == second
    margins = {only(twins.MinNorm(), "non-conflicting", 40, seed=seed).worst_margin for seed in (3, 4)}
    assert len(margins) == 2


def test_a_claimed_law_fails_a_build_and_an_unclaimed_one_does_not():
    assert only(Promising(), "non-conflicting").failed
    modest = only(twins.Mean(), "non-conflicting")
    assert modest.status == "refuted"
    assert not modest.failed


def test_a_vacuous_search_is_an_error():
    impossible = dataclasses.replace(non_conflicting, examples=lambda: jacobians((small,)).filter(lambda e: False))
    result = examine(twins.Mean(), impossible, 20, 0)
    assert (result.status, result.examples) == ("error", 0)
    assert "vacuous" in result.detail


def test_a_vacuous_search_names_the_precondition_that_was_never_met():
    def check(plugin, example):
        given(False, "the strategy proposes to move")

    never = dataclasses.replace(non_conflicting, check=check)
    assert examine(twins.Mean(), never, 5, 0).detail.endswith("is not met: the strategy proposes to move)")


@pytest.mark.parametrize("seed", range(3))
def test_few_inputs_are_of_every_family_and_every_number_of_tasks(seed):
    """Also 50 of them, as matches-reference has: Hypothesis alone passed over a dozen of 19 families."""
    seen = []

    @law("looks", statement="", source="", examples=jacobians)
    def looks(plugin, example):
        seen.append(example)
        return 1.0

    result = examine(twins.Mean(), looks, 50, seed)
    assert result.examples == len(seen) == 50
    assert {e.family.partition(" (")[0] for e in seen} == {family.__name__ for family in ALL}
    assert {e.n_tasks for e in seen} >= {1, 2, 3, 4, 5, 6}
    seen.clear()
    examine(twins.Mean(), looks, 10, seed)
    assert len({e.family.partition(" (")[0] for e in seen}) == 10


def test_a_family_with_one_member_is_not_passed_over_where_inputs_are_few():
    """The simplest input comes last there, if nothing else is left."""
    one = Example(torch.ones(1, 1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    alone = dataclasses.replace(non_conflicting, examples=lambda: Strata((st.just(one),)))
    assert examine(twins.Mean(), alone, 3, 0).examples == 1
    harmed = dataclasses.replace(alone, check=lambda plugin, example: -1.0)
    result = examine(twins.Mean(), harmed, 3, 0)
    assert (result.status, result.examples) == ("refuted", 1)


def test_a_method_that_raises_is_an_error_with_the_input_that_did_it():
    @dataclasses.dataclass(frozen=True)
    class Fragile(twins.Mean):
        def weigh(self, view):
            if view.n_tasks == 1:
                raise ZeroDivisionError("K - 1")
            return super().weigh(view)

    result = only(Fragile(), "finite")
    assert result.status == "error"
    assert "ZeroDivisionError: K - 1" in result.detail
    assert result.counterexample["example"]["shape"][0] == 1
    assert replay(Fragile(), result.counterexample).status == "error"


def test_not_a_number_is_the_worst_violation_and_stays_a_json_number():
    @law("nan", statement="", source="", examples=jacobians)
    def nan(plugin, example):
        return float("nan")

    assert nan.measure(None, None) == -WORST
    result = examine(twins.Mean(), nan, 5, 0)
    assert result.status == "refuted"
    assert json.loads(json.dumps(result.worst_margin)) == -WORST


@pytest.mark.parametrize("law_id", ["simplex-weights", "conic-combination", "permutation-equivariant", "absent-task"])
def test_not_a_number_in_a_later_step_is_a_violation(law_id):
    """Python's min and max pass over a NaN that is not the first."""

    def spoilt(self, answer, view, state):
        return dataclasses.replace(answer, weights=answer.weights * (torch.nan if state["count"] else 1.0))

    result = only(Told(how=spoilt), law_id, 5)
    assert (result.status, result.worst_margin) == ("refuted", -WORST)
    assert result.reason.endswith("(step 1)")


def test_the_worst_of_several_margins_keeps_its_reason():
    assert worst([Margin(0.5, "a"), Margin(-1.0, "b"), Margin(0.1, "c")], of="step").reason == "b (step 1)"
    assert worst([Margin(-1.0, "b"), Margin(0.1, "c")], of="step").reason == "b"
    assert worst([Margin(0.1, "b"), Margin(float("nan"), "c")]).reason == "c"
    asked = (Margin(v, reason) for v, reason in ((0.1, "a"), (-1.0, "b"), (-2.0, "not asked")))
    assert worst(asked).reason == "b", "what is plainly broken is not followed to the end"


def test_a_claim_of_an_unknown_law_is_an_error():
    @dataclasses.dataclass(frozen=True)
    class Dreamer(twins.Mean):
        claims = frozenset({"always-wins"})

    first = next(check(Dreamer(), max_examples=1))
    assert (first.law, first.status, first.failed) == ("always-wins", "error", True)


def test_unknown_names_are_errors_that_suggest():
    with pytest.raises(UnknownPluginError, match="non-conflicting"):
        list(check(twins.Mean(), ["non-conflictin"]))
    with pytest.raises(UnknownPluginError, match="mgda"):
        list(check("mgdaa"))
    with pytest.raises(ConfigurationError, match="at least one"):
        list(check(twins.Mean(), max_examples=0))
    with pytest.raises(ConfigurationError, match="not an instance"):
        list(check(object()))


def test_what_is_no_counterexample_cannot_be_replayed():
    with pytest.raises(
        ConfigurationError, match="not a counterexample as `check` returns it .*: it has no law and no example"
    ):
        replay(twins.Mean(), {})
    with pytest.raises(UnknownPluginError, match="no law called 'nope'"):
        replay(twins.Mean(), {"law": "nope", "example": {}})


def test_failures_are_attributed_to_the_mathematics_or_to_the_numerics():
    assert "the mathematics" in only(twins.Mean(), "non-conflicting").detail
    assert "the numerics" in only(aggregators.AbsoluteEpsilon(), "non-conflicting").detail


@dataclasses.dataclass(frozen=True)
class Told(twins.Remembering):
    """Misbehaves as it is told."""

    how: Any = None

    def aggregate(self, view, state):
        return self.how(self, super().aggregate(view, state), view, state)


def returning(**changes):
    return lambda self, answer, view, state: dataclasses.replace(answer, **changes)


def other_state(make):
    return lambda self, answer, view, state: dataclasses.replace(answer, state=make(answer.state))


def after(action):
    return lambda self, answer, view, state: (action(self, view, state), answer)[1]


@pytest.mark.parametrize(
    ("law_id", "how", "reason"),
    [
        ("shape-dtype-device", lambda *_: torch.ones(1), "aggregate returns Tensor, not an mtlcore.Aggregation"),
        ("shape-dtype-device", returning(state=None), "the state that aggregate returns is not a dict of tensors"),
        ("shape-dtype-device", other_state(lambda s: {}), r"state\['total'\] is in what init returns, but not in"),
        ("shape-dtype-device", other_state(lambda s: {**s, "new": s["total"]}), r"state\['new'\] is in what aggregate"),
        (
            "shape-dtype-device",
            other_state(lambda s: {"total": torch.zeros(7)}),
            r"state\['total'\] is \(1,\) float64 in what init returns and \(7,\) float32 in what aggregate returns",
        ),
        ("shape-dtype-device", returning(weights=torch.ones(9)), r"weights of shape \(9,\); expected \(1,\)"),
        ("shape-dtype-device", returning(weights=[1.0]), "weights: list instead of a tensor"),
        ("finite", returning(weights=torch.tensor([torch.nan])), "direction is not finite; weights is not finite"),
        ("pure", after(lambda self, view, state: view.jacobian.add_(1.0)), "it writes into view.jacobian"),
        ("pure", after(lambda self, view, state: state["total"].add_(1.0)), "it writes into the state it is given"),
        ("pure", after(lambda self, view, state: vars(self).update(n=1)), "it changes its own attribute n"),
        ("pure", after(lambda *_: torch.rand(1)), "it draws from the global generator of torch"),
        ("deterministic", lambda *_: Aggregation(weights=torch.rand(1)), "direction is another one when asked again"),
    ],
)
def test_a_law_that_holds_or_not_says_what_is_wrong(law_id, how, reason):
    one = Example(torch.ones(1, 1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    result = examine(Told(how=how), registry().load("law", law_id), 1, 0, explicit=[one], shrink=False)
    assert result.status == "refuted", result.detail
    assert re.match(reason, result.reason), result.reason
    assert replay(Told(how=how), result.counterexample).reason == result.reason


def test_an_input_that_shows_nothing_is_neither_a_counterexample_nor_an_error():
    """A zero gradient has no unique answer under CAGrad: neither a stored input nor a given one may stumble over it."""
    zero = Example(torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64), torch.ones(2, dtype=torch.float64))
    cagrad = create("aggregator", "cagrad")
    again = replay(cagrad, {"law": "matches-reference", "example": zero.to_json()})
    assert (again.status, again.examples) == ("not-applicable", 0)
    assert "zero gradient" in again.detail
    found = examine(cagrad, registry().load("law", "matches-reference"), 20, 0, explicit=[zero])
    assert (found.status, found.examples) == ("verified", 10)


def test_a_check_that_turns_inputs_down_is_not_counted_and_needs_no_hypothesis_around_it():
    """Hypothesis deprecates its own ``assume`` outside of a search, where replay and given inputs ask."""

    @law("first-gains", statement="", source="", examples=jacobians)
    def first_gains(plugin, example):
        given(example.n_tasks > 1, "there are two tasks")
        return 1.0

    alone, two = (Example(torch.ones(k, 1, dtype=torch.float64), torch.ones(k, dtype=torch.float64)) for k in (1, 2))
    with pytest.raises(OutsideLaw, match="not met: there are two tasks"):
        first_gains.measure(twins.Mean(), alone)
    result = examine(twins.Mean(), first_gains, 1, 0, explicit=[alone, two])
    assert (result.status, result.examples) == ("verified", 2)
    never = dataclasses.replace(first_gains, examples=lambda: jacobians((single_task,)))
    assert "vacuous" in examine(twins.Mean(), never, 5, 0).detail


def test_numbers_that_are_not_finite_are_a_violation_not_an_error():
    """Laws measure them, also where a step would refuse them."""
    assert only(aggregators.NotANumber(), "scale-free").status == "refuted"


@dataclasses.dataclass(frozen=True)
class Single(twins.InverseLoss):
    """Computes in float32: a correct method may, and says so by the dtype of what it returns."""

    def weigh(self, view):
        return super().weigh(view).float()


@dataclasses.dataclass(frozen=True)
class SingleShares(twins.Shuffled):
    """Random shares in torch's default dtype."""

    def weigh(self, view):
        return torch.softmax(torch.randn(view.n_tasks, generator=view.generator), 0)


@pytest.mark.parametrize(
    ("method", "law_id"), [(Single(), "coefficient-identity"), (SingleShares(), "simplex-weights")]
)
def test_weights_are_held_to_the_digits_of_their_own_dtype(method, law_id):
    assert only(method, law_id).status == "verified"


@dataclasses.dataclass(frozen=True)
class WithParts(twins.Mean):
    """Has a part that it may write to; objects like these are equal to nothing but themselves."""

    part: Any = None
    write: Any = None

    def weigh(self, view):
        if self.write is not None:
            self.write(self.part)
        return super().weigh(view)


def parts():
    module, writes = torch.nn.Linear(2, 1), lambda part: part.bias.data.add_(1.0)
    return [
        ("nan", float("nan"), None),
        ("module", module, writes),
        ("generator", torch.Generator(), lambda part: torch.rand(1, generator=part)),
        ("numpy", np.random.default_rng(0), lambda part: part.random()),
        ("python", random.Random(0), lambda part: part.random()),
        ("plain", types.SimpleNamespace(inner=[1]), lambda part: part.inner.append(1)),
    ]


@pytest.mark.parametrize(("name", "part", "write"), parts(), ids=[name for name, *_ in parts()])
def test_an_attribute_changes_only_if_it_is_written_to(name, part, write):
    assert only(WithParts(part), "pure", max_examples=3).status == "verified"
    if write is not None:
        result = only(WithParts(part, write), "pure", max_examples=3)
        assert (result.status, result.reason) == ("refuted", "it changes its own attribute part")


def test_a_random_method_is_not_held_to_an_order_of_its_draws():
    result = only(twins.Shuffled(), "permutation-equivariant")
    assert result.status == "not-applicable"
    assert "generator" in result.detail


def test_a_plugin_may_restrict_the_inputs_to_its_preconditions():
    @dataclasses.dataclass(frozen=True)
    class Pairs(twins.Mean):
        @classmethod
        def verification_examples(cls, examples):
            return examples.filter(lambda e: e.n_tasks == 2)

        def weigh(self, view):
            assert view.n_tasks == 2
            return super().weigh(view)

    assert only(Pairs(), "finite", max_examples=20).status == "verified"


def test_third_parties_add_laws_through_the_hook():
    from mtlcore import hookimpl

    @law("half", statement="All weights are 1/2.", source="a test", examples=jacobians)
    def half(plugin, example):
        from mtlverify import ask

        return -float((ask(plugin, example).weights - 0.5).abs().max())

    class Package:
        @hookimpl
        def mtlcore_register_laws(self, register):
            register("half", half)

    package = Package()
    registry().add(package, "half-laws")
    try:
        result = only(twins.Mean(), "half")
        assert result.status == "refuted"
    finally:
        registry().remove(package)


def test_examples_survive_a_file_bit_for_bit():
    rows = torch.tensor([[0.1, 1e-12], [3.0, -7.0]], dtype=torch.float32)
    example = Example(rows, torch.tensor([0.3, 1e12], dtype=torch.float64), 5, "x", {"permutation": [1, 0]})
    back = Example.from_json(json.loads(json.dumps(example.to_json())))
    assert torch.equal(back.jacobian, rows)
    assert back.jacobian.dtype == torch.float32
    assert torch.equal(back.losses, example.losses)
    assert (back.seed, back.family, back.extra) == (5, "x", {"permutation": [1, 0]})


def test_a_direction_that_cancels_to_rounding_has_not_turned():
    """GLS on two opposite tasks: exactly zero in one unit, 1e-16 in another. Found by a thousand examples a law."""
    rows = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    example = Example(rows, torch.tensor([0.125, 0.125], dtype=torch.float64), extra={"factors": [1.0, 8.0]})
    assert loss_unit_invariant.check(create("aggregator", "gls"), example) >= 0.0
    # One that really turns from zero is still caught: the sum, which follows the units.
    assert loss_unit_invariant.check(create("aggregator", "sum"), example) < 0.0


def test_peers_with_an_absolute_epsilon_are_refuted_from_scratch():
    """What specs say about a known library: a fixed regularisation breaks non-conflict once rows differ in size."""
    result = only(aggregators.AbsoluteEpsilon(), "non-conflicting")
    assert result.status == "refuted"
    assert result.worst_margin < -0.05


def test_one_task_left_in_a_step_is_no_tie():
    """CR-MoGM's weights of a former step: only one task is there, and the strict tolerance is not asked for."""
    rows = torch.tensor([[-1.0, 2.0], [799969.0, -1599992.0], [1.0, 0.0]], dtype=torch.float64)
    extra = {"permutation": [1, 2, 0], "away": [[2, 0], [2, 2]]}
    example = Example(rows, torch.ones(3, dtype=torch.float64), extra=extra)
    (law,) = chosen("aggregator", ["permutation-equivariant"])
    assert law.measure(create("aggregator", "cr-mogm"), example) >= 0


def test_derivatives_are_held_to_what_the_losses_determine():
    """COSMOS at tiny, equal losses: the derivative of the cosine is a difference of numbers of 1e11."""
    losses = torch.full((2,), 3.865352482534945e-12, dtype=torch.float64)
    (law,) = chosen("aggregator", ["coefficient-identity"])
    assert law.measure(create("aggregator", "cosmos"), Example(torch.zeros(2, 1).double(), losses)) >= 0


def test_the_scale_of_unit_gradients_is_their_number():
    """|g| is 1e-120, and the rounding of d that of unit gradients: 2e-16 is zero."""
    rows = torch.tensor([[-1e-120], [1e-120]], dtype=torch.float64)
    (law,) = chosen("aggregator", ["strongly-stationary-zero"])
    plugin = create("aggregator", "mgda", normalize="l2")
    assert law.measure(plugin, Example(rows, torch.ones(2, dtype=torch.float64))) > 0.9


def test_a_loss_of_zero_has_a_coefficient_where_the_objective_has_a_derivative():
    (law,) = chosen("aggregator", ["coefficient-identity"])
    example = Example(torch.zeros(1, 1).double(), torch.zeros(1, dtype=torch.float64))
    assert law.measure(create("aggregator", "sum"), example) == 1.0


def test_a_teleport_with_other_symmetries_is_not_asked_to_help():
    (law,) = chosen("teleport", ["helps-where-it-must"])
    assert law.applies(create("teleport", "relu-rescaling")) is None
    assert "its symmetries are others" in law.applies(create("teleport", "attention-qk"))


def test_long_runs_are_scaled_as_the_law_asks():
    """Not to 1e-120 where the law itself multiplies by 1e-100: squares would vanish, and with them the gradients."""
    (law,) = chosen("aggregator", ["positively-homogeneous"])
    assert {s.name for s in law.examples().strata} >= {"patient"}
    rng = random.Random(0)
    late = [s for s in law.examples().strata if s.name == "patient"]
    assert all("extreme" not in s.sample(rng).family for s in late for _ in range(60))
