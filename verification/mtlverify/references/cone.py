"""ConicGrad: max_d min_i <g_i, d> over |d| <= |g_0|, <g_0, d> >= c |g_0| |d|, as a second-order cone program.
[Hassanpour et al. 2025, 2502.00217: the constraint; with |d| = |g_0| relaxed to <=, which makes it convex]"""

from __future__ import annotations

from typing import Any

import numpy as np

from mtlverify.references import Array, NoUniqueAnswer, Solution, programs, reference
from mtlverify.references.min_norm import min_norm
from mtlverify.references.rows import unit_rows

CLEAR = 1e-6
"""A largest gain (of unit rows) nearer to 0 than this may be either: then d = 0, the cone's edge and the fallback are
all within rounding of being best."""


@reference("conicgrad")
def conicgrad(rows: Array, plugin: Any) -> Solution:
    """The maximiser; where nothing in the cone serves every task, 0 or the min-norm direction in length |g_0|."""
    mean, c = rows.mean(axis=0), float(plugin.c)
    length, largest = float(np.linalg.norm(mean)), float(np.linalg.norm(rows, axis=1).max(initial=0.0))
    if length <= 1e-7 * largest or not largest:
        if length <= 1e-15 * largest:
            return Solution(np.zeros(rows.shape[1]), largest)
        raise NoUniqueAnswer("the mean is zero to within the rounding of a Gramian: it has no direction")
    given = unit_rows(rows)
    nearest = min_norm(given.norms[:, None] * given.units)
    size = float(np.linalg.norm(nearest.direction))
    if size <= CLEAR * float(given.norms.min()):
        if float(np.linalg.norm(min_norm(given.units).direction)) > CLEAR * 1e-3:
            raise NoUniqueAnswer("the gradients are all but stationary")
        return Solution(np.zeros(rows.shape[1]), length)
    axis = mean / length
    if float(nearest.direction @ axis) >= c * size * (1.0 + 1e-9):
        return _scaled(nearest, length)
    d, level = _on_edge(given.units, given.norms, axis, c)
    if abs(level) <= CLEAR:
        raise NoUniqueAnswer("the largest gain within the cone is zero to within rounding")
    if level > 0.0:
        return Solution(length * d, length * (1.0 + 1.0 / max(level, CLEAR)), 0.0, 1e-7 * length)
    return _scaled(nearest, length) if plugin.fallback else Solution(np.zeros(rows.shape[1]), length)


def _scaled(nearest: Solution, length: float) -> Solution:
    by = length / float(np.linalg.norm(nearest.direction))
    return Solution(nearest.direction * by, nearest.size * by, nearest.residual, nearest.distance * by)


def _on_edge(units: Array, norms: Array, axis: Array, c: float) -> tuple[Array, float]:
    """d = c a + s u, u orthogonal to a, |u| <= 1, with the largest smallest gain; that gain over the shortest row."""
    cp = programs.cvxpy()
    basis, _ = np.linalg.qr(np.vstack([units, axis]).T)
    inside, along = units @ basis, basis.T @ axis
    smallest = float(norms.min())
    u, t = cp.Variable(basis.shape[1]), cp.Variable()
    s = float(np.sqrt(1.0 - c * c))
    gains = c * (inside @ along) + s * (inside @ u)
    constraints = [gains >= t * (smallest / norms), cp.norm(u) <= 1, along @ u == 0]
    programs.solve(cp.Problem(cp.Maximize(t), constraints))
    d = c * along + s * np.asarray(u.value)
    return np.asarray(basis @ d), float(t.value)
