"""References satisfy the conditions that define their methods, and say so when they cannot."""

from __future__ import annotations

import dataclasses
import types
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings

import mtlcore
from mtlverify import check, references, tolerance
from mtlverify.references import (
    aligned,
    barrier,
    cagrad,
    conflicts,
    damped_newton,
    dual_cone,
    equal_angles,
    gradops,
    min_norm,
    pareto_mtl,
    sdmgrad,
)
from mtlverify.references.rows import unit_rows
from mtlverify.strategies import INDEPENDENT, NOT_STATIONARY, Strata, jacobians
from mtlverify.strategies.generic import gaussian, opposed

FEW = settings(max_examples=settings.default.max_examples // 2)  # 25, nightly 1000
SAME = tolerance.REFERENCE
GENERIC = (gaussian, opposed)
plain = SimpleNamespace


def rows_of(example):
    return example.jacobian.double().numpy()


@FEW
@given(jacobians(scalings=("unit", "spread rows")).merged())
def test_min_norm_satisfies_its_optimality_conditions(example):
    """<g_i, d> >= |d|^2 for all i, and d is in the hull (its gap to every vertex is nonnegative)."""
    rows = rows_of(example)
    found = min_norm.mgda(rows, plain())
    gains = rows @ found.direction
    square = float(found.direction @ found.direction)
    scale = np.linalg.norm(rows, axis=1) * (found.distance + 1e-7 * found.size)
    assert (gains >= square - scale - 1e-12 * square).all()


@FEW
@given(jacobians().merged())
def test_projection_onto_the_dual_cone_is_the_nearest_point_of_it(example):
    """Inside the cone; and the step to it is orthogonal to it and made of gradients with weights >= 0 (Moreau)."""
    rows = rows_of(example)
    if not rows.any():
        return
    given_ = unit_rows(rows)
    point = given_.units[0]
    found = dual_cone.project(given_, point)
    step = found.direction - point
    noise = 1e-7 * found.size
    assert (given_.units @ found.direction >= -noise).all()
    assert abs(step @ found.direction) <= noise
    assert found.residual <= references.ACCEPTED


def test_cagrads_primal_refuses_an_answer_with_a_duality_gap(monkeypatch):
    monkeypatch.setattr("mtlverify.references.programs.PRECISE", {"max_iter": 3})
    with pytest.raises(references.ReferenceFailed):
        cagrad.primal(np.array([[1.0, 0.2, 0.0], [-3.0, 1.0, 1.0], [0.5, -2.0, 4.0]]), plain(c=0.5, rescale="none"))


def test_cagrad_primal_and_dual_agree():
    generator = np.random.default_rng(0)
    for k, p, c in [(2, 3, 0.5), (3, 5, 0.2), (4, 6, 1.0), (5, 6, 2.0)]:
        for _ in range(5):
            rows = generator.standard_normal((k, p))
            method = plain(c=c, rescale="none")
            try:
                dual = cagrad.dual(rows, method)
            except references.NoUniqueAnswer:
                continue
            primal = cagrad.primal(rows, method)
            assert max(dual.residual, primal.residual) <= references.ACCEPTED
            value = (rows @ dual.direction).min()
            assert value == pytest.approx((rows @ primal.direction).min(), abs=1e-6)
            mean = rows.mean(axis=0)
            assert np.linalg.norm(dual.direction - mean) == pytest.approx(c * np.linalg.norm(mean), rel=1e-6)


@FEW
@given(jacobians(NOT_STATIONARY, scalings=("unit", "common scale")).merged())
def test_barrier_solves_its_equation(example):
    """(G w) = w^(-1/alpha): with d = J'w, the gains are J d = G w; w is recovered from them."""
    rows = rows_of(example)
    for alpha in (1.0, 2.0, 0.5):
        try:
            found = barrier.barrier(rows, alpha)
        except references.NoUniqueAnswer:
            continue
        gains = rows @ found.direction
        assert (gains > 0).all()
        weights = gains**-alpha
        assert np.linalg.norm(rows.T @ weights - found.direction) <= 1e-5 * found.size


ALPHAS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)


@FEW
@given(jacobians().merged())
def test_barrier_converges_for_every_alpha_and_every_spread_of_norms(example):
    """No input of any family ends in ReferenceFailed; and the gains of d, to the power -alpha, weigh the rows to d."""
    rows = rows_of(example)
    for alpha in ALPHAS:
        try:
            found = barrier.barrier(rows, alpha)
        except references.NoUniqueAnswer:
            return
        assert found.residual <= references.ACCEPTED
        assert np.isfinite(found.direction).all()


