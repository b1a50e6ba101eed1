"""The K x K solvers: optimality conditions on every answer, independent references on some."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import mtlcore
from mtlplugins.solvers import exchange, nonnegative, orthogonal
from mtlplugins.solvers.barrier import barrier
from mtlplugins.solvers.cagrad import cagrad
from mtlplugins.solvers.certificate import EPS
from mtlplugins.solvers.cosines import cosines
from mtlplugins.solvers.dual_cone import project, project_rows, resolution
from mtlplugins.solvers.least_squares import minimum_norm
from mtlplugins.solvers.min_norm import min_norm
from mtlplugins.solvers.safety import without_conflict


def rows(k: int, p: int, seed: int, decades: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(k, p)) * 10.0 ** rng.uniform(-decades / 2, decades / 2, size=(k, 1))


def unit(j: np.ndarray) -> np.ndarray:
    return j / np.linalg.norm(j, axis=1, keepdims=True)


SHAPES = [(2, 5), (3, 2), (3, 9), (5, 3), (5, 20), (11, 4), (11, 30), (40, 15), (40, 100), (60, 200)]
CASES = [(k, p, seed) for k, p in SHAPES for seed in range(4)]


# --- normalisation --------------------------------------------------------------------------------------------------


def test_cosines_drop_zero_rows_and_keep_the_scale_apart():
    j = np.array([[3.0, 4.0], [0.0, 0.0], [0.0, 1e-9]])
    found = cosines(j @ j.T)
    assert found.n_tasks == 3
    np.testing.assert_allclose(found.norms, [5.0, 1e-9])
    np.testing.assert_allclose(found.matrix, [[1.0, 0.8], [0.8, 1.0]], rtol=1e-15)
    np.testing.assert_array_equal(found.scatter(np.array([1.0, 2.0]), dead=7.0), [1.0, 7.0, 2.0])
    np.testing.assert_array_equal(found.gather(np.array([1.0, 2.0, 3.0])), [1.0, 3.0])


# --- nonnegative least squares in Gramian form --------------------------------------------------------------------


def by_enumeration(c: np.ndarray, q: np.ndarray) -> float:
    """The least value of 1/2 y'Cy + q'y over y >= 0 by trying every support."""
    best = 0.0
    for size in range(1, len(q) + 1):
        for support in itertools.combinations(range(len(q)), size):
            i = list(support)
            y = np.linalg.lstsq(c[np.ix_(i, i)], -q[i], rcond=None)[0]
            if (y >= -1e-12).all():
                best = min(best, float(0.5 * y @ c[np.ix_(i, i)] @ y + q[i] @ y))
    return best


@pytest.mark.parametrize(("k", "p", "seed"), [c for c in CASES if c[0] <= 5])
def test_nonnegative_reaches_the_best_of_all_supports(k, p, seed):
    c = cosines(rows(k, p, seed) @ rows(k, p, seed).T).matrix
    for q in c[: min(k, 3)] - 0.2 * np.arange(min(k, 3))[:, None] * (c @ np.ones(k)):
        y, _ = nonnegative.solve(c, q)
        value = 0.5 * y @ c @ y + q @ y
        assert value == pytest.approx(by_enumeration(c, q), abs=1e-12)


@pytest.mark.parametrize(("k", "p", "seed"), CASES)
def test_both_nonnegative_methods_end_at_the_optimality_conditions(k, p, seed):
    u = unit(rows(k, p, seed))
    c = cosines(u @ u.T).matrix
    many, left, _ = nonnegative.pivot(c, c)
    nonnegative.finish(c, c, many, left)
    for j in range(0, k, 3):
        alone, _ = nonnegative.active_set(nonnegative.ridged(c), c[j], np.zeros(k))
        for y in (many[j], alone):
            assert (y >= 0).all()
            assert nonnegative.residual(c, c[j], y) <= 64 * k * EPS
        # The weights need not be unique, the projected vector is.
        np.testing.assert_allclose(u.T @ many[j], u.T @ alone, atol=1e-7)


@pytest.mark.parametrize(("k", "p", "seed"), [c for c in CASES if c[0] > 3])
def test_systems_of_the_free_variables_are_the_padded_ones(monkeypatch, k, p, seed):
    u = unit(rows(k, p, seed))
    c = nonnegative.ridged(cosines(u @ u.T).matrix)
    free = np.random.default_rng(seed).random((k, k)) < 0.4
    free[0], free[1] = False, True
    found = []
    for limit in (0, 1000):
        monkeypatch.setattr(nonnegative, "_COMPRESSED", limit)
        found.append(nonnegative._on_free(c, free, c))
    assert (found[0][~free] == 0.0).all()
    # Of the rows, not of the weights, which rounding may decide where the rows are dependent.
    np.testing.assert_allclose(found[0] @ u, found[1] @ u, atol=1e-7)


@pytest.mark.parametrize("c", [-1.0, -1.0 + EPS, -0.9999999, -0.5, 0.0, 0.5, 1.0 - EPS, 1.0])
def test_pair_satisfies_the_optimality_conditions(c):
    # On linear terms in the range of C (dual cone) where C is singular; arbitrary ones elsewhere.
    rng = np.random.default_rng(0)
    matrix = np.array([[1.0, c], [c, 1.0]])
    for _ in range(200):
        q = matrix @ rng.normal(size=2)
        y = np.array(nonnegative.pair(c, *map(float, q)))
        assert nonnegative.residual(matrix, q, y) <= 16 * EPS
        assert (y >= 0).all()


# --- min-norm -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decades", [0.0, 8.0])
@pytest.mark.parametrize(("k", "p", "seed"), CASES)
def test_min_norm_satisfies_its_optimality_conditions(k, p, seed, decades):
    j = rows(k, p, seed, decades)
    found = cosines(j @ j.T)
    b, square, certificate = min_norm(found.matrix, 1.0 / found.norms)
    a = b / found.norms
    assert certificate.status in ("optimal", "stationary")
    assert (a >= 0).all()
    assert a.sum() == pytest.approx(1.0, abs=1e-13)
    d = j.T @ a
    noise = 100 * k * EPS * (a * found.norms).sum()
    assert ((j @ d) / found.norms >= square / found.norms - noise).all()
    if certificate.status == "stationary":
        assert np.linalg.norm(d) <= 1e-6 * found.norms.min()


def test_min_norm_agrees_with_a_convex_program():
    cp = pytest.importorskip("cvxpy")
    for k, p, seed in [(3, 8, 0), (5, 20, 1), (11, 6, 2), (11, 40, 3)]:
        j = rows(k, p, seed, decades=1.0)
        found = cosines(j @ j.T)
        b, _, _ = min_norm(found.matrix, 1.0 / found.norms)
        x = cp.Variable(k)
        scaled = j / found.norms.min()
        cp.Problem(cp.Minimize(cp.sum_squares(scaled.T @ x)), [x >= 0, cp.sum(x) == 1]).solve(solver="CLARABEL")
        np.testing.assert_allclose(scaled.T @ (b / found.norms), scaled.T @ x.value, atol=1e-5)


def test_min_norm_of_hundreds_of_rows():
    j = rows(300, 500, 0)
    found = cosines(j @ j.T)
    _, square, certificate = min_norm(found.matrix, 1.0 / found.norms)
    assert certificate.status == "optimal"
    assert square > 0


def test_min_norm_by_hand():
    # The hull of (2, 0) and (0, 1) comes nearest to 0 at (2/5, 4/5).
    found = cosines(np.diag([4.0, 1.0]))
    b, square, _ = min_norm(found.matrix, 1.0 / found.norms)
    np.testing.assert_allclose(b / found.norms, [0.2, 0.8], rtol=1e-15)
    assert square == pytest.approx(0.8, rel=1e-15)


# --- dual cone ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "p", "seed"), CASES)
def test_projection_onto_the_dual_cone_is_a_projection(k, p, seed):
    u = unit(rows(k, p, seed))
    c = cosines(u @ u.T).matrix
    start = np.abs(np.random.default_rng(seed).normal(size=k))
    b, certificate = project(c, start)
    assert certificate.status in ("optimal", "trivial")
    x, d = u.T @ start, u.T @ b
    noise = 100 * k * EPS * b.sum()
    # In the cone; orthogonal to what was removed; and what was added is in the cone of the rows (Moreau).
    assert (u @ d).min() >= -noise
    assert abs(d @ (x - d)) <= noise * b.sum()
    assert (b >= start).all()


@pytest.mark.parametrize(("k", "p", "seed"), CASES)
def test_projecting_all_rows_agrees_with_projecting_each(k, p, seed):
    u = unit(rows(k, p, seed))
    c = cosines(u @ u.T).matrix
    v, certificate = project_rows(c)
    assert certificate.status in ("optimal", "trivial")
    for j in range(k):
        one, _ = project(c, np.eye(k)[j])
        np.testing.assert_allclose(u.T @ v[j], u.T @ one, atol=1e-7)


@pytest.mark.parametrize(("k", "p"), [(40, 15), (40, 20), (60, 30), (100, 30), (100, 50), (100, 60)])
def test_projecting_many_dependent_rows_takes_few_systems(k, p):
    """Near p = k/2 the cone is thin or a point, and block pivoting cycles: without a start each row takes about p
    systems, 7000 in all for k = 100."""
    for seed in range(3):
        u = unit(rows(k, p, seed))
        v, certificate = project_rows(cosines(u @ u.T).matrix)
        assert certificate.status == "optimal"
        assert certificate.iterations <= 8 * k
        d = v @ u
        size = np.abs(v).sum(axis=1, keepdims=True)
        slack = (d @ u.T) / size
        assert (v >= np.eye(k)).all()
        assert slack.min() >= -64 * k * EPS
        assert np.abs(slack[v - np.eye(k) > 0]).max() <= 64 * k * EPS


@pytest.mark.parametrize("p", [50, 85, 110, 139, 300])
def test_projecting_hundreds_of_rows_takes_fewer_changes_than_rows(p):
    """From LARGE rows on: one system says whether they cancel, an iteration for all finds the supports."""
    k = nonnegative.LARGE + 12
    u = unit(rows(k, p, 0))
    c = cosines(u @ u.T).matrix
    v, certificate = project_rows(c)
    assert certificate.status == "optimal"
    assert certificate.iterations <= k
    assert (v >= np.eye(k)).all()
    slack = (v @ c) / np.abs(v).sum(axis=1, keepdims=True)
    assert slack.min() >= -64 * k * EPS
    assert np.abs(slack[v - np.eye(k) > 0]).max() <= 64 * k * EPS
    _, lengths = orthogonal.remainders(c)
    assert (lengths > 0).all() == (p > k)
    assert (lengths > 0).any() == (p > k)


@pytest.mark.parametrize(("p", "seed"), [(86, 0), (88, 1), (90, 3)])
def test_a_thin_cone_is_projected_on_by_exchanges_against_one_factorisation(monkeypatch, p, seed):
    """Rank a little above K / 2: the active-set method takes a system for each of hundreds of changes. 500 rows of rank
    260 took 16 to 52 s."""
    k, used = 160, []
    found = exchange.solve
    monkeypatch.setattr(exchange, "solve", lambda *a: used.append(found(*a)) or used[-1])
    guess = nonnegative.guess
    monkeypatch.setattr(nonnegative, "guess", lambda *a: guess(*a)._replace(settled=False))
    u = unit(np.random.default_rng(seed).normal(size=(k, p)))
    c = cosines(u @ u.T).matrix
    v, certificate = project_rows(c)
    ((_, left, _),) = used
    assert not len(left)
    assert certificate.status == "optimal"
    for j in range(0, k, 20):
        alone, _ = nonnegative.active_set(nonnegative.ridged(c), c[j], np.zeros(k))
        np.testing.assert_allclose(u.T @ v[j], u.T @ (alone + np.eye(k)[j]), atol=1e-9)


def test_a_thin_cone_is_recognised():
    wide, thin = (unit(np.random.default_rng(1).normal(size=(500, p))) for p in (400, 260))
    assert not nonnegative.guess(thin @ thin.T, (thin @ thin.T)[:60]).settled
    assert nonnegative.guess(wide @ wide.T, (wide @ wide.T)[:60]).settled


def test_dependent_rows_are_left_to_systems_of_each_support():
    """A basis on two equal rows would have no digits: 130 rows, each twice, took 1600 systems and more."""
    u = unit(np.random.default_rng(0).normal(size=(70, 140)))
    c = cosines(np.concatenate([u, u]) @ np.concatenate([u, u]).T).matrix
    with pytest.raises(np.linalg.LinAlgError, match="depend on each other"):
        exchange.Basis(nonnegative.ridged(c), np.ones(140, dtype=bool))
    y, left, count = exchange.solve(c, c, nonnegative.guess(c, c))
    assert count <= 20
    assert len(left) <= 10
    assert all(nonnegative.residual(c, c[j], y[j]) <= 64 * 140 * EPS for j in set(range(140)) - set(left))


def test_a_central_row_without_conflict_is_a_basis_too():
    """The identity: nothing is exchanged."""
    c = nonnegative.ridged(np.eye(6))
    linear = np.random.default_rng(0).normal(size=(4, 6))
    basis = exchange.Basis(c, np.zeros(6, dtype=bool))
    np.testing.assert_array_equal(basis.transformed(linear), linear)
    np.testing.assert_allclose(basis.values(linear < 0.0, linear), np.abs(linear), atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_the_transform_solves_every_support(seed):
    """y on the free set and w elsewhere, as one solve of the system of each free set says."""
    rng = np.random.default_rng(seed)
    u = unit(rng.normal(size=(12, 30)))
    c = nonnegative.ridged(u @ u.T)
    linear, free = rng.normal(size=(7, 12)), rng.random((7, 12)) < 0.5
    basis = exchange.Basis(c, rng.random(12) < 0.5)
    values = basis.values(free, basis.transformed(linear))
    for q, f, found in zip(linear, free, values):
        y = np.zeros(12)
        y[f] = np.linalg.solve(c[np.ix_(f, f)], -q[f])
        np.testing.assert_allclose(found, np.where(f, y, c @ y + q), atol=1e-12)


@pytest.mark.parametrize(("k", "p", "seed"), [c for c in CASES if c[0] > 3])
def test_active_set_ends_at_the_same_point_from_any_start(k, p, seed):
    u = unit(rows(k, p, seed))
    c = cosines(u @ u.T).matrix
    start = np.maximum(np.random.default_rng(seed).normal(size=k), 0.0)
    expected, _ = nonnegative.active_set(nonnegative.ridged(c), c[0], np.zeros(k))
    for y0 in (start, 1e3 * start, np.ones(k), nonnegative.near(c, c[:1])[0]):
        y, _ = nonnegative.active_set(nonnegative.ridged(c), c[0], y0)
        assert (y >= 0).all()
        assert nonnegative.residual(c, c[0], y) <= 64 * k * EPS
        np.testing.assert_allclose(u.T @ y, u.T @ expected, atol=1e-7)


def test_rows_that_cancel_project_to_zero_within_the_stated_resolution():
    """Weights that differ by up to 2^30: what the Gramian resolves, and no more is promised."""
    rng, met = np.random.default_rng(0), 0
    for _ in range(400):
        k = int(rng.integers(3, 7))
        e = 2.0 ** -rng.integers(0, 30, size=k - 1).astype(float)
        g = rng.integers(-3, 4, size=(k - 1, 4)).astype(float)
        j = np.vstack([g, -(e[:, None] * g).sum(axis=0)])
        if not j.any(axis=1).all():
            continue
        found = cosines(j @ j.T)
        v, _ = project_rows(found.matrix)
        bound = resolution(np.append(e, 1.0) * found.norms)
        met += bool((bound < 1e-3).any())
        assert (np.linalg.norm(v @ unit(j), axis=1) <= 2.0 * bound).all()
    assert met > 100


# --- CAGrad ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [0.2, 0.5, 1.0, 3.0])
@pytest.mark.parametrize(("k", "p", "seed"), CASES)
def test_cagrad_satisfies_its_optimality_conditions(k, p, seed, c):
    j = rows(k, p, seed, decades=2.0)
    found = cosines(j @ j.T)
    y, certificate = cagrad(found.matrix, 1.0 / found.norms, found.norms / k, c)
    assert (y >= 0).all()
    mean = j.mean(axis=0)
    length = np.linalg.norm(mean)
    added = unit(j).T @ y
    gains = j @ (mean + added)
    noise = 1e-11 * (length + y.sum())
    if certificate.status == "stationary":
        assert c >= 1.0 or p < k
        assert (gains / found.norms >= -noise).all()
        return
    assert certificate.status == "optimal"
    # A maximiser: on the sphere, equal gains where the multiplier is positive, no smaller gain elsewhere.
    assert np.linalg.norm(added) == pytest.approx(c * length, abs=noise)
    level = gains[y > 0].mean()
    assert (np.abs(gains - level)[y > 0] / found.norms[y > 0] <= noise).all()
    assert ((gains - level) / found.norms >= -noise).all()


@pytest.mark.parametrize("ratio", [1e-8, 1e-12, 1e-14])
def test_cagrad_is_not_disturbed_by_rows_too_small_to_matter(ratio):
    """Where long rows bind at a level below 0, rows of next to no length do not: their gains are next to 0."""
    met = 0
    for seed in range(40):
        j = rows(12, 5, seed)
        j[8:] *= ratio
        found = cosines(j @ j.T)
        for c in (0.1, 0.5):
            y, certificate = cagrad(found.matrix, 1.0 / found.norms, found.norms / 12, c)
            mean = j.mean(axis=0)
            added = unit(j).T @ y
            gains = j @ (mean + added)
            length = np.linalg.norm(mean)
            if gains[:8].min() > -1e-3 * length or y[8:].any():
                continue
            met += 1
            assert certificate.status == "optimal"
            noise = 1e-11 * (length + y.sum())
            assert np.linalg.norm(added) == pytest.approx(c * length, abs=noise)
            level = gains[:8].min()
            assert (np.abs(gains - level)[y > 0] / found.norms[y > 0] <= noise).all(), (seed, c)
    assert met >= 40


def test_the_residual_of_one_row_is_not_hidden_by_the_size_of_another():
    linear = np.array([-1.0, 1e12])
    assert nonnegative.residual(np.eye(2), linear, np.array([1.0, 0.0])) == 0.0
    assert nonnegative.residual(np.eye(2), linear, np.array([1.1, 0.0])) == pytest.approx(0.1 / 2.1)


def test_cagrad_agrees_with_a_convex_program():
    cp = pytest.importorskip("cvxpy")
    for k, p, seed, c in [(2, 6, 0, 0.4), (3, 8, 1, 0.5), (5, 4, 2, 1.0), (11, 30, 3, 0.7)]:
        j = rows(k, p, seed)
        found = cosines(j @ j.T)
        y, _ = cagrad(found.matrix, 1.0 / found.norms, found.norms / k, c)
        mean = j.mean(axis=0)
        d, t = cp.Variable(p), cp.Variable()
        cp.Problem(cp.Maximize(t), [j @ d >= t, cp.norm(d - mean) <= c * np.linalg.norm(mean)]).solve(solver="CLARABEL")
        assert (j @ (mean + unit(j).T @ y)).min() == pytest.approx(t.value, abs=1e-6)


# --- barrier --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0, 2.0, 10.0])
@pytest.mark.parametrize("decades", [0.0, 8.0])
@pytest.mark.parametrize(("k", "p"), [(2, 5), (3, 9), (5, 20), (11, 30), (40, 100)])
def test_barrier_solves_its_equation(k, p, decades, alpha):
    for seed in range(3):
        j = rows(k, p, seed, decades)
        found = cosines(j @ j.T)
        b, certificate = barrier(found.matrix, found.norms, alpha)
        assert certificate.status == "optimal"
        w = b / found.norms
        left, right = j @ (j.T @ w), w ** (-1.0 / alpha)
        # Each equation up to the rounding of its own terms.
        terms = np.abs(j @ j.T) @ w + right
        assert (np.abs(left - right) <= 1e-12 * terms).all()


@pytest.mark.parametrize(("k", "p"), [(11, 8), (20, 15), (40, 30)])
def test_barrier_of_more_rows_than_dimensions_far_from_alpha_one(k, p):
    """The direct iteration wanders here: for alpha = 10 on one in five of the largest."""
    for seed in range(20):
        j = rows(k, p, seed)
        found = cosines(j @ j.T)
        for alpha in (0.1, 7.0, 10.0):
            b, certificate = barrier(found.matrix, found.norms, alpha)
            assert certificate.status == "optimal", (seed, alpha)
            w = b / found.norms
            left, right = j @ (j.T @ w), w ** (-1.0 / alpha)
            assert (np.abs(left - right) <= 1e-12 * (np.abs(j @ j.T) @ w + right)).all()


def test_barrier_far_from_alpha_one_is_the_point_of_an_independent_iteration():
    """Descent on the convex objective, with a line search, for the set that once gave |d| = 5.9e6."""
    alpha, g = 10.0, (j := np.random.default_rng(5).standard_normal((40, 30))) @ j.T
    w = np.ones(40) / np.trace(g) ** 0.5
    value = lambda w, q: 0.5 * w @ g @ w - (np.log(w).sum() if q == 0 else (w**q).sum() / q)
    for step in np.geomspace(1.0, alpha, 30):
        q = 1.0 - 1.0 / step
        for _ in range(100):
            slope = g @ w - w ** (q - 1.0)
            move = -np.linalg.solve(g + np.diag((1.0 - q) * w ** (q - 2.0)), slope)
            t = 1.0
            while (w + t * move).min() <= 0 or value(w + t * move, q) > value(w, q) + 0.25 * t * slope @ move:
                t /= 2
                if t < 1e-12:
                    break
            if t < 1e-12 or -slope @ move < 1e-24:
                break
            w = w + t * move
    found = cosines(g)
    b, certificate = barrier(found.matrix, found.norms, alpha)
    assert certificate.status == "optimal"
    np.testing.assert_allclose(b / found.norms, w, rtol=1e-6)
    assert np.linalg.norm(j.T @ w) == pytest.approx(7.83, abs=0.01)


@pytest.mark.parametrize("alpha", [0.25, 1.0, 4.0])
def test_barrier_of_orthogonal_rows_in_closed_form(alpha):
    norms = np.array([1e-6, 0.3, 2.0, 1e5])
    b, _ = barrier(np.eye(4), norms, alpha)
    np.testing.assert_allclose(b / norms, norms ** (-2.0 * alpha / (1.0 + alpha)), rtol=1e-12)


@pytest.mark.parametrize("ratio", [1e38, 1e80, 1e150])
def test_barrier_of_a_weight_that_is_no_float(ratio):
    """Nearly max-min: the short row decides alone, and the long one's weight is ratio^(-10 / 1.1) beside it."""
    norms = np.array([1.0, 1.0 / ratio])
    b, certificate = barrier(np.array([[1.0, 0.6], [0.6, 1.0]]), norms, 10.0)
    assert certificate.status == "optimal"
    w = b / norms
    assert w[0] < 1e-300
    assert w[1] == pytest.approx(norms[1] ** (-2.0 / 1.1), rel=1e-12)


