"""Values of the gradient methods against transcriptions of the published rules: numpy, written from the formulas.

200 random Jacobians, K = 2..8, norms spread over two decades, float64. The transcriptions see rows, the methods a
Gramian.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares, minimize_scalar, nnls

import mtlcore
from mtlcore import Aggregation, StepView
from mtlcore.errors import ConfigurationError
from mtlplugins.solvers.cosines import Array

SIZES = [(k, k + 1 + (7 * i) % 9) for i in range(28) for k in range(2, 9)] + [(3, 40), (8, 60), (5, 5), (2, 2)]


@functools.cache
def jacobians() -> tuple[Array, ...]:
    rng = np.random.default_rng(0)
    return tuple(rng.normal(size=s) * 10.0 ** rng.uniform(-1.0, 1.0, size=(s[0], 1)) for s in SIZES)


def some(every: int = 1) -> Iterator[tuple[int, Array]]:
    return ((seed, rows) for seed, rows in enumerate(jacobians()) if seed % every == 0)


def answer(rows: Array, name: str, seed: int = 0, losses: Array | None = None, **options: Any) -> Aggregation:
    method = mtlcore.create("aggregator", name, **options)
    losses = np.ones(len(rows)) if losses is None else losses
    view = StepView(losses=losses.tolist(), jacobian=torch.from_numpy(rows), generator=seed, needs=method.needs)
    return method.aggregate(view, method.init(len(rows)))


def ask(rows: Array, name: str, **options: Any) -> Array:
    return rows.T @ answer(rows, name, **options).weights.numpy()


def close(found: Array, expected: Array, rows: Array, tolerance: float = 1e-8) -> None:
    size = max(float(np.linalg.norm(expected)), 1e-3 * float(np.linalg.norm(rows, axis=1).max()))
    assert np.linalg.norm(found - expected) <= tolerance * size, (rows.shape, found, expected)


def units(rows: Array) -> Array:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def clipped(d: Array, limit: float | None) -> Array:
    return d if limit is None else d * min(1.0, limit / np.linalg.norm(d))


def weights_of(seed: int, k: int) -> Array:
    return np.random.default_rng(seed + 1000).uniform(0.1, 3.0, size=k)


def test_there_are_two_hundred():
    assert len(jacobians()) == 200
    assert {len(j) for j in jacobians()} == set(range(2, 9))


# --- MGDA -------------------------------------------------------------------------------------------------------------


def min_norm(rows: Array) -> Array:
    """Weights on the simplex. With A = (rows'; 1') the y >= 0 of min |A y - e_last| has G y + (1'y - 1) 1 >= 0,
    equal on its support: y / 1'y is the min-norm point."""
    scale = np.linalg.norm(rows, axis=1).min()
    y, _ = nnls(np.vstack([rows.T / scale, np.ones(len(rows))]), np.append(np.zeros(rows.shape[1]), 1.0))
    return y / y.sum()


@pytest.mark.parametrize("normalize", ["none", "l2", "loss", "loss+"])
@pytest.mark.parametrize("applied_to", ["rescaled", "losses"])
def test_mgda(normalize, applied_to):
    for seed, rows in some():
        losses = weights_of(seed, len(rows))
        norms = np.linalg.norm(rows, axis=1)
        lengths = {"none": np.ones(len(rows)), "l2": norms, "loss": losses, "loss+": losses * norms}[normalize]
        a = min_norm(rows / lengths[:, None])
        expected = a if applied_to == "losses" else a / lengths
        found = answer(rows, "mgda", losses=losses, normalize=normalize, applied_to=applied_to)
        close(rows.T @ found.weights.numpy(), rows.T @ expected, rows, 1e-7)
        assert found.head_weights is None


def test_mgda_as_in_the_nash_mtl_code():
    """Weights on the simplex times K, for whole losses: trunk and heads."""
    options = {"normalize": "l2", "applied_to": "losses", "heads": "weights", "outer_scale": "n-tasks"}
    for _, rows in some(5):
        found = answer(rows, "mgda", **options)
        expected = len(rows) * min_norm(units(rows))
        np.testing.assert_allclose(found.weights.numpy(), expected, atol=1e-7 * len(rows))
        assert torch.equal(found.head_weights, found.weights)


# --- PCGrad, CAGrad, FairGrad, Nash-MTL -------------------------------------------------------------------------------


def pcgrad(rows: Array, orders: Array, own: bool) -> Array:
    total = np.zeros(rows.shape[1])
    for i, order in enumerate(orders):
        g = rows[i].copy()
        for j in order:
            if (own or j != i) and g @ rows[j] < 0:
                g -= (g @ rows[j]) / (rows[j] @ rows[j]) * rows[j]
        total += g
    return total


@pytest.mark.parametrize("own", [False, True])
def test_pcgrad(own):
    """On the random rows, and on rows near one line, where projections turn a gradient against itself."""
    rng, differ = np.random.default_rng(1), 0
    near_a_line = [rng.choice([-1.0, 1.0], (8, 1)) + 0.3 * rng.normal(size=(8, 3)) for _ in range(60)]
    for seed, rows in enumerate((*jacobians(), *near_a_line)):
        k = len(rows)
        generator = torch.Generator().manual_seed(seed)
        orders = torch.rand(k, k, generator=generator, dtype=torch.float64).argsort(dim=1).numpy()
        expected = pcgrad(rows, orders, own)
        close(ask(rows, "pcgrad", seed=seed, include_own=own), expected, rows)
        differ += bool(np.linalg.norm(expected - pcgrad(rows, orders, not own)) > 1e-6)
    assert differ > 20


def cagrad_of_two(rows: Array, c: float) -> Array:
    """The dual of two tasks has one unknown: w = (t, 1 - t) minimises <g_w, g_0> + c |g_0| |g_w|."""
    mean = rows.mean(axis=0)
    length = np.linalg.norm(mean)

    def dual(t: float) -> float:
        point = t * rows[0] + (1 - t) * rows[1]
        return float(point @ mean + c * length * np.linalg.norm(point))

    t = minimize_scalar(dual, bounds=(0.0, 1.0), method="bounded", options={"xatol": 1e-12}).x
    t = min((0.0, 1.0, float(t)), key=dual)
    point = t * rows[0] + (1 - t) * rows[1]
    return mean + c * length * point / np.linalg.norm(point)


def test_cagrad_of_two_tasks():
    for seed, rows in some():
        if len(rows) == 2:
            c = 0.2 + 0.1 * (seed % 7)
            expected = cagrad_of_two(rows, c)
            close(ask(rows, "cagrad", c=c), expected, rows, 1e-5)
            authors = ask(rows, "cagrad", c=c, rescale="1+c^2", outer_scale="n-tasks", max_norm=1.0)
            close(authors, clipped(2 * expected / (1 + c * c), 1.0), rows, 1e-5)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_fairgrad(alpha):
    """G w = w^(-1/alpha); the authors multiply the trunk by K, clip it to 1, and leave the heads alone."""
    for seed, rows in some(1 if alpha == 2.0 else 5):
        w = answer(rows, "fairgrad", alpha=alpha).weights.numpy()
        np.testing.assert_allclose(rows @ (rows.T @ w), w ** (-1.0 / alpha), rtol=1e-7)
        if seed % 10 == 0:
            gram = rows @ rows.T
            start = np.log(np.diag(gram)) * -alpha / (1 + alpha)
            equation = lambda u, gram=gram: np.log(np.maximum(gram @ np.exp(u), 1e-12)) + u / alpha
            log = least_squares(equation, start).x
            if np.abs(gram @ np.exp(log) * np.exp(log) ** (1 / alpha) - 1).max() < 1e-10:
                np.testing.assert_allclose(w, np.exp(log), rtol=1e-6)
        authors = answer(rows, "fairgrad", alpha=alpha, outer_scale="n-tasks", max_norm=1.0)
        close(rows.T @ authors.weights.numpy(), clipped(len(rows) * rows.T @ w, 1.0), rows)
        assert authors.head_weights is None
        whole = answer(rows, "fairgrad", alpha=alpha, heads="weights", max_norm=1e-3)
        np.testing.assert_allclose(whole.head_weights.numpy(), w)


def test_nash_mtl():
    """G a = 1 / a; the authors clip the trunk to 1 and weight whole losses, so that the heads keep a."""
    for _, rows in some():
        a = answer(rows, "nash-mtl").weights.numpy()
        np.testing.assert_allclose(rows @ (rows.T @ a), 1.0 / a, rtol=1e-7)
        authors = answer(rows, "nash-mtl", max_norm=1.0)
        close(rows.T @ authors.weights.numpy(), clipped(rows.T @ a, 1.0), rows)
        np.testing.assert_array_equal(authors.head_weights.numpy(), a)
        assert answer(rows, "nash-mtl", heads="ones").head_weights is None


# --- the dual cone ----------------------------------------------------------------------------------------------------


def projection(rows: Array, x: Array) -> Array:
    """The nearest point to x with rows @ point >= 0: x + rows'y, y = argmin over y >= 0 of its length (Moreau)."""
    u = units(rows)
    size = np.linalg.norm(x)
    return x + size * u.T @ nnls(u.T, -x / size)[0]


@pytest.mark.parametrize("chosen", [False, True])
def test_upgrad_and_dualproj(chosen):
    for seed, rows in some():
        p = weights_of(seed, len(rows)) if chosen else np.ones(len(rows))
        u, options = p / p.sum(), ({"preferences": tuple(p)} if chosen else {})
        expected = sum(w * projection(rows, g) for w, g in zip(u, rows))
        close(ask(rows, "upgrad", **options), expected, rows, 1e-7)
        close(ask(rows, "dualproj", **options), projection(rows, u @ rows), rows, 1e-7)


# --- linear algebra ---------------------------------------------------------------------------------------------------


def test_imtl_g_of_independent_rows():
    """(1 - sum a, a), a = g_1 U' (D U')^-1 with rows g_1 - g_i of D and u_1 - u_i of U."""
    for _, rows in some():
        u = units(rows)
        d, v = rows[0] - rows[1:], u[0] - u[1:]
        matrix = d @ v.T
        if np.linalg.cond(matrix) > 1e6:
            continue
        a = rows[0] @ v.T @ np.linalg.inv(matrix)
        expected = np.append(1.0 - a.sum(), a)
        for dependent in ("cosines", "gramian"):
            found = answer(rows, "imtl-g", dependent=dependent, heads="weights")
            np.testing.assert_allclose(found.weights.numpy(), expected, rtol=1e-7, atol=1e-7 * np.abs(expected).max())
            assert torch.equal(found.head_weights, found.weights)


def test_imtl_g_of_dependent_rows():
    differ = 0
    for seed in range(50):
        rng = np.random.default_rng(seed)
        rows = rng.normal(size=(5, 3)) * 10.0 ** rng.uniform(-1, 1, size=(5, 1))
        norms = np.linalg.norm(rows, axis=1)
        gramian = np.linalg.pinv(rows @ rows.T, rcond=1e-12, hermitian=True) @ norms
        cosines = np.linalg.pinv(units(rows) @ units(rows).T, rcond=1e-12, hermitian=True) @ np.ones(5) / norms
        for dependent, v in (("gramian", gramian), ("cosines", cosines)):
            if abs(v.sum()) > 1e-3 * np.abs(v).sum():
                close(ask(rows, "imtl-g", dependent=dependent), rows.T @ v / v.sum(), rows, 1e-6)
        differ += bool(np.linalg.norm(gramian / gramian.sum() - cosines / cosines.sum()) > 0.1)
    assert differ > 25


@pytest.mark.parametrize("scale", ["min", "median", "rmse"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_aligned_mtl(scale, reduction):
    """J = V S W': d = s W V'u with s the least, the (lower) median or the root mean square singular value."""
    for seed, rows in some():
        k = len(rows)
        p = weights_of(seed, k) if seed % 2 else np.ones(k)
        v, values, w = np.linalg.svd(rows, full_matrices=False)
        s = {"min": values[-1], "median": np.sort(values)[(k - 1) // 2], "rmse": (values**2).mean() ** 0.5}[scale]
        u = p / p.sum() * (k if reduction == "sum" else 1)
        options = {"preferences": tuple(p)} if seed % 2 else {}
        close(ask(rows, "aligned-mtl", scale=scale, reduction=reduction, **options), s * w.T @ (v.T @ u), rows, 1e-7)


def test_aligned_mtl_with_the_rank_of_float32():
    """A row 5,000 times shorter than the other counts in float64, but not with the authors' K eps of float32."""
    rows = np.array([[1.0, 0.2, 0.0], [0.0, 0.0, 2e-4]])
    kept = answer(rows, "aligned-mtl")
    assert kept.diagnostics["rank"] == 2
    dropped = answer(rows, "aligned-mtl", rank_cut="float32")
    assert dropped.diagnostics["rank"] == 1
    np.testing.assert_allclose(rows.T @ dropped.weights.numpy(), rows[0] / 2, rtol=1e-6, atol=1e-12)
    for _, some_rows in some(10):
        close(ask(some_rows, "aligned-mtl", rank_cut="float32"), ask(some_rows, "aligned-mtl"), some_rows)


@pytest.mark.parametrize("length", ["projection", "minimum", "maximum", "harmonic", "arithmetic", "geometric", "task"])
def test_config(length):
    for seed, rows in some():
        k = len(rows)
        p = weights_of(seed, k) if seed % 2 else np.ones(k)
        x = np.linalg.pinv(units(rows)) @ p
        x = x / np.linalg.norm(x)
        norms = np.linalg.norm(rows, axis=1)
        one = {
            "minimum": norms.min(),
            "maximum": norms.max(),
            "harmonic": k / (1 / norms).sum(),
            "arithmetic": norms.mean(),
            "geometric": norms.prod() ** (1 / k),
            "task": norms[1],
        }
        expected = (rows @ x).sum() if length == "projection" else one[length] * (units(rows) @ x).sum()
        options = {"preferences": tuple(p)} if seed % 2 else {}
        close(ask(rows, "config", length=length, tracked=1, **options), expected * x, rows, 1e-6)


def test_config_tracks_a_task_that_is_there():
    with pytest.raises(ConfigurationError, match=r"config: tracked=3, but the 3 tasks are counted from 0"):
        mtlcore.create("aggregator", "config", length="task", tracked=3).init(3)
    rows = jacobians()[3][:3]
    view = StepView(losses=[1.0] * 3, jacobian=torch.from_numpy(rows))
    method = mtlcore.create("aggregator", "config", length="task", tracked=2)
    without = method.aggregate(view.restricted(torch.tensor([True, True, False])), method.init(3)).weights.numpy()
    close(rows[:2].T @ without, ask(rows[:2], "config", length="arithmetic"), rows[:2], 1e-9)


def gradops(rows: Array, always: bool) -> Array:
    total = np.zeros(rows.shape[1])
    for i, g in enumerate(rows):
        others = np.delete(rows, i, axis=0)
        if always or (others @ g < 0).any():
            basis = np.linalg.qr(units(others).T)[0]
            g = g - basis @ (basis.T @ g)
        total += g
    return total


@pytest.mark.parametrize("project", ["conflict-only", "always"])
def test_gradops(project):
    for _, rows in some():
        close(ask(rows, "gradops", project=project, fallback=False), gradops(rows, project == "always"), rows, 1e-6)


# --- preferences: one option, one meaning -----------------------------------------------------------------------------

WITH_PREFERENCES = ["upgrad", "dualproj", "aligned-mtl", "config"]


@pytest.mark.parametrize("name", WITH_PREFERENCES)
def test_only_the_ratios_of_preferences_matter_and_equal_ones_are_the_default(name):
    for seed, rows in some(10):
        p = weights_of(seed, len(rows))
        once = ask(rows, name, preferences=tuple(p))
        close(ask(rows, name, preferences=tuple(1e200 * p)), once, rows, 1e-12)
        close(ask(rows, name, preferences=(3.0,) * len(rows)), ask(rows, name), rows, 1e-12)
        assert np.linalg.norm(once - ask(rows, name)) > 1e-3 * np.linalg.norm(once)


@pytest.mark.parametrize("name", WITH_PREFERENCES)
def test_preferences_go_with_their_tasks(name):
    for seed, rows in some(10):
        order = np.random.default_rng(seed).permutation(len(rows))
        p = weights_of(seed, len(rows))
        close(ask(rows[order], name, preferences=tuple(p[order])), ask(rows, name, preferences=tuple(p)), rows)
    method = mtlcore.create("aggregator", name, preferences=(1.0, 2.0, 5.0))
    rows = jacobians()[1]
    view = StepView(losses=[1.0, 1.0, 1.0], jacobian=torch.from_numpy(rows))
    part = view.restricted(torch.tensor([True, False, True]))
    two = rows[[0, 2]].T @ method.aggregate(part, {}).weights.numpy()
    close(two, ask(rows[[0, 2]], name, preferences=(1.0, 5.0)), rows, 1e-12)
    assert "permutation-equivariant" not in method.claims
    assert "permutation-equivariant" in mtlcore.create("aggregator", name).claims


def test_preferences_of_the_projections_are_factors_of_the_losses():
    for seed, rows in some(10):
        p = weights_of(seed, len(rows))
        scaled = len(rows) * (p / p.sum())[:, None] * rows
        for name in ("upgrad", "dualproj"):
            close(ask(rows, name, preferences=tuple(p)), ask(scaled, name), rows)


def test_dualproj_that_prefers_one_task_alone_is_gem():
    for _, rows in some(10):
        alone = (1.0,) + (0.0,) * (len(rows) - 1)
        close(ask(rows, "dualproj", preferences=alone), projection(rows, rows[0]), rows, 1e-7)
        assert "zero-only-if-stationary" not in mtlcore.create("aggregator", "dualproj", preferences=alone).claims


def test_config_with_preferences_has_cosines_in_their_ratio():
    for seed, rows in some(10):
        p = weights_of(seed, len(rows))
        d = ask(rows, "config", preferences=tuple(p))
        ratio = units(rows) @ d / p
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)


@pytest.mark.parametrize("name", WITH_PREFERENCES)
def test_preferences_that_do_not_fit_are_refused(name):
    with pytest.raises(ConfigurationError, match="preferences has 2 entries for 3 tasks"):
        mtlcore.create("aggregator", name, preferences=(1.0, 2.0)).init(3)
    with pytest.raises(ConfigurationError, match="preferences must be"):
        mtlcore.create("aggregator", name, preferences=(1.0, -2.0))
    with pytest.raises(ConfigurationError, match="preferences of the tasks present .* are all zero"):
        answer(jacobians()[0], name, preferences=(0.0, 0.0))