@FEW
@given(jacobians((gaussian, opposed)).merged())
def test_the_two_routes_to_the_barriers_minimum_agree(example):
    """A conic program polished in 16 digits, and a damped Newton method in 250."""
    rows = rows_of(example)
    if not rows.any(axis=1).all():
        return
    given_ = unit_rows(rows)
    if np.linalg.norm(min_norm.min_norm(given_.units).direction) < barrier.STATIONARY:
        return
    for alpha in (0.5, 1.0, 2.0):
        log_pull = (1.0 / alpha - 1.0) * (np.log(given_.norms) - np.log(given_.norms).mean())
        slow = damped_newton.minimum(given_.units, log_pull, alpha)
        assert slow.residual <= damped_newton.SOLVED
        try:
            fast = barrier.by_cone_program(given_, log_pull, alpha)
        except references.ReferenceFailed:
            continue
        assert np.linalg.norm(fast.direction - slow.direction) <= SAME * slow.size


def test_the_barrier_in_closed_form_and_where_float64_has_no_gain_left():
    """Two rows and alpha = 1: d = (u_1 + u_2) / sqrt(1 + cos). Spread rows: the slow route is needed, and arrives."""
    rows = np.array([[3.0, 0.0], [-1.0, 2.0]])
    units = unit_rows(rows).units
    expected = units.sum(axis=0) / np.sqrt(1.0 + units[0] @ units[1])
    np.testing.assert_allclose(damped_newton.minimum(units, np.zeros(2), 1.0).direction, expected, rtol=1e-14)

    hostile = np.array([[5.0, 1.0, 4.0], [-3e8, 2e8, 1e8], [-4e-8, -1e-8, 7e-8]])
    given_ = unit_rows(hostile)
    log_pull = 9.0 * (np.log(given_.norms) - np.log(given_.norms).mean())
    with pytest.raises(references.ReferenceFailed):
        barrier.by_cone_program(given_, log_pull, 0.1)
    assert barrier.barrier(hostile, 0.1).residual <= damped_newton.SOLVED


def test_the_damped_newton_method_reports_that_it_did_not_arrive(monkeypatch):
    monkeypatch.setattr(damped_newton, "LIMIT", 1)
    with pytest.raises(references.ReferenceFailed, match="not reached in 1 steps: residual"):
        damped_newton.minimum(np.array([[1.0, 0.0], [-0.6, 0.8]]), np.zeros(2), 2.0)


def test_min_norm_and_projection_survive_a_solver_that_breaks_off(monkeypatch):
    """Lawson-Hanson's answer is measured by the same residual. [the first found by the false-alarm run, seed 184]"""
    rows = np.array([[0.0, 2.0**-6, -1.5 * 2.0**-6], [0.0, -2.0, 3.0], [-(2.0**-17), 0.0, 0.0], [9.0, 7.0, 0.0]])
    assert np.linalg.norm(min_norm.min_norm(rows).direction) < 1e-15

    def broken(*_):
        raise references.ReferenceFailed("Clarabel")

    monkeypatch.setattr("mtlverify.references.programs.run", broken)
    assert min_norm.min_norm(np.array([[2.0, 0.0], [0.0, 1.0]])).direction == pytest.approx([0.4, 0.8])
    projected = dual_cone.project(unit_rows(np.array([[1.0, 0.0], [-0.6, 0.8]])), np.array([1.0, 0.0]))
    assert projected.direction == pytest.approx([0.64, 0.48])


def test_barrier_has_no_solution_where_the_gradients_are_stationary():
    with pytest.raises(references.NoUniqueAnswer, match="stationary"):
        barrier.barrier(np.array([[1.0, 0.0], [-2.0, 0.0]]), 1.0)
    with pytest.raises(references.NoUniqueAnswer, match="zero gradient"):
        barrier.barrier(np.array([[1.0, 0.0], [0.0, 0.0]]), 1.0)


def by_enumeration(quadratic, linear):
    """The simplex minimiser of 1/2 w'Gw + q'w, by trying every support: on S, G_SS w_S + q_S = t and sum w_S = 1."""
    k = len(linear)
    best, value = None, np.inf
    for code in range(1, 2**k):
        on = [i for i in range(k) if code >> i & 1]
        system = np.block([[quadratic[np.ix_(on, on)], -np.ones((len(on), 1))], [np.ones((1, len(on))), 0.0]])
        part = np.linalg.lstsq(system, np.append(-linear[on], 1.0), rcond=None)[0][:-1]
        w = np.zeros(k)
        w[on] = part
        if (w >= -1e-12).all() and abs(w.sum() - 1.0) < 1e-9:
            now = 0.5 * w @ quadratic @ w + linear @ w
            best, value = (w, now) if now < value else (best, value)
    return best


