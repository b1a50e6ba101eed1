"""max_d min_i <g_i, d> over |d| <= 1, <a, d> >= c |d|, a a unit vector: the best common direction within a cone.

The feasible set is convex, so the answer is one of three:

- the direction of the min-norm point of the gradients, if it is in the cone: nothing in the ball is better;
- else, with h_i = g_i - <g_i, a> a and s = sqrt(1 - c^2), d = c a + s u on the boundary of the cone, where u maximises
  min_i <g_i, d> = c <g_i, a> + s <h_i, u> over |u| <= 1: a level and a projection, as in :mod:`.cagrad`;
- 0, if that maximum is not positive: no direction within the cone serves every task.
"""

from __future__ import annotations

import numpy as np

from mtlplugins.solvers import nonnegative
from mtlplugins.solvers.cagrad import _search
from mtlplugins.solvers.certificate import EPS, Certificate
from mtlplugins.solvers.cosines import Array
from mtlplugins.solvers.min_norm import min_norm


def best_in_cone(matrix: Array, norms: Array, axis: Array, c: float) -> tuple[Array, float, Certificate]:
    """The direction as weights of the unit rows.

    Args:
        matrix: (k, k) cosines.
        norms: (k,) lengths of the rows.
        axis: (k,) weights of the unit rows in a, a unit vector.
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
    aside = np.maximum(1.0 - along * along, 0.0)
    free = aside > 64.0 * k * EPS  # a row along a puts a ceiling on the level and nothing else
    ceiling = float((c * along * norms)[~free].min(initial=np.inf))
    b, level, count, error = c * axis, ceiling, 0, 0.0
    if free.any():
        root = np.sqrt(aside[free])
        turned = (matrix[np.ix_(free, free)] - np.outer(along[free], along[free])) / root / root[:, None]
        np.fill_diagonal(turned, 1.0)
        offset, unit = (c / s) * along[free] / root, inverse[free] / root
        scale = float(unit.max())
        y, t, count = _search(turned, offset, unit / scale, 1.0, ceiling * scale / s)
        error = nonnegative.residual(turned, offset - t * unit / scale, y)
        level = t / scale * s
        b = b.copy()
        b[free] += s * y / root
        b = b - s * float(along[free] @ (y / root)) * axis
    size = float(np.abs(b).sum())
    if level * float(inverse.max()) <= 16.0 * k * EPS * size:
        return np.zeros(k), 0.0, Certificate("outside", 0.0, count)
    return b, level, Certificate("optimal" if error <= 256.0 * k * EPS else "inexact", error, count)
