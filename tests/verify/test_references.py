"""References satisfy the conditions that define their methods, and say so when they cannot."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from mtlverify import references
from mtlverify.references import aligned, barrier, cagrad, conflicts, dual_cone, equal_angles, gradops, min_norm
from mtlverify.references.rows import unit_rows
from mtlverify.strategies import INDEPENDENT, NOT_STATIONARY, jacobians
from mtlverify.strategies.generic import gaussian, opposed

FEW = settings(max_examples=25)
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


def test_barrier_has_no_solution_where_the_gradients_are_stationary():
    with pytest.raises(references.NoUniqueAnswer, match="stationary"):
        barrier.barrier(np.array([[1.0, 0.0], [-2.0, 0.0]]), 1.0)
    with pytest.raises(references.NoUniqueAnswer, match="zero gradient"):
        barrier.barrier(np.array([[1.0, 0.0], [0.0, 0.0]]), 1.0)


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


def test_every_reference_named_in_the_table_exists():
    for name, target in references.TABLE.items():
        module, _, function = target.partition(":")
        assert callable(getattr(__import__(f"mtlverify.references.{module}", fromlist=[function]), function)), name


def test_the_definition_of_imbalance_by_hand():
    rows = torch.tensor([[3.0, 4.0], [0.0, 60.0], [0.0, 0.0]], dtype=torch.float64)
    found = conflicts.imbalance(rows, 10.0)
    assert found.conflicting is True
    assert found.pairs == [[False, True, False], [True, False, False], [False, False, False]]
    assert conflicts.imbalance(rows, 12.0).conflicting is None, "the ratio itself is too close to call"
    assert conflicts.imbalance(rows, 13.0).conflicting is False
