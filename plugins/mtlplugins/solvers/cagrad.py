"""max_d min_i <g_i, d> subject to |d - g_0| <= c |g_0|: CAGrad, solved on its primal by one scalar equation.

For a fixed level t the d nearest to g_0 with J d >= t is a projection onto a polyhedron:
d = g_0 + J^T z, min 1/2 z'Gz + (J g_0 - t)'z over z >= 0. Its distance r(t) = |J^T z(t)| grows with t, is convex
(distance to a set that shrinks linearly), and between changes of the active set r^2 is a quadratic. CAGrad's answer is
the t with r(t) = c |g_0|. Each iteration takes the root of the current quadratic, which is exact once the active
set is right; a bracket keeps it honest, and where the root leaves the bracket the tangent of the convex r at
the right end takes its place, which cannot pass the solution. Finite: no active set is visited twice.

Relation to the dual of the paper: min over the simplex of g_w'g_0 + c |g_0| |g_w| has the solution w = z / sum z.
"""

from __future__ import annotations

import numpy as np

from mtlplugins.solvers import nonnegative
from mtlplugins.solvers.certificate import EPS, Certificate
from mtlplugins.solvers.cosines import Array, Mask
from mtlplugins.solvers.min_norm import min_norm

_LIMIT = 50


def cagrad(matrix: Array, inverse_norms: Array, b0: Array, c: float) -> tuple[Array, Certificate]:
    """What to add to g_0.

    Args:
        matrix: (k, k) cosines.
        inverse_norms: (k,) 1/|g_i|, up to a common factor.
        b0: (k,) weights of the unit rows in g_0.
        c: radius relative to |g_0|.

    Returns:
        y (k,) >= 0, the weights of the unit rows in d - g_0, and the certificate. "stationary": the rows have no
        common descent direction, the largest level is t = 0, and of the many d that reach it the one nearest to g_0
        is taken [choice] (the authors' formula divides by zero there).
    """
    k = len(b0)
    zero = np.zeros(k)
    p = matrix @ b0
    square = float(b0 @ p)
    if c == 0.0 or square <= 16.0 * k * EPS * float(b0.sum()) ** 2:
        return zero, Certificate("trivial", 0.0, 0)
    length = square**0.5
    p = p / length
    s = inverse_norms / inverse_norms.max()
    if k == 1:
        return np.array([c * length]), Certificate("trivial", 0.0, 0)

    # Without a common descent direction no level above 0 exists.
    _, _, stationarity = min_norm(matrix, np.ones(k))
    y, count = _nearest(matrix, p, None)
    bounded = stationarity.status == "stationary"
    if bounded and float(-p @ y) <= c * c * (1.0 + 16.0 * EPS):
        return y * length, Certificate("stationary", nonnegative.residual(matrix, p, y), count)

    # One constraint alone, the first to bind: the others only shrink the polyhedron, so this level is an upper bound.
    first = int((p / s).argmin())
    positive = np.arange(k) == first
    t = float((p[first] + c) / s[first])
    if bounded:
        t, positive = min(t, 0.0), y > 0.0
    low, high, tangent = -np.inf, t, t
    for _ in range(_LIMIT):
        y, more = _nearest(matrix, p - t * s, positive)
        count += more
        # y'(Cy + q) = 0, and this side of it does not cancel.
        square = max(float((t * s - p) @ y), 0.0)
        # dr/dt = s'y / r, the length of the multiplier per unit of level.
        slope = float(s @ y) / max(square**0.5, EPS)
        if square >= c * c:
            high = t
            tangent = t - (square**0.5 - c) / slope
        else:
            low = t
        support = y > 0.0
        if abs(square - c * c) <= 16.0 * EPS * (c * c + float(y.sum()) ** 2):
            break
        level = _root(matrix, p, s, support, c)
        if not low < level < high:
            level = tangent if low < tangent < high else 0.5 * (low + high)
            if not low < level < high:
                break
        t, positive = level, support
    size = float(y.sum()) + 1.0
    error = max(nonnegative.residual(matrix, p - t * s, y), abs(float(y @ matrix @ y) - c * c) / size**2)
    return y * length, Certificate("optimal" if error <= 256.0 * k * EPS else "inexact", error, count)


def _nearest(matrix: Array, linear: Array, positive: Mask | None) -> tuple[Array, int]:
    if len(linear) == 2:
        return np.array(nonnegative.pair(float(matrix[0, 1]), float(linear[0]), float(linear[1]))), 0
    return nonnegative.solve(matrix, linear, positive)


def _root(matrix: Array, p: Array, s: Array, positive: Mask, c: float) -> float:
    """The larger t with |J^T z| = c for z = t C_F^-1 s - C_F^-1 p on the active set F."""
    index = positive.nonzero()[0]
    if not len(index):
        return np.inf
    block = nonnegative.ridged(matrix)[index[:, None], index]
    p, s = p[index], s[index]
    alpha, beta = np.linalg.solve(block, np.stack([s, p], axis=1)).T
    a, h, f = float(s @ alpha), float(s @ beta), float(p @ beta) - c * c
    return float((h + max(h * h - a * f, 0.0) ** 0.5) / a)
