"""CAGrad: max_d min_i <g_i, d> over |d - g_0| <= c |g_0|, by its dual and, to check the dual, by its primal.
[Liu et al. 2021, 2110.14048, equations 2 and 3]"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from mtlverify.references import Array, NoUniqueAnswer, Solution, programs
from mtlverify.references.rows import UnitRows, unit_rows


def covers(plugin: Any) -> bool:
    """The direction as in the paper, and the factors that its authors put on top of it."""
    return getattr(plugin, "rescale", None) in ("none", "1+c^2", "1+c")


def dual(rows: Array, plugin: Any) -> Solution:
    """d = g_0 + c |g_0| g_w / |g_w| with w = argmin <g_w, g_0> + c |g_0| |g_w| over the simplex."""
    mean = rows.mean(axis=0)
    length, c = float(np.linalg.norm(mean)), float(plugin.c)
    if length <= 1e-12 * float(np.linalg.norm(rows, axis=1).max()) or c == 0:
        return _scaled(Solution(mean, float(np.linalg.norm(rows, axis=1).mean())), plugin)
    if not rows.any(axis=1).all():
        raise NoUniqueAnswer("a zero gradient makes min_i <g_i, d> = 0 for many directions d")
    given = unit_rows(rows)
    cost = float(given.norms.min()) / given.norms
    problem, root, linear, scale, b = _dual_program(len(rows))
    root.value, linear.value, scale.value = c * given.square_root, given.units @ mean / length, cost
    programs.solve(problem)
    point = mean / length
    found = [_at(given, point, c, np.maximum(b.value, 0.0)), *_polished(given, point, c, cost, b.value)]
    gap, best = min(((_gap(given, point, c, cost, y), tuple(y)) for y in found if y is not None), default=(1.0, ()))
    y = np.array(best)
    if not best or float(np.linalg.norm(given.units.T @ y)) == 0:
        raise NoUniqueAnswer("g_w vanishes: every direction in the ball that harms no task is a maximiser")
    size = 1.0 + float(y.sum())
    return _scaled(
        Solution(length * (point + given.units.T @ y), length * size, gap, length * float(np.sqrt(2 * gap * size))),
        plugin,
    ).accepted()


def primal(rows: Array, plugin: Any) -> Solution:
    """The maximin problem itself, in an orthonormal basis of the row space."""
    cp = programs.cvxpy()
    mean = rows.mean(axis=0)
    length = float(np.linalg.norm(mean))
    given = unit_rows(rows)
    basis, _ = np.linalg.qr(given.units.T)
    d, t = cp.Variable(basis.shape[1]), cp.Variable()
    cost = float(given.norms.min()) / given.norms
    center = basis.T @ mean / length
    problem = cp.Problem(cp.Maximize(t), [given.units @ basis @ d >= t * cost, cp.norm(d - center) <= float(plugin.c)])
    programs.solve(problem)
    return _scaled(Solution(length * basis @ d.value, length, residual=0.0), plugin)


def _scaled(found: Solution, plugin: Any) -> Solution:
    """The authors divide by 1 + c^2 or 1 + c afterwards, if asked to."""
    c = float(plugin.c)
    by = {"none": 1.0, "1+c^2": 1.0 + c**2, "1+c": 1.0 + c}[plugin.rescale]
    return Solution(found.direction / by, found.size / by, found.residual, found.distance / by)


@functools.cache
def _dual_program(k: int) -> tuple[Any, ...]:
    """min <b, U g_0> + c |U'b| over b >= 0, <cost, b> = 1, on unit rows and for |g_0| = 1."""
    cp = programs.cvxpy()
    root, linear, cost = cp.Parameter((k, k)), cp.Parameter(k), cp.Parameter(k, nonneg=True)
    b = cp.Variable(k, nonneg=True)
    return cp.Problem(cp.Minimize(linear @ b + cp.norm(root @ b)), [cost @ b == 1]), root, linear, cost, b


def _at(given: UnitRows, point: Array, c: float, b: Array) -> Array | None:
    """The multiple of b for which |U'b| = c: what is added to the mean."""
    length = float(np.linalg.norm(given.units.T @ b))
    return b * (c / length) if length > 1e-7 * float(b.sum()) else None


def _polished(given: UnitRows, point: Array, c: float, cost: Array, b: Array) -> list[Array | None]:
    """On the support all gains <g_i, d> are equal: U_S (point + U_S'y) = t cost_S, |U_S'y| = c: a quadratic in t."""
    found: list[Array | None] = []
    for cut in (1e-9, 1e-7, 1e-5, 1e-3):
        support = np.flatnonzero(b > cut * b.max())
        part = given.units[support]
        inverse = np.linalg.pinv(part @ part.T, rcond=1e-13, hermitian=True)
        slope, offset = inverse @ cost[support], -inverse @ (part @ point)
        p, q = part.T @ slope, part.T @ offset
        disc = (p @ q) ** 2 - (p @ p) * (q @ q - c * c)
        if disc < 0 or p @ p == 0:
            continue
        for sign in (1.0, -1.0):
            y = np.zeros(len(b))
            y[support] = slope * ((-(p @ q) + sign * np.sqrt(disc)) / (p @ p)) + offset
            if (y >= 0).all():
                found.append(y)
    return found


def _gap(given: UnitRows, point: Array, c: float, cost: Array, y: Array) -> float:
    """Violation of: gains >= t everywhere, = t on the support, |U'y| = c."""
    added = given.units.T @ y
    gains = given.units @ (point + added)
    t = float(y @ gains) / float(y @ cost)
    slack = gains - t * cost
    wrong = float(np.where(y > 0, np.abs(slack), np.maximum(-slack, 0.0)).max())
    return max(wrong, abs(float(np.linalg.norm(added)) - c)) / (1.0 + float(y.sum()))