def test_barrier_of_two_rows_agrees_with_the_iteration():
    for cosine in (-0.999999, -0.3, 0.0, 0.8):
        c = np.array([[1.0, cosine], [cosine, 1.0]])
        closed, _ = barrier(c, np.ones(2), 1.0)
        iterated, _ = barrier(c, np.ones(2), 1.0 + 1e-13)
        np.testing.assert_allclose(closed, iterated, rtol=1e-9)


def test_barrier_agrees_with_a_convex_program():
    cp = pytest.importorskip("cvxpy")
    for k, p, seed, alpha in [(3, 8, 0, 1.0), (5, 20, 1, 2.0), (11, 30, 2, 0.5)]:
        j = rows(k, p, seed)
        found = cosines(j @ j.T)
        b, _ = barrier(found.matrix, found.norms, alpha)
        w = cp.Variable(k)
        power = 1.0 - 1.0 / alpha
        fairness = cp.sum(cp.log(w)) if alpha == 1.0 else cp.sum(cp.power(w, power)) / power
        cp.Problem(cp.Minimize(cp.sum_squares(j.T @ w) / 2 - fairness)).solve(solver="CLARABEL")
        np.testing.assert_allclose(b / found.norms, w.value, rtol=1e-3)


def test_barrier_without_common_descent_direction_leaves_no_direction():
    c = np.array([[1.0, -1.0], [-1.0, 1.0]])
    for alpha in (0.5, 1.0, 2.0):
        b, _ = barrier(c, np.array([1.0, 3.0]), alpha)
        assert np.isfinite(b).all()
        assert b @ c @ b <= 64 * EPS * b.sum() ** 2


