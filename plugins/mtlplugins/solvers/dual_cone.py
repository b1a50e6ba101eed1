"""Projection onto the dual cone {x: J x >= 0}, the directions that conflict with no row.

The projection of J^T u is J^T v with v the solution of  min v'Gv over v >= u  (Quinton and Rey 2024, Proposition 1
[paper*]). With v = u + y and unit rows: min 1/2 y'Cy + (C u)'y over y >= 0.

The projection of the rows themselves (u = e_j, which UPGrad needs K times) has more structure. The multiplier of row j
itself is zero: <proj g_j, g_j> = |proj g_j|^2, which is positive unless the projection is zero, and then the other rows
suffice. A projection onto a cone commutes with positive scaling of its argument, so unit rows are enough.

Resolution: :func:`resolution` bounds the length of a projection that is zero in exact arithmetic.
"""

from __future__ import annotations

import numpy as np

from mtlplugins.solvers import exchange, nonnegative
from mtlplugins.solvers.barrier import barrier
from mtlplugins.solvers.certificate import EPS, Certificate
from mtlplugins.solvers.cosines import Array, Index


def resolution(b: Array) -> Array:
    """Of rows that cancel, sum_i b_i (unit row i) = 0 with all b_i > 0: bounds (k,) on the length of the projection of
    each unit row, which is zero in exact arithmetic.

    Proof. The projection of row j is J^T (e_j + y) with y >= 0 least in 1/2 |J^T (e_j + y)|^2 + r/2 |y|^2, r the ridge
    of 4 sqrt(K) eps, which stands for the rounding of the cosines (:mod:`.nonnegative`). y = b / b_j without its own
    entry makes the first term zero and the second at most r/2 (|b| / b_j)^2; the minimum is no larger. So

        |P (unit row j)| <= min(1, (4 sqrt(K) eps)^(1/2) |b| / b_j) ,

    proved for exact cosines, and met with rounded ones [measured: 0.92 of the bound at worst]. Weights that differ by
    more than about 1e7 say nothing: the Gramian does not hold the digits in which such rows differ from others that do
    have a common descent direction. It follows for upgrad and dualproj that |d| <= sum_j u_j |g_j| times the bound.
    """
    ridge = 4.0 * len(b) ** 0.5 * EPS
    bounds: Array = np.minimum(1.0, ridge**0.5 * float(np.linalg.norm(b)) / b)
    return bounds


def project(matrix: Array, b: Array) -> tuple[Array, Certificate]:
    """Weights (k,) of the projection of sum_i b_i (unit row i) onto the dual cone, >= b entry by entry."""
    k = len(b)
    slack = matrix @ b
    if float(slack.min()) >= 0.0:
        return b, Certificate("trivial", 0.0, 0)
    if k == 2:
        y = np.array(nonnegative.pair(float(matrix[0, 1]), float(slack[0]), float(slack[1])))
        count = 0
    else:
        y, count = nonnegative.solve(matrix, slack)
    return b + y, _certificate(matrix, slack[None], y[None], float(np.abs(b).sum()), count)


def project_rows(matrix: Array) -> tuple[Array, Certificate]:
    """V (k, k): row j holds the weights of the projection of unit row j onto the dual cone. V >= I."""
    k = len(matrix)
    identity = np.eye(k)
    if k == 1 or float(matrix.min()) >= 0.0:
        return identity, Certificate("trivial", 0.0, 0)
    if k == 2:
        c = float(matrix[0, 1])
        return np.array([[1.0, -c], [-c, 1.0]]), Certificate("optimal", 0.0, 0)
    if k == 3:
        (_, a, b), (_, _, c), _ = matrix.tolist()
        p, q = nonnegative.pair(c, a, b)
        r, s = nonnegative.pair(b, a, c)
        t, u = nonnegative.pair(a, b, c)
        y = np.array([[0.0, p, q], [r, 0.0, s], [t, u, 0.0]])
        count = 0
    elif k < nonnegative.LARGE:
        # The conflicting rows are the first guess of the active constraints, never row j itself.
        y, rows, count = nonnegative.pivot(matrix, matrix, matrix < 0.0)
        if 2 * len(rows) > k:
            rows, more = _cancelled(matrix, y, rows)
            count += more
        count += nonnegative.finish(matrix, matrix, y, rows)
    else:
        y, count = _of_many(matrix)
    return identity + y, _certificate(matrix, matrix, y, 1.0, count)


def _of_many(matrix: Array) -> tuple[Array, int]:
    """y (k, k) for hundreds of rows, and the number of systems. A system per row is expensive. So first one system for
    all rows shows whether they cancel, and one iteration for all rows finds the supports."""
    k = len(matrix)
    y, rows, count = np.zeros((k, k)), np.arange(k), 0
    if not _independent(matrix):
        rows, count = _cancelled(matrix, y, rows)
    if len(rows):
        linear = matrix[rows]
        guess = nonnegative.guess(matrix, linear)
        if guess.settled:
            found, left, sweeps = nonnegative.pivot(matrix, linear, guess.near > 0.0)
        else:
            found, left, sweeps = exchange.solve(matrix, linear, guess)
        y[rows] = found
        rows, count = rows[left], count + sweeps
    return y, count + nonnegative.finish(matrix, matrix, y, rows)


def _independent(matrix: Array) -> bool:
    """False where the rows may depend on each other to within rounding."""
    try:
        return bool(np.linalg.cholesky(matrix).diagonal().min() > 1e-6)
    except np.linalg.LinAlgError:
        return False


def _cancelled(matrix: Array, y: Array, rows: Index) -> tuple[Index, int]:
    """Write into y (k, k) the solutions of those of ``rows`` whose projection is zero because the rows cancel; return
    the other rows, and the number of systems.

    If sum_i w_i (unit row i) = 0 with w > 0, the cone has no interior and minus row j is in the cone of the others:
    y = w / w_j, without its own entry. One w is enough for all rows; the most even one, the barrier's, is the best.
    """
    w, certificate = barrier(matrix, np.ones(len(matrix)), 1.0)
    guess = w / w[rows, None]
    guess[np.arange(len(rows)), rows] = 0.0
    linear = matrix[rows]
    solved = (np.abs(guess @ matrix + linear) <= nonnegative.tolerance(linear, guess)).all(axis=1)
    y[rows[solved]] = guess[solved]
    return rows[~solved], certificate.iterations


def _certificate(matrix: Array, linear: Array, y: Array, size: float, count: int) -> Certificate:
    slack = y @ matrix + linear
    wrong = np.maximum(-slack, np.where(y > 0.0, slack, 0.0)).max(axis=1)
    error = max(float((wrong / (size + y.sum(axis=1))).max()), 0.0)
    return Certificate("optimal" if error <= 64.0 * len(matrix) * EPS else "inexact", error, count)
