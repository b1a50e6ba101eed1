"""max_d min_i <g_i, d> subject to |d - g_0| <= c |g_0|: CAGrad, solved on its primal by one scalar equation.

For a fixed level t the d nearest to g_0 with J d >= t is a projection onto a polyhedron:
d = g_0 + J^T z, min 1/2 z'Gz + (J g_0 - t)'z over z >= 0. Its distance r(t) = |J^T z(t)| increases with t and is
convex (distance to a set that shrinks linearly); between changes of the active set r^2 is a quadratic. CAGrad's answer
is the t with r(t) = c |g_0|. Each iteration takes the root of the current quadratic, which is exact if the active set
is right. A bracket is kept; if the root is outside of it, the tangent of the convex r at the right end is used instead,
whose root is not beyond the solution. The method is finite, because no active set occurs twice.

Relation to the dual of the paper: min over the simplex of g_w'g_0 + c |g_0| |g_w| has the solution w = z / sum z.
"""

from __future__ import annotations

import numpy as np

from mtlplugins.solvers import nonnegative
from mtlplugins.solvers.certificate import EPS, Certificate
from mtlplugins.solvers.cosines import Array, Mask, noise
from mtlplugins.solvers.min_norm import min_norm

_LIMIT = 50
_SUSPICIOUS = 1e5
"""Sum of multipliers above which it is checked whether there is a common descent direction."""


def cagrad(matrix: Array, inverse_norms: Array, b0: Array, c: float) -> tuple[Array, Certificate]:
    """The weights of d - g_0.

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
    largest = float(np.abs(p).max())
    if c == 0.0 or largest <= noise(matrix, b0):
        return zero, Certificate("trivial", 0.0, 0)
    # b0'Cb0 loses |g_0| below 1e-8 of the summands to cancellation; |<unit row, g_0>| bounds it from below there.
    length = max(max(float(b0 @ p), 0.0) ** 0.5, largest)
    p = p / length
    s = inverse_norms / inverse_norms.max()
    if k == 1:
        return np.array([c * length]), Certificate("trivial", 0.0, 0)

    y, t, count = _search(matrix, p, s, c, np.inf)
    if float(y.sum()) > _SUSPICIOUS and min_norm(matrix, np.ones(k))[2].status == "stationary":
        # Without a common descent direction there is no level above 0, and what was found there is rounding.
        y, more = _nearest(matrix, p, None)
        count += more
        if float(-p @ y) <= c * c * (1.0 + 16.0 * EPS):
            return y * length, Certificate("stationary", nonnegative.residual(matrix, p, y), count)
        y, t, more = _search(matrix, p, s, c, 0.0)
        count += more
    size = float(y.sum()) + 1.0
    error = max(nonnegative.residual(matrix, p - t * s, y), abs(float(y @ matrix @ y) - c * c) / size**2)
    return y * length, Certificate("optimal" if error <= 256.0 * k * EPS else "inexact", error, count)


def _search(matrix: Array, p: Array, s: Array, c: float, ceiling: float) -> tuple[Array, float, int]:
    """The y and t <= ceiling with |J^T y| = c, and the number of systems solved."""
    # One constraint alone, the first to bind: the others only shrink the polyhedron, so its level is an upper bound.
    first = int((p / s).argmin())
    support = np.arange(len(p)) == first
    t = min(float((p[first] + c) / s[first]), ceiling)
    low, high, tangent, count = -np.inf, t, t, 0
    for _ in range(_LIMIT):
        y, more = _nearest(matrix, p - t * s, support)
        count += more
        # y'(Cy + q) = 0, and this side of it does not cancel.
        square = max(float((t * s - p) @ y), 0.0)
        if abs(square - c * c) <= 16.0 * EPS * (c * c + float(y.sum()) ** 2):
            break
        if square >= c * c:
            high = t
            # dr/dt = s'y / r, the length of the multiplier per unit of level.
            tangent = t - (square - c * square**0.5) / float(s @ y)
        else:
            low = t
        support = y > 0.0
        level = _root(matrix, p, s, y, t, c)
        if not low < level < high:
            level = tangent if low < tangent < high else 0.5 * (low + high)
            if not low < level < high:
                break
        t = level
    return y, t, count


def _nearest(matrix: Array, linear: Array, positive: Mask | None) -> tuple[Array, int]:
    if len(linear) == 2:
        return np.array(nonnegative.pair(float(matrix[0, 1]), float(linear[0]), float(linear[1]))), 0
    return nonnegative.solve(matrix, linear, positive)


def _root(matrix: Array, p: Array, s: Array, y: Array, t: float, c: float) -> float:
    """The larger level at which |J^T z| = c, for z = y + (level - t) C_F^-1 s on the support F of y."""
    index = y.nonzero()[0]
    if not len(index):
        return np.inf
    block = matrix[index[:, None], index]
    block.flat[:: len(index) + 1] = 1.0 + 4.0 * len(p) ** 0.5 * EPS
    p, s, y = p[index], s[index], y[index]
    # z = level * alpha - beta, and |J^T z|^2 = level^2 s'alpha - 2 level s'beta + p'beta.
    alpha = np.linalg.solve(block, s)
    beta = t * alpha - y
    a, h, f = float(s @ alpha), float(s @ beta), float(p @ beta) - c * c
    return float((h + max(h * h - a * f, 0.0) ** 0.5) / a)
