"""The min-norm point of the hull with weights of at most 1 / (share K) each, by Clarabel, polished on the bounds found.
[Hu, Ho & Yu 2026, 2605.30452: the idea; derived as the dual of a conditional value at risk]"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from mtlverify.references import Array, ReferenceFailed, Solution, programs, reference


@reference("capped-mgda")
def capped_mgda(rows: Array, plugin: Any) -> Solution:
    """min |J'a|^2 over the capped simplex. With r = G a, |d - d*|^2 <= <d, d - d*> <= a'r - min over feasible a* of
    a*'r, which is 0 at the solution and bounds the distance elsewhere."""
    k = len(rows)
    cap = min(1.0, max(1.0 / (float(plugin.share) * k), 1.0 / k))
    scale = float(np.linalg.norm(rows, axis=1).max())
    if scale == 0.0:
        return Solution(np.zeros(rows.shape[1]), 0.0)
    units = rows / scale
    candidates = [np.full(k, 1.0 / k)]
    try:
        a = _program(units, cap)
        candidates += [a, *_polished(units, a, cap)]
    except ReferenceFailed:
        pass
    if min(_gap(units, a, cap) for a in candidates) > 1e-14 and k <= 6:
        candidates += _enumerated(units, cap)
    best = min(candidates, key=lambda a: _gap(units, a, cap))
    gap = _gap(units, best, cap)
    size = float(best @ np.linalg.norm(rows, axis=1))
    return Solution(rows.T @ best, size, min(gap, 1.0), scale * float(np.sqrt(gap))).accepted()


def _program(units: Array, cap: float) -> Array:
    cp = programs.cvxpy()
    a = cp.Variable(len(units), nonneg=True)
    programs.solve(cp.Problem(cp.Minimize(cp.sum_squares(units.T @ a)), [cp.sum(a) == 1, a <= cap]))
    return _feasible(np.asarray(a.value), cap)


def _feasible(a: Array, cap: float) -> Array:
    """The nearest feasible point, by bisection on the shift."""
    low, high = float(a.min()) - 1.0, float(a.max()) + 1.0
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if np.clip(a - middle, 0.0, cap).sum() > 1.0 else (low, middle)
    return np.asarray(np.clip(a - high, 0.0, cap))


def _polished(units: Array, a: Array, cap: float) -> list[Array]:
    found = []
    for cut in (1e-9, 1e-7, 1e-5, 1e-3):
        free, top = (a > cut * cap) & (a < (1 - cut) * cap), a >= (1 - cut) * cap
        found += _with_bounds(units, free, top, cap)
    return found


def _enumerated(units: Array, cap: float) -> list[Array]:
    found = []
    for code in itertools.product((0, 1, 2), repeat=len(units)):
        state = np.array(code)
        found += _with_bounds(units, state == 1, state == 2, cap)
    return found


def _with_bounds(units: Array, free: Array, top: Array, cap: float) -> list[Array]:
    """The stationary point with some weights at 0, some at the cap, if it is feasible."""
    a = np.where(top, cap, 0.0)
    n = int(free.sum())
    if n:
        block = units[free] @ units[free].T
        system = np.block([[block, -np.ones((n, 1))], [np.ones((1, n)), np.zeros((1, 1))]])
        right = np.append(-units[free] @ (units.T @ a), 1.0 - a.sum())
        a[free] = np.linalg.lstsq(system, right, rcond=1e-13)[0][:n]
    good = abs(float(a.sum()) - 1.0) < 1e-9 and a.min() >= -1e-15 and a.max() <= cap * (1 + 1e-12)
    return [a] if good else []


def _gap(units: Array, a: Array, cap: float) -> float:
    """a'r - min over the capped simplex, the latter by filling the smallest entries first."""
    r = units @ (units.T @ a)
    left, least = 1.0, 0.0
    for value in np.sort(r):
        share = min(cap, left)
        least, left = least + share * value, left - share
    return max(float(a @ r) - least, 0.0)