@FEW
@given(jacobians((gaussian, opposed, INDEPENDENT[0]), scalings=("unit",)).filter(lambda e: e.n_tasks <= 4).merged())
def test_sdmgrad_is_the_best_of_all_supports(example):
    rows = rows_of(example)
    gram = rows @ rows.T
    for weight in (0.0, 0.3, 2.0):
        found = sdmgrad.sdmgrad(rows, plain(lambda_=weight))
        w = by_enumeration(gram, weight * gram.mean(axis=1))
        expected = rows.T @ (w + weight / len(rows)) / (1.0 + weight)
        assert found.residual <= references.ACCEPTED
        assert np.linalg.norm(found.direction - expected) <= SAME * found.size + found.distance


def test_sdmgrad_in_closed_form_and_at_its_ends():
    """Two tasks: w_1 = <g_2 - g_1, g_2 + lambda g_0> / |g_1 - g_2|^2, cut off at 0 and 1."""
    generator = np.random.default_rng(3)
    for weight in (0.0, 0.5, 1e9):
        for _ in range(20):
            rows = generator.standard_normal((2, 3)) * [[1.0], [3.0]]
            mean, gap = rows.mean(axis=0), rows[1] - rows[0]
            w = np.clip(gap @ (rows[1] + weight * mean) / (gap @ gap), 0.0, 1.0)
            expected = (w * rows[0] + (1 - w) * rows[1] + weight * mean) / (1.0 + weight)
            found = sdmgrad.sdmgrad(rows, plain(lambda_=weight)).direction
            np.testing.assert_allclose(found, expected, rtol=SAME, atol=SAME)
            if weight == 0.0:
                np.testing.assert_allclose(found, min_norm.min_norm(rows).direction, rtol=SAME)
            if weight == 1e9:
                np.testing.assert_allclose(found, mean, rtol=SAME, atol=SAME)


RAYS = np.array([[np.cos(t), np.sin(t)] for t in np.linspace(0.0, np.pi / 2, 5)])


def test_pareto_mtl_descends_for_every_task_and_active_constraint():
    """J d >= |d|^2 and h_j'd >= |d|^2; the direction is that of every support; inside the sector it is MGDA's."""
    generator = np.random.default_rng(4)
    seen = set()
    for _ in range(40):
        rows, losses = generator.standard_normal((2, 4)), generator.uniform(0.1, 1.0, size=2)
        for index in range(5):
            method = plain(preferences=RAYS, index=index)
            everything = pareto_mtl.augmented(rows, method, losses)
            active = [j for j in range(5) if (RAYS[j] - RAYS[index]) @ losses > 0]
            assert len(everything) == 2 + len(active)
            seen.add(len(active))
            found = pareto_mtl.pareto_mtl(rows, method, losses)
            d = found.direction
            assert (everything @ d >= d @ d - SAME).all()
            w = by_enumeration(everything @ everything.T, np.zeros(len(everything)))
            np.testing.assert_allclose(d, everything.T @ w, atol=SAME)
            if not active:
                np.testing.assert_allclose(d, min_norm.min_norm(rows).direction, atol=SAME)
    assert {0, 1, 2} <= seen
    with pytest.raises(references.NoUniqueAnswer, match="boundary of the sector"):
        pareto_mtl.pareto_mtl(rows, plain(preferences=np.eye(2), index=0), np.array([0.5, 0.5]))


@dataclasses.dataclass(frozen=True)
class Theirs(mtlcore.Aggregator):
    """A third party's method, which says what it implements."""

    reference: str = ""
    lambda_: float = 0.5
    preferences: tuple = ((1.0, 0.0), (0.5, 0.5), (0.0, 1.0))
    index: int = 1
    wrong: bool = False
    needs = mtlcore.Needs.JACOBIAN
    claims = frozenset({"matches-reference"})

    def aggregate(self, view, state):
        rows, losses = view.jacobian.double().numpy(), view.losses.numpy()
        if self.reference == "sdmgrad":
            g, lam = rows @ rows.T, 0.0 if self.wrong else self.lambda_
            w = by_enumeration(g, lam * g.mean(axis=1)) + lam / len(rows)
            return mtlcore.Aggregation(weights=torch.from_numpy(w / (1.0 + lam)), state=state)
        sides = np.array(self.preferences)[[0, 2]] - np.array(self.preferences)[1]
        mix = np.vstack([np.eye(2), sides[sides @ losses > 0]])
        everything = (mix[:2] if self.wrong else mix) @ rows
        w = by_enumeration(everything @ everything.T, np.zeros(len(everything)))
        return mtlcore.Aggregation(weights=torch.from_numpy(w @ mix[: len(w)]), state=state)

    @staticmethod
    def verification_examples(examples):
        return Strata(
            tuple(
                s.filter(lambda e: e.n_tasks == 2 and e.jacobian.dtype == torch.float64)
                for s in jacobians(GENERIC, scalings=("unit",)).strata
            )
        )