# --- remainders, least squares, safety ----------------------------------------------------------------------------


def by_basis(u: np.ndarray, i: int) -> np.ndarray:
    """Row i minus its projection onto the span of the others, by an orthonormal basis of them."""
    _, values, basis = np.linalg.svd(np.delete(u, i, axis=0), full_matrices=False)
    basis = basis[values > 1e-9]
    return u[i] - basis.T @ (basis @ u[i])


@pytest.mark.parametrize(("k", "p", "seed"), CASES)
def test_remainders_agree_with_an_orthonormal_basis(k, p, seed):
    u = unit(rows(k, p, seed))
    found, lengths = orthogonal.remainders(cosines(u @ u.T).matrix)
    for i in range(k):
        expected = by_basis(u, i)
        np.testing.assert_allclose(found[i] @ u, expected, atol=2 * orthogonal.SMALLEST_SINE)
        assert lengths[i] == pytest.approx(np.linalg.norm(expected), abs=2 * orthogonal.SMALLEST_SINE)


def test_remainders_of_dependent_rows_are_exactly_zero():
    u = unit(np.array([[1.0, 2.0, 0.0], [2.0, -1.0, 0.0], [3.0, 1.0, 0.0], [0.0, 0.0, 5.0]]))
    found, lengths = orthogonal.remainders(cosines(u @ u.T).matrix)
    np.testing.assert_array_equal(lengths[:3], 0.0)
    np.testing.assert_array_equal(found[:3], 0.0)
    np.testing.assert_allclose(found[3], [0.0, 0.0, 0.0, 1.0], atol=1e-15)


