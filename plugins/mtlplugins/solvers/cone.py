"""max_d min_i <g_i, d> over |d| <= 1, <a, d> >= c |d|, a the unit vector along the mean: the best common direction
within a cone around it.

The feasible set is convex, so the answer is one of three:

- the direction of the min-norm point of the gradients, if it is in the cone: nothing in the ball is better;
- else, with h_i = g_i - <g_i, a> a and s = sqrt(1 - c^2), d = c a + s u on the boundary of the cone, where u maximises
  min_i <g_i, d> = c <g_i, a> + s <h_i, u> over |u| <= 1: a level and a projection, as in :mod:`.cagrad`;
  The h_i sum to zero, because a is along the mean: their levels end at the mean gain, c <g_0, a>;
- 0, if that maximum is not positive: no direction within the cone serves every task.
"""

from __future__ import annotations

import numpy as np

from mtlplugins.solvers import nonnegative
from mtlplugins.solvers.cagrad import _nearest, _root
from mtlplugins.solvers.certificate import EPS, Certificate
from mtlplugins.solvers.cosines import Array
from mtlplugins.solvers.min_norm import min_norm

_LIMIT = 120
_ENORMOUS = 1e7
"""A sum of multipliers, of unit rows, that only an unreachable level has."""


def best_in_cone(matrix: Array, norms: Array, axis: Array, c: float) -> tuple[Array, float, Certificate]:
    """The direction as weights of the unit rows.

    Args:
        matrix: (k, k) cosines.
        norms: (k,) lengths of the rows.
        axis: (k,) weights of the unit rows in a, the unit vector along the mean.
        c: smallest cosine with a, in (0, 1).

    Returns:
        b (k,), with |d| = 1 or b = 0; min_i <g_i, d>; and the certificate ("outside": nothing in the cone serves all).
    """
    k, inverse = len(norms), 1.0 / norms
    start, square, certificate = min_norm(matrix, inverse)
    if certificate.status == "stationary":
        return np.zeros(k), 0.0, certificate
    along = matrix @ axis  # cosines with a
    if float(start @ along) >= c * square**0.5:
        return start / square**0.5, square**0.5, certificate
    s = (1.0 - c * c) ** 0.5
    turned = _turned(matrix, along)
    aside = turned.diagonal()
    free = aside > 64.0 * k * EPS  # a row along a puts a ceiling on the level and nothing else
    ceiling = min(float((c * along * norms)[~free].min(initial=np.inf)), c * float((along * norms).mean()))
    b, level, count, error = c * axis, ceiling, 0, 0.0
    if free.any():
        root = np.sqrt(aside[free])
        turned = turned[np.ix_(free, free)] / root / root[:, None]
        np.fill_diagonal(turned, 1.0)
        offset, unit = (c / s) * along[free] / root, inverse[free] / root
        scale = float(unit.max())
        y, t, count = _level(turned, offset, unit / scale, ceiling * scale / s)
        error = nonnegative.residual(turned, offset - t * unit / scale, y)
        level = t / scale * s
        b = b.copy()
        b[free] += s * y / root
        b = b - s * float(along[free] @ (y / root)) * axis
    size = float(np.abs(b).sum())
    if level * float(inverse.max()) <= 16.0 * k * EPS * size:
        return np.zeros(k), 0.0, Certificate("outside", 0.0, count)
    return b, level, Certificate("optimal" if error <= 256.0 * k * EPS else "inexact", error, count)


def _turned(matrix: Array, along: Array) -> Array:
    """Inner products (k, k) of the parts of the unit rows that are at right angles to a.

    Where a row is nearly along a its part is what a subtraction leaves, and rounding of 1e-16 is a large share of it:
    such numbers may be no inner products of any vectors, and a system with them may have no solution. So they are made
    from vectors that have these inner products up to rounding."""
    values, vectors = np.linalg.eigh(matrix - np.outer(along, along))
    parts = vectors * np.sqrt(np.maximum(values, 0.0))
    out: Array = parts @ parts.T
    return out


def _level(matrix: Array, p: Array, s: Array, ceiling: float) -> tuple[Array, float, int]:
    """The y >= 0 and t <= ceiling with |J'y| = 1, J'y the shortest u with <unit row i, u> >= t s_i - p_i.

    |J'y| grows with t from 0 at min p / s. The rows have no common direction, so there are levels that no u reaches;
    y, bounded by the ridge alone, is enormous there. Hence a bracket, and the exact root of each active set in it.
    """
    low, high, count = float((p / s).min()), ceiling, 0
    y, t = np.zeros(len(p)), low
    level = low + 1.0 / float(s[int((p / s).argmin())])
    for _ in range(_LIMIT):
        t = level if low < level < high else 0.5 * (low + high)
        y, more = _nearest(matrix, p - t * s, None)
        count += more
        size = float(y.sum())
        square = float(y @ matrix @ y)
        if abs(square - 1.0) <= 64.0 * EPS * len(p) * (1.0 + size) ** 2 and size < _ENORMOUS:
            break
        out_of_reach = size >= _ENORMOUS
        low, high = (low, t) if out_of_reach or square > 1.0 else (t, high)
        level = low if out_of_reach else _root(matrix, p, s, y, t, 1.0)
        if high - low <= 4.0 * EPS * max(abs(low), abs(high)):
            break
    return y, t, count
