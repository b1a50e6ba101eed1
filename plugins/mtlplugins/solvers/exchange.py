"""min 1/2 y'Cy + q'y over y >= 0 for hundreds of q whose supports differ in few indices: one factorisation for all.

If K rows have rank near K / 2, the cone {x: J x >= 0} is thin, and the projections of all rows lie on few of its faces.
Each support then has nearly as many entries as the rank, and two supports differ in a fifth of these. An active-set
method with a system of full size for every exchanged index would take seconds.

The principal pivot transform of w = C y + q on a support S exchanges the roles of y and w there [textbook: Cottle,
Pang and Stone 1992, section 2.3, memory]. With A = inverse of C_SS, B = A C_SN and N the other indices, u = (w_S, y_N)
and v = (y_S, w_N) obey v = M u + t,

    M = [[A, -B], [B', D]],   D = C_NN - C_NS B,   t = (-A q_S, q_N - B' q_S).

The solution with free set F has u = 0 but on the difference E of F and S, and v = 0 on E: M_EE u_E = -t_E, a system
of the size of E. M serves every q. A and D are positive definite, so that two Cholesky factorisations solve the system:
with P and R the parts of E in S and in N, A_PP = L L' and W = inv(L) B_PR,

    (D_RR + W'W) u_R = W' inv(L) t_P - t_R,   L' u_P = W u_R - inv(L) t_P.

That takes less than half of the time of a general solver [measured].
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mtlplugins.solvers import nonnegative
from mtlplugins.solvers.certificate import EPS
from mtlplugins.solvers.cosines import Array, Index, Mask

_SWEEPS = 8
_ITERATIONS, _BLOCKS, _ROUNDS = 10, 12, 4
"""Of the guesses."""
_SHARE = 0.7
"""The penalty of the guesses, in units of that for which the iteration without signs converges fastest on the support
of the basis (Ghadimi et al. 2015 [memory]), the geometric mean of the extreme eigenvalues of C_SS [measured on 500
Gaussian rows in 255 to 1000 dimensions: twice as much or half of it takes more iterations]."""
_FEW = 1
"""Indices of a row that still change in so many iterations when its guess is good enough for exchanges [choice]; half
as many after each round of exchanges."""


class Basis:
    """The transform of C (k, k), positive definite, on ``support`` (k,).

    Raises:
        numpy.linalg.LinAlgError: the rows of the support depend on each other, so that no digits would be left.
    """

    def __init__(self, c: Array, support: Mask) -> None:
        self._support = support
        inside, outside = support.nonzero()[0], (~support).nonzero()[0]
        self._inside, self._outside = inside, outside
        block, across = c[inside[:, None], inside], c[inside[:, None], outside]
        spectrum = np.linalg.eigvalsh(block) if len(inside) else np.ones(1)
        if spectrum[0] < EPS**0.5:
            raise np.linalg.LinAlgError("the rows of the support depend on each other")
        self.mean = float(np.sqrt(spectrum[0] * spectrum[-1]))
        """The geometric mean of the extreme eigenvalues of C_SS."""
        self._inverse = np.linalg.inv(block)
        self._turned = np.ascontiguousarray((self._inverse @ across).T)
        self._rest = c[outside[:, None], outside] - self._turned @ across

    def transformed(self, linear: Array) -> Array:
        """t (m, k) of q (m, k)."""
        out = np.empty_like(linear)
        inner = linear[:, self._inside]
        out[:, self._inside] = -inner @ self._inverse
        out[:, self._outside] = linear[:, self._outside] - inner @ self._turned.T
        return out

    def values(self, free: Mask, transformed: Array) -> Array:
        """(m, k): y on the free sets (m, k), and w elsewhere."""
        exchanged = free ^ self._support
        out = np.empty_like(transformed)
        leaving, entering = exchanged[:, self._inside], exchanged[:, self._outside]
        inner, outer = transformed[:, self._inside], transformed[:, self._outside]
        w, y = np.zeros_like(inner), np.zeros_like(outer)
        for i in range(len(free)):
            p, r = leaving[i].nonzero()[0], entering[i].nonzero()[0]
            w[i, p], y[i, r] = self._exchanged(p, r, inner[i, p], outer[i, r])
        out[:, self._inside] = np.where(leaving, w, inner + w @ self._inverse - y @ self._turned)
        out[:, self._outside] = np.where(entering, y, outer + w @ self._turned.T + y @ self._rest)
        return out

    def _exchanged(self, p: Index, r: Index, inner: Array, outer: Array) -> tuple[Array, Array]:
        """u_P and u_R for t_P and t_R, where p counts inside of the support and r outside."""
        from scipy.linalg.blas import dsyrk  # takes time to import, and is needed for many rows only
        from scipy.linalg.lapack import dposv, dpotrf, dtrtrs

        corner = self._inverse.take(p, 0).take(p, 1)
        across = self._turned.take(r, 0).take(p, 1)
        square = self._rest.take(r, 0).take(r, 1)
        lower, fault = dpotrf(corner.T, lower=1, clean=0) if len(p) and len(r) else (corner, 1)
        if not fault:
            half, wide = dtrtrs(lower, inner, lower=1)[0], dtrtrs(lower, across.T, lower=1)[0]
            schur = dsyrk(1.0, wide, trans=1, beta=1.0, c=square.T, lower=1)
            _, y, fault = dposv(schur, half @ wide - outer, lower=1, overwrite_a=1)
        if fault:  # nothing to eliminate, or not definite to rounding
            whole = np.linalg.solve(np.block([[corner, -across.T], [across, square]]), -np.concatenate([inner, outer]))
            return whole[: len(p)], whole[len(p) :]
        return dtrtrs(lower, wide @ y - half, lower=1, trans=1)[0], y


def solve(matrix: Array, linear: Array, guess: nonnegative.Guess) -> tuple[Array, Index, int]:
    """Solutions for all q.

    Better guesses of the supports come from alternating directions, for all rows at once; block pivoting solves those
    rows whose guess was good, and the others get more iterations. The active-set method takes what is left.

    Args:
        matrix: C (k, k).
        linear: q (m, k).
        guess: for all of them.

    Returns:
        y (m, k); the rows that are not solved to rounding, for another method; and the number of systems.
    """
    c, single, count = nonnegative.ridged(matrix), linear.astype(np.float32), 0
    y, rows = np.zeros_like(linear), np.arange(len(linear))
    try:
        basis, count = _central(matrix, linear, guess)
        penalty = _SHARE * basis.mean
        inverse = nonnegative.shifted_inverse(matrix, penalty)
        near, dual = guess.near, guess.dual * np.float32(nonnegative.ROUGH / penalty)
        t = basis.transformed(linear)
        for done in range(_ROUNDS):
            few = _FEW / 2.0**done
            near, dual = _nearer(inverse, single[rows], np.float32(penalty), near, dual, few)
            y[rows], unsolved, sweeps = _pivoted(basis, linear[rows], t[rows], near > 0.0)
            near, dual, rows, count = near[unsolved], dual[unsolved], rows[unsolved], count + sweeps
            if not len(rows):
                break
        for row, start in zip(rows, near):
            y[row], more = _alone(c, basis, linear[row], t[row], start.astype(float))
            count += more
        y = _refined(c, basis, linear, y)
    except np.linalg.LinAlgError:  # rows depend on each other, and a system of each support knows nothing of a basis
        return nonnegative.pivot(matrix, linear, guess.near > 0.0)
    slack = y @ c + linear
    wrong = np.where(y > 0.0, np.abs(slack), -slack) > nonnegative.tolerance(linear, y)
    return y, np.flatnonzero(wrong.any(axis=1)), count


def _nearer(inverse: Any, linear: Any, penalty: Any, near: Any, dual: Any, few: float) -> tuple[Any, Any]:
    """More iterations, as long as they move many indices into the supports or out of them."""
    for _ in range(_BLOCKS):
        before = near > 0.0
        near, dual = nonnegative.alternated(inverse, linear, penalty, near, dual, _ITERATIONS)
        if np.count_nonzero((near > 0.0) != before) <= few * len(near):
            break
    return near, dual


def _central(matrix: Array, linear: Array, guess: nonnegative.Guess) -> tuple[Basis, int]:
    """A basis on the support of that row whose guess has most entries in common with those of the other rows; and the
    number of systems."""
    guesses = (guess.near > 0.0).astype(np.float32)
    sizes, common = guesses.sum(axis=1), guesses @ guesses.sum(axis=0)
    middle = int((2.0 * common - len(guesses) * sizes).argmax())
    c, q = nonnegative.ridged(matrix), linear[middle]

    def on(support: Mask) -> Array:
        found: Array = nonnegative.on_free_alone(c, support[None], q[None])[0]
        return found

    # Iterations of one row cost next to nothing, and each that is left out may cost a system.
    start = nonnegative.near(matrix, q[None])[0]
    y, count = nonnegative.active_set(c, q, start, on)
    return Basis(c, y > 0.0), count


def _pivoted(basis: Basis, linear: Array, t: Array, free: Mask) -> tuple[Array, Index, int]:
    """Block principal pivoting from ``free``, of each row as long as it improves: y (m, k), the rows that are not
    solved, and the number of sweeps."""
    rows, out = np.arange(len(free)), np.zeros_like(t)
    least, solved = np.full(len(free), t.shape[1] + 1), np.zeros(len(free), dtype=bool)
    count = 0
    while len(rows) and count < _SWEEPS:
        count += 1
        values = basis.values(free, t[rows])
        y = np.where(free, values, 0.0)
        out[rows] = y
        wrong = np.where(free, values < 0.0, values < -nonnegative.tolerance(linear[rows], np.abs(y)))
        left = wrong.sum(axis=1)
        solved[rows] = left == 0
        better = (left > 0) & (left < least[rows])
        least[rows] = left
        rows, free = rows[better], (free ^ wrong)[better]
    return out, np.flatnonzero(~solved), count


def _alone(c: Array, basis: Basis, q: Array, t: Array, start: Array) -> tuple[Array, int]:
    """The active-set method for one row, its systems by exchanges."""

    def on(support: Mask) -> Array:
        return np.where(support, basis.values(support[None], t[None])[0], 0.0)

    return nonnegative.active_set(c, q, start, on)


def _refined(c: Array, basis: Basis, linear: Array, y: Array) -> Array:
    """One step of iterative refinement of those rows that lost digits because C_SS is ill-conditioned: whose error is
    larger than the rounding of C explains."""
    free = y > 0.0
    left = np.where(free, y @ c + linear, 0.0)
    rounding = 4.0 * EPS * len(c) ** 0.5 * (np.abs(linear) + y.sum(axis=1, keepdims=True))
    poor = (np.abs(left) > rounding).any(axis=1)
    change = basis.values(free[poor], basis.transformed(left[poor]))
    y[poor] = np.maximum(y[poor] + np.where(free[poor], change, 0.0), 0.0)
    return y