def test_remainders_see_duplicates_among_the_others():
    u = unit(np.array([[1.0, 0.5], [0.0, 1.0], [0.0, 1.0]]))
    found, lengths = orthogonal.remainders(cosines(u @ u.T).matrix)
    np.testing.assert_allclose(found[0] @ u, [u[0, 0], 0.0], atol=1e-15)
    assert lengths[0] == pytest.approx(u[0, 0])
    np.testing.assert_array_equal(lengths[1:], 0.0)


def test_remainders_of_many_rows_with_a_duplicate():
    u = unit(rows(40, 100, 0))
    u[-1] = -u[0]
    found, lengths = orthogonal.remainders(cosines(u @ u.T).matrix)
    for i in range(40):
        np.testing.assert_allclose(found[i] @ u, by_basis(u, i), atol=1e-12)
        assert (lengths[i] == 0.0) == (i in (0, 39))


@pytest.mark.parametrize("along", [0.3, 0.7])
@pytest.mark.parametrize("angle", [1e-2, 1e-3, 1e-4, 1e-5, 3e-6, 1e-6])
def test_remainders_of_rows_that_depend_on_others_through_large_coefficients(angle, along):
    """The third is a combination of two that are nearly one: its part in the null vector is as small as their angle."""
    u = unit(np.array([[1.0, 0.0, 0.0], [1.0, angle, 0.0], [along, 0.5, 0.0], [0.2, 0.1, 1.0]]))
    found, lengths = orthogonal.remainders(cosines(u @ u.T).matrix)
    np.testing.assert_array_equal(lengths[:3], 0.0)
    np.testing.assert_array_equal(found[:3], 0.0)
    np.testing.assert_allclose(found[3] @ u, by_basis(u, 3), atol=1e-8)


