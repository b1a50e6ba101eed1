"""The point of least norm in the convex hull of the rows: min |J^T a|^2 over a >= 0, sum a = 1.

Let a_i |g_i| = b_i and s_i = 1/|g_i|. The hull is the intersection of the cone of the unit rows with s'b = 1, and the
optimality conditions differ from those of

    min 1/2 y'Cy - s'y   over y >= 0

only by a positive factor: b = y / s'y, |d|^2 = 1 / s'y. So the nonnegative solver solves the simplex problem, with unit
rows for any lengths of the gradients. If the rows have no common descent direction, the second problem is unbounded,
and the solver's ridge bounds it: y is then about 1/eps along the combination that vanishes, and the division by s'y
gives that combination.
"""

from __future__ import annotations

import numpy as np

from mtlplugins.solvers import nonnegative
from mtlplugins.solvers.certificate import EPS, Certificate
from mtlplugins.solvers.cosines import Array


def min_norm(matrix: Array, inverse_norms: Array) -> tuple[Array, float, Certificate]:
    """Min-norm point of rows with cosines ``matrix`` (k, k) and ``inverse_norms`` s (k,) > 0.

    Returns:
        b (k,), the weights of the unit rows, normalised to s'b = 1 (so a_i = s_i b_i is on the simplex);
        |d|^2 = b'Cb, exact to rounding;
        the certificate: "stationary" when |d| is not above its own rounding error.
    """
    k = len(inverse_norms)
    s = inverse_norms / inverse_norms.max()
    if k == 1:
        return np.ones(1) / inverse_norms, float(inverse_norms[0] ** -2), Certificate("trivial", 0.0, 0)
    if k == 2:
        y = np.array(nonnegative.pair(float(matrix[0, 1]), -float(s[0]), -float(s[1])))
        count = 0
    else:
        y, count = nonnegative.solve(matrix, -s)
    b = y / float(s @ y)
    # Optimality on the simplex: C b >= |d|^2 s everywhere, with equality where b > 0; so |d|^2 = b'Cb = 1 / s'y.
    square = 1.0 / float(s @ y)
    gap = matrix @ b - square * s
    size = float(b.sum())
    error = max(-float(gap.min()), float(np.abs(gap[b > 0.0]).max()), 0.0) / size
    stationary = square <= 16.0 * k * EPS * size * size
    status = "stationary" if stationary else ("optimal" if error <= 64.0 * k * EPS else "inexact")
    scale = float(inverse_norms.max())
    return b / scale, square / scale**2, Certificate(status, error, count)
