"""The minimum-norm point of the convex hull of the gradients. [Desideri 2012]"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
from scipy.optimize import nnls

from mtlverify.references import ACCEPTED, Array, ReferenceFailed, Solution, programs, reference
from mtlverify.references.rows import UnitRows, unit_rows


def covers(plugin: Any) -> bool:
    """Gradients as they are, or normalised to length 1; the min-norm point itself."""
    normalize = getattr(plugin, "normalize", "none")
    plain = getattr(plugin, "max_norm", None) is None and getattr(plugin, "outer_scale", "one") == "one"
    itself = normalize == "none" or getattr(plugin, "applied_to", "rescaled") == "rescaled"
    return plain and itself and normalize in ("none", "l2")


@reference("mgda")
def mgda(rows: Array, plugin: Any) -> Solution:
    """argmin |d|^2 over d in conv{g_1..g_K}; with normalize="l2" over the unit gradients that are not zero."""
    if getattr(plugin, "normalize", "none") == "l2":
        return min_norm(unit_rows(rows).units) if rows.any() else Solution(np.zeros(rows.shape[1]), 0.0)
    return min_norm(rows)


def min_norm(rows: Array) -> Solution:
    """With b_i = a_i |g_i| / m and m = min |g_i|: min |U'b|^2 over b >= 0, sum_i b_i m / |g_i| = 1; then d = m U'b.

    A zero row makes the answer 0. The optimality conditions are r = C b - |x|^2 c >= 0 and b r = 0, c_i = m / |g_i|; if
    they hold up to e, then |x - x*|^2 <= <x, x - x*> <= 2 e |b|_1, because x* is feasible.
    """
    lengths = np.linalg.norm(rows, axis=1)
    if (lengths == 0).any():
        return Solution(np.zeros(rows.shape[1]), float(lengths.max()))
    given = unit_rows(rows)
    cost = float(given.norms.min()) / given.norms
    candidates = _active_set(given.units, cost)
    with contextlib.suppress(ReferenceFailed):  # a cost spread over 1e16 can defeat Clarabel
        b = programs.run(programs.nearest_in_simplex(len(rows)), given.square_root, cost)
        candidates += [_repaired(b, cost), *_polished(given.units, b, cost)]
    if not candidates:
        raise ReferenceFailed("neither Clarabel nor Lawson-Hanson found a point of the hull")
    return _solution(given, cost, candidates).accepted()


def bounds(rows: Array) -> tuple[float, float]:
    """Bounds of |d| of the min-norm point, of rows none of which is zero, by Lawson-Hanson alone: for who only asks
    whether it vanishes. (0, inf) if it finds no point."""
    given = unit_rows(rows)
    cost = float(given.norms.min()) / given.norms
    candidates = _active_set(given.units, cost)
    if not candidates:
        return 0.0, float("inf")
    found = _solution(given, cost, candidates)
    length = float(np.linalg.norm(found.direction))
    return (length - found.distance if found.residual <= ACCEPTED else 0.0), length


def _solution(given: UnitRows, cost: Array, candidates: list[Array]) -> Solution:
    """The candidate that comes nearest to the optimality conditions."""
    smallest = float(given.norms.min())
    best = min(candidates, key=lambda b: _violation(given.units, b, cost))
    violation = _violation(given.units, best, cost)
    size = float(best.sum())
    return Solution(
        direction=smallest * (given.units.T @ best),
        size=smallest * size,
        residual=violation / size,
        distance=smallest * float(np.sqrt(2.0 * violation * size)),
    )


def _repaired(b: Array, cost: Array) -> Array:
    b = np.maximum(b, 0.0)
    return b / float(cost @ b)


def _polished(units: Array, b: Array, cost: Array) -> list[Array]:
    """On a guessed support S the conditions are linear: C_SS b_S = t c_S. Several guesses, because the solver's small
    entries may be zero or merely small."""
    found = []
    for cut in (1e-9, 1e-7, 1e-5, 1e-3):
        support = np.flatnonzero(b > cut * b.max())
        if not len(support):
            continue
        block = units[support] @ units[support].T
        part, *_ = np.linalg.lstsq(block, cost[support], rcond=1e-13)
        if (part >= 0).all() and cost[support] @ part > 0:
            full = np.zeros_like(b)
            full[support] = part
            found.append(_repaired(full, cost))
    return found


def _active_set(units: Array, cost: Array) -> list[Array]:
    """Lawson-Hanson on min |U'b|^2 + (<c, b> - 1)^2: on a ray the best value is |x|^2 / (1 + |x|^2), x at <c, b> = 1,
    so the minimiser is a multiple of the one sought."""
    b, _ = nnls(np.vstack([units.T, cost]), np.append(np.zeros(units.shape[1]), 1.0), maxiter=100 * len(cost))
    return [_repaired(b, cost)] if float(cost @ b) > 0 else []


def _violation(units: Array, b: Array, cost: Array) -> float:
    x = units.T @ b
    slack = units @ x - float(x @ x) * cost
    return float(np.where(b > 0, np.abs(slack), np.maximum(-slack, 0.0)).max())
