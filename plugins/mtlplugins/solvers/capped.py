"""The point of least norm in the hull of the rows when no weight may exceed a cap: min |J^T a|^2, a >= 0, sum a = 1,
a_i <= cap.

On unit rows, b_i = a_i |g_i|: min 1/2 b'Cb over s'b = 1, 0 <= b <= h. It is solved by a primal active-set method. For
the free indices a linear system gives the minimum, C_F b_F = v s_F - C_FU h_U. The step towards it stops at the first
bound, which is then fixed. At the minimum the bound with the most negative multiplier is released. Every step lowers
the objective of a strictly convex problem (by a ridge of the size of the rounding error), so no set occurs twice,
except by rounding.
"""

from __future__ import annotations

import numpy as np

from mtlplugins.solvers.certificate import EPS, Certificate
from mtlplugins.solvers.cosines import Array, Mask
from mtlplugins.solvers.nonnegative import ridged


def capped_min_norm(matrix: Array, inverse_norms: Array, cap: float) -> tuple[Array, Certificate]:
    """Weights b (k,) of the unit rows with s'b = 1, s the ``inverse_norms``; needs cap >= 1 / k."""
    k = len(inverse_norms)
    scale = float(inverse_norms.max())
    s = inverse_norms / scale
    high = cap / s
    if cap * k <= 1.0 + 4.0 * EPS * k:
        return (1.0 / k) / s / scale, Certificate("trivial", 0.0, 0)
    c = ridged(matrix)
    b = (1.0 / k) / s
    free = np.ones(k, dtype=bool)
    count = 0
    while count < 20 * k + 50:
        count += 1
        target, level = _on_free(c, s, high, b, free)
        move = target - b
        share = np.ones(k)
        down, up = free & (target < 0.0), free & (target > high)
        share[down] = b[down] / -move[down]
        share[up] = (high[up] - b[up]) / move[up]
        step = float(share.min())
        if step < 1.0:
            at = int(share.argmin())
            b = b + step * move
            b[at] = 0.0 if down[at] else high[at]
            free[at] = False
            continue
        b = target
        wrong = _wrong(c, s, high, b, free, level)
        if wrong.max() <= 0.0:
            break
        if free.any():
            free[int(wrong.argmax())] = True
        else:  # s'b = 1 leaves a single free index where it is: one must fall and another rise
            lower = b <= 0.0
            free[int(np.where(lower, wrong, -np.inf).argmax())] = True
            free[int(np.where(lower, -np.inf, wrong).argmax())] = True
    error = float(np.maximum(_wrong(c, s, high, b, free, level), 0.0).max())
    square = float(b @ matrix @ b)
    status = "optimal" if error <= 256.0 * k * EPS else "inexact"
    if square <= 16.0 * k * EPS * float(b.sum()) ** 2:
        status = "stationary"
    return b / scale, Certificate(status, error, count)


def _on_free(c: Array, s: Array, high: Array, b: Array, free: Mask) -> tuple[Array, float]:
    """The best point with the other entries where they are, and the multiplier of s'b = 1 (NaN if none is free)."""
    target, index = b.copy(), free.nonzero()[0]
    if not len(index):
        return target, float("nan")
    fixed = np.where(free, 0.0, b)
    right = np.stack([s[index], -(c @ fixed)[index]], axis=1)
    x = np.linalg.solve(c[np.ix_(index, index)], right)
    level = (1.0 - float(s @ fixed) - float(s[index] @ x[:, 1])) / float(s[index] @ x[:, 0])
    target[index] = level * x[:, 0] + x[:, 1]
    return target, level


def _wrong(c: Array, s: Array, high: Array, b: Array, free: Mask, level: float) -> Array:
    """(k,) by how much each multiplier of a bound has the wrong sign, beyond rounding, relative to its terms."""
    slack = c @ b
    lower = ~free & (b <= 0.0)
    if level != level:
        # Nothing is free: any level between those of the two kinds of bounds will do; if there is none, the middle.
        rates = slack / s
        level = 0.5 * (float(rates[lower].min(initial=np.inf)) + float(rates[~lower].max(initial=-np.inf)))
        if not np.isfinite(level):
            level = float(rates.mean())
    size = np.abs(slack) + abs(level) * s + float(b.sum()) * EPS
    gap = (slack - level * s) / size
    out = np.where(free, -1.0, np.where(lower, -gap, gap)) - 16.0 * EPS * len(s) * float(b.sum()) / size
    return np.asarray(np.where(free, 0.0, out))