@pytest.mark.parametrize(("k", "p", "seed"), CASES)
def test_minimum_norm_is_the_pseudo_inverse(k, p, seed):
    u = unit(rows(k, p, seed))
    c = cosines(u @ u.T).matrix
    y, rank = minimum_norm(c, np.ones(k))
    assert rank == min(k, p)
    np.testing.assert_allclose(y, np.linalg.pinv(c, rcond=1e-12, hermitian=True) @ np.ones(k), rtol=1e-6, atol=1e-6)


def test_safety_repairs_a_conflict_and_says_so():
    c = np.array([[1.0, -0.9], [-0.9, 1.0]])
    b, diagnostics = without_conflict(c, np.array([1.0, 0.1]))
    assert diagnostics["polished"] < -0.5
    assert diagnostics["min_cosine"] >= -1e-15
    np.testing.assert_allclose(b, [1.0, 0.9])


def test_safety_leaves_a_good_direction_alone():
    start = np.array([0.3, 2.0])
    b, diagnostics = without_conflict(np.array([[1.0, 0.2], [0.2, 1.0]]), start)
    assert b is start
    assert "polished" not in diagnostics
    assert diagnostics["min_cosine"] > 0


def test_ordinary_problems_take_few_systems():
    """The safeguards (active set, bracket) are for hostile rows: here the fast way must be the one that answers."""
    for k in (5, 11, 40):
        for seed in range(10):
            found = cosines(rows(k, 2 * k + 10, seed) @ rows(k, 2 * k + 10, seed).T)
            inverse = 1.0 / found.norms
            assert project_rows(found.matrix)[1].iterations <= 8
            assert min_norm(found.matrix, inverse)[2].iterations <= 8
            assert cagrad(found.matrix, inverse, found.norms / k, 0.5)[1].iterations <= 15
            assert barrier(found.matrix, found.norms, 2.0)[1].iterations <= 12


