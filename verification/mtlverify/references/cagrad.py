"""CAGrad: max_d min_i <g_i, d> over |d - g_0| <= c |g_0|, by its dual and, to check the dual, by its primal.
[Liu et al. 2021, 2110.14048, equations 2 and 3]"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from mtlverify.references import ACCEPTED, Array, NoUniqueAnswer, ReferenceFailed, Solution, programs, reference
from mtlverify.references.min_norm import min_norm
from mtlverify.references.rows import UnitRows, unit_rows


def covers(plugin: Any) -> bool:
    """The direction as in the paper, and the factors that its authors put on top of it."""
    plain = getattr(plugin, "max_norm", None) is None and getattr(plugin, "outer_scale", "one") == "one"
    return plain and getattr(plugin, "rescale", None) in ("none", "1+c^2", "1+c")


@reference("cagrad")
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
    point = mean / length
    found: list[Array] = []
    try:
        programs.solve(problem)
        near = np.maximum(b.value, 0.0)
        found = _on_sphere(given, c, near) + _polished(given, point, c, cost, _guesses(near))
    except ReferenceFailed:
        pass  # rows of very different size: the supports are tried one by one below
    if not found or min(_gap(given, point, c, cost, y) for y in found) > ACCEPTED:
        found += _polished(given, point, c, cost, _subsets(len(rows)))
    y = min(found, key=lambda y: _gap(given, point, c, cost, y), default=None)
    gap = 1.0 if y is None else _gap(given, point, c, cost, y)
    level = 0.0 if y is None else float(y @ given.units @ (point + given.units.T @ y)) / float(y @ cost)
    if (y is None or gap > ACCEPTED or level * float(cost.max()) > -ACCEPTED) and _stationary(given):
        raise NoUniqueAnswer("g_w vanishes: every direction in the ball that harms no task is a maximiser")
    if y is None:
        raise ReferenceFailed("no support satisfies the optimality conditions")
    size = 1.0 + float(y.sum())
    return _scaled(
        Solution(length * (point + given.units.T @ y), length * size, gap, length * float(np.sqrt(2 * gap * size))),
        plugin,
    ).accepted()


def primal(rows: Array, plugin: Any) -> Solution:
    """The maximin problem itself, in an orthonormal basis of the row space.

    The residual is its duality gap: the solver's multipliers w of the gains bound every value from above by
    <g_w, g_0> + c |g_0| |g_w|, which is what the dual minimises.
    """
    cp = programs.cvxpy()
    mean = rows.mean(axis=0)
    length, c = float(np.linalg.norm(mean)), float(plugin.c)
    given = unit_rows(rows)
    basis, _ = np.linalg.qr(given.units.T)
    d, t = cp.Variable(basis.shape[1]), cp.Variable()
    cost = float(given.norms.min()) / given.norms
    inside, center = given.units @ basis, basis.T @ mean / length
    gains = inside @ d >= t * cost
    programs.solve(cp.Problem(cp.Maximize(t), [gains, cp.norm(d - center) <= c]))
    multipliers = np.maximum(gains.dual_value, 0.0)
    multipliers = multipliers / float(multipliers @ cost)
    bound = float(multipliers @ inside @ center) + c * float(np.linalg.norm(inside.T @ multipliers))
    value = float((inside @ d.value / cost).min())
    outside = float(np.linalg.norm(d.value - center)) - c
    gap = max(bound - value, outside) / (1.0 + float(multipliers.sum()))
    return _scaled(Solution(length * basis @ d.value, length, gap), plugin).accepted()


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


def _stationary(given: UnitRows) -> bool:
    """Whether g_w = 0 is possible: then level 0 is the best, and reached by many d if the ball reaches it."""
    return float(np.linalg.norm(min_norm(given.units).direction)) < 1e-6


def _on_sphere(given: UnitRows, c: float, b: Array) -> list[Array]:
    """The multiple of b for which |U'b| = c: what is added to the mean."""
    length = float(np.linalg.norm(given.units.T @ b))
    return [b * (c / length)] if length > 1e-7 * float(b.sum()) else []


def _guesses(b: Array) -> list[Array]:
    """Supports that the solver's answer suggests: its small entries may be zero or merely small."""
    return [np.flatnonzero(b > cut * b.max()) for cut in (1e-9, 1e-7, 1e-5, 1e-3)]


def _subsets(k: int) -> list[Array]:
    """Every non-empty support: 63 of them for 6 tasks."""
    return [np.flatnonzero([(code >> i) & 1 for i in range(k)]) for code in range(1, 2 ** min(k, 8))]


def _polished(given: UnitRows, point: Array, c: float, cost: Array, supports: list[Array]) -> list[Array]:
    """On a support all gains <g_i, d> are equal: U_S (point + U_S'y) = t cost_S, |U_S'y| = c: a quadratic in t."""
    found = []
    for support in supports:
        part = given.units[support]
        inverse = np.linalg.pinv(part @ part.T, rcond=1e-13, hermitian=True)
        slope, offset = inverse @ cost[support], -inverse @ (part @ point)
        p, q = part.T @ slope, part.T @ offset
        disc = (p @ q) ** 2 - (p @ p) * (q @ q - c * c)
        if disc < 0 or p @ p == 0:
            continue
        for sign in (1.0, -1.0):
            y = np.zeros(len(cost))
            y[support] = slope * ((-(p @ q) + sign * np.sqrt(disc)) / (p @ p)) + offset
            if (y >= 0).all():
                found.append(y)
    return found


def _gap(given: UnitRows, point: Array, c: float, cost: Array, y: Array) -> float:
    """Violation of: gains >= t everywhere, = t on the support, |U'y| = c."""
    added = given.units.T @ y
    gains = given.units @ (point + added)
    if not float(y @ cost) > 0:  # no multiplier is left: the level is not determined
        return np.inf
    t = float(y @ gains) / float(y @ cost)
    slack = gains - t * cost
    wrong = float(np.where(y > 0, np.abs(slack), np.maximum(-slack, 0.0)).max())
    return max(wrong, abs(float(np.linalg.norm(added)) - c)) / (1.0 + float(y.sum()))