@pytest.mark.parametrize("name", ["sdmgrad", "pareto-mtl"])
def test_a_third_party_method_is_held_against_the_reference_of_its_name(name):
    [right] = check(Theirs(name), ["matches-reference"], 40)
    assert (right.status, right.claimed) == ("verified", True)
    assert right.examples > 10
    [wrong] = check(Theirs(name, wrong=True), ["matches-reference"], 20)
    assert wrong.status == "refuted"
    assert references.exact_twin(Theirs(name)) is not None


def test_a_reference_is_not_asked_about_hyper_parameters_it_does_not_know():
    assert references.reference_for(plain(reference="sdmgrad")) is None
    assert references.reference_for(plain(reference="sdmgrad", lambda_=0.3, batches=3)) is None
    assert references.reference_for(plain(reference="pareto-mtl")) is None


@FEW
@given(jacobians(INDEPENDENT).merged())
def test_equal_angles(example):
    rows = rows_of(example)
    units = unit_rows(rows).units
    for reference in (equal_angles.config, equal_angles.imtl_g):
        try:
            direction = reference(rows, plain()).direction
        except references.NoUniqueAnswer:
            continue
        cosines = units @ (direction / np.linalg.norm(direction))
        assert np.ptp(cosines) < 1e-9


@FEW
@given(jacobians(GENERIC).merged())
def test_gradops_never_conflicts_and_leaves_no_overlap(example):
    rows = rows_of(example)
    method = plain(alpha=0.0, weights=None, rescale=False, project="always", fallback=False, stall=0.0)
    units = unit_rows(rows).units
    for i in range(len(units)):
        left = gradops.remainder(units, i)
        assert np.abs(np.delete(units, i, axis=0) @ left).max(initial=0.0) < 1e-9
    found = gradops.gradops(rows, method)
    assert (units @ found.direction >= -1e-9 * found.size).all()


def test_aligned_rows_have_condition_one():
    """|d| = sigma_min |w| for independent rows."""
    rows = np.random.default_rng(1).standard_normal((4, 7))
    found = aligned.aligned_mtl(rows, plain())
    smallest = np.linalg.svd(rows, compute_uv=False).min()
    assert np.linalg.norm(found.direction) == pytest.approx(smallest * 0.5)


def test_a_reference_that_did_not_converge_is_an_error():
    with pytest.raises(references.ReferenceFailed, match="residual is 0.1"):
        references.Solution(np.ones(2), 1.0, residual=0.1).accepted()
    with pytest.raises(references.ReferenceFailed):
        references.Solution(np.array([np.nan, 1.0]), 1.0).accepted()


def test_definitions_of_conflict_decide_only_what_is_clear():
    rows = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    found = conflicts.weak(rows)
    assert found.pairs[0][1] is True
    assert found.pairs[0][2] is None  # exactly orthogonal: rounding may go either way
    assert found.conflicting is True
    big = torch.tensor([[-10.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    assert conflicts.dominated(big).dominated == [False, True]
    assert conflicts.dominated(big, rule="smallest").conflicting is True


def test_references_register_themselves_where_they_are_defined():
    assert {"mgda", "upgrad", "cagrad", "nash-mtl", "pareto-mtl"} <= set(references.known())

    @references.reference("only-in-this-test")
    def found(rows, plugin):
        return references.Solution(rows[0], 1.0)

    method = types.SimpleNamespace(reference="only-in-this-test")
    assert references.reference_for(method)(np.eye(2), method, np.ones(2)).direction.tolist() == [1.0, 0.0]


def test_the_definition_of_imbalance_by_hand():
    rows = torch.tensor([[3.0, 4.0], [0.0, 60.0], [0.0, 0.0]], dtype=torch.float64)
    found = conflicts.imbalance(rows, 10.0)
    assert found.conflicting is True
    assert found.pairs == [[False, True, False], [True, False, False], [False, False, False]]
    assert conflicts.imbalance(rows, 12.0).conflicting is None, "the ratio itself is too close to call"
    assert conflicts.imbalance(rows, 13.0).conflicting is False


def test_a_ball_below_the_resolution_is_no_answer_and_no_crash():
    """The mean is orthogonal to the min-norm point up to 1e-8."""
    rows, plugin = np.array([[1250.0, 0.0], [-1e-5, 1e-5]]), mtlcore.create("aggregator", "imgrad")
    with pytest.raises(references.NoUniqueAnswer, match="the ball is not resolved"):
        references.reference_for(plugin)(rows, plugin, np.ones(2))