def test_cancellation_does_not_hide_a_conflict():
    """|g_0| is 1e-8 of its summands: b'Cb is all rounding, the inner products with the rows are not."""
    j = np.array([[-3072.0], [2.0**-13], [3072.0]])
    found = cosines(j @ j.T)
    b, diagnostics = without_conflict(found.matrix, found.norms / 3)
    assert diagnostics["polished"] < -0.5
    assert abs(j[:, 0] @ (b / found.norms)) <= 16 * EPS * b.sum()


def test_rounding_does_not_look_like_a_conflict():
    """b'Cb rounds to below zero, and a slack of one eps beside one of twenty was a cosine of -0.05."""
    c = np.array([[1.0, -1.0 - EPS, 0.5], [-1.0 - EPS, 1.0, -0.5 + 20 * EPS], [0.5, -0.5 + 20 * EPS, 1.0]])
    _, diagnostics = without_conflict(c, np.array([1.0, 1.0, 0.0]))
    assert "polished" not in diagnostics
    assert "direction" not in diagnostics
    assert -1e-7 < diagnostics["min_cosine"] < 0.0


def test_the_last_look_at_weights_whose_squares_underflow():
    _, diagnostics = without_conflict(np.eye(2), np.array([0.0, 1e-200]))
    assert diagnostics["min_cosine"] == 0.0
    assert "direction" not in diagnostics


HIDDEN = [[0.25, 1.999969482421875], [-1.0, 0.0], [-0.125, -1.0]]
"""Strongly stationary, weights of the unit rows 2e-6 apart: the repair needs weights of 1e5, and their rounding hides
that a task loses 1e-6 (as a cosine) of a direction that is zero in exact arithmetic."""


@pytest.mark.parametrize(
    ("name", "options"), [("cagrad", {"c": 1.0}), ("upgrad", {}), ("dualproj", {}), ("gradops", {})]
)
def test_what_is_left_of_a_cancellation_is_zero_where_it_would_harm_a_task(name, options):
    method = mtlcore.create("aggregator", name, **options)
    assert mtlcore.aggregate(method, torch.tensor(HIDDEN, dtype=torch.float64)).norm() == 0
    # A little farther from stationary there is a common descent direction, and the answer is one.
    rows = torch.tensor([[0.25, 2.001], [-1.0, 0.0], [-0.125, -1.0]], dtype=torch.float64)
    found = mtlcore.aggregate(method, rows)
    assert found.norm() > 0
    assert float(((rows @ found) / rows.norm(dim=1) / found.norm()).min()) >= -1e-11


def test_a_direction_that_is_resolved_is_kept_where_the_rows_are_stationary():
    """Two opposite gradients and a third: the third improves, and nobody loses."""
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    assert mtlcore.aggregate("upgrad", rows)[1] > 0.1
