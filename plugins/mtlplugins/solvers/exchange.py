"""min 1/2 y'Cy + q'y over y >= 0 for hundreds of q whose supports differ in few indices: one factorisation for all.

If K rows have rank near K / 2, the cone {x: J x >= 0} is thin, and the projections of all rows lie on few of its faces.
Each support then has nearly as many entries as the rank, and two supports differ in a fifth of these. An active-set
method with a system of full size for every exchanged index would take seconds.

The principal pivot transform of w = C y + q on a support S exchanges the roles of y and w there [textbook: Cottle,
Pang and Stone 1992, section 2.3, memory]. With A = inverse of C_SS and N the other indices, u = (w_S, y_N) and
v = (y_S, w_N) obey v = M u + t,

    M = [[A, -A C_SN], [C_NS A, C_NN - C_NS A C_SN]],   t = (-A q_S, q_N - C_NS A q_S).

The solution with free set F has u = 0 but on the difference E of F and S, and v = 0 on E: M_EE u_E = -t_E, a system
of the size of E. M serves every q.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mtlplugins.solvers import nonnegative
from mtlplugins.solvers.cosines import Array, Index, Mask

_SWEEPS = 8
_PENALTY, _ITERATIONS, _BLOCKS, _ROUNDS = 0.03, 20, 6, 2
"""Of the guesses. The cone is thin where C_SS is ill-conditioned, and a smaller penalty suits that [measured]."""
_FEW = 4
"""Indices of a row that still change in so many iterations when its guess is good enough for exchanges [choice]."""


class Basis:
    """The transform of C (k, k), positive definite, on ``support`` (k,).

    Raises:
        numpy.linalg.LinAlgError: the rows of the support depend on each other.
    """

    def __init__(self, c: Array, support: Mask) -> None:
        self._support = support
        inside, outside = support.nonzero()[0], (~support).nonzero()[0]
        inverse = np.linalg.inv(c[inside[:, None], inside])
        across = c[inside[:, None], outside]
        turned = inverse @ across
        self._inside, self._outside, self._inverse, self._turned = inside, outside, inverse, turned
        self._matrix = np.empty_like(c)
        self._matrix[inside[:, None], inside] = inverse
        self._matrix[inside[:, None], outside] = -turned
        self._matrix[outside[:, None], inside] = turned.T
        self._matrix[outside[:, None], outside] = c[outside[:, None], outside] - across.T @ turned

    def transformed(self, linear: Array) -> Array:
        """t (m, k) of q (m, k)."""
        out = np.empty_like(linear)
        inner = linear[:, self._inside]
        out[:, self._inside] = -inner @ self._inverse
        out[:, self._outside] = linear[:, self._outside] - inner @ self._turned
        return out

    def values(self, free: Mask, transformed: Array) -> Array:
        """(m, k): y on the free sets (m, k), and w elsewhere."""
        exchanged = free ^ self._support
        size = int(exchanged.sum(axis=1).max(initial=0))
        if not size:
            return transformed
        index = np.argsort(~exchanged, axis=1, kind="stable")[:, :size]
        inside = np.take_along_axis(exchanged, index, 1)
        system = self._matrix[index[:, :, None], index[:, None, :]]
        system *= inside[:, :, None] & inside[:, None, :]
        system.reshape(len(free), -1)[:, :: size + 1] += ~inside  # rows of the identity fill up the smaller ones
        right = np.where(inside, -np.take_along_axis(transformed, index, 1), 0.0)
        u = np.zeros_like(transformed)
        np.put_along_axis(u, index, np.linalg.solve(system, right[:, :, None])[:, :, 0], 1)
        return np.where(exchanged, u, transformed + u @ self._matrix.T)


def solve(matrix: Array, linear: Array) -> tuple[Array, Index, int]:
    """Solutions for all q.

    Guesses of the supports come from alternating directions, for all rows at once; block pivoting solves those rows
    whose guess was good, and the others get more iterations. The active-set method takes what is left.

    Args:
        matrix: C (k, k).
        linear: q (m, k).

    Returns:
        y (m, k); the rows that are not solved to rounding, for another method; and the number of systems.
    """
    c, single = nonnegative.ridged(matrix), linear.astype(np.float32)
    near, dual = np.zeros_like(single), np.zeros_like(single)
    inverse = np.linalg.inv(matrix + _PENALTY * np.eye(len(matrix))).astype(np.float32)
    count = 0
    try:
        near, dual = _nearer(inverse, single, near, dual)
        basis, count = _central(c, linear, near)
        t = basis.transformed(linear)
        y, rows = np.zeros_like(linear), np.arange(len(linear))
        for left in range(_ROUNDS, 0, -1):
            y[rows], unsolved, sweeps = _pivoted(basis, linear[rows], t[rows], near > 0.0)
            near, dual, rows, count = near[unsolved], dual[unsolved], rows[unsolved], count + sweeps
            if not len(rows) or left == 1:
                break
            near, dual = _nearer(inverse, single[rows], near, dual)
        for row, start in zip(rows, near):
            y[row], more = _alone(c, basis, linear[row], t[row], start.astype(float))
            count += more
        y = _refined(c, basis, linear, y)
    except np.linalg.LinAlgError:
        return np.zeros_like(linear), np.arange(len(linear)), count
    slack = y @ c + linear
    wrong = np.where(y > 0.0, np.abs(slack), -slack) > nonnegative.tolerance(linear, y)
    return y, np.flatnonzero(wrong.any(axis=1)), count


def _nearer(inverse: Any, linear: Any, near: Any, dual: Any) -> tuple[Any, Any]:
    """More iterations, as long as they move many indices into the supports or out of them."""
    for _ in range(_BLOCKS):
        before = near > 0.0
        near, dual = nonnegative.alternated(inverse, linear, np.float32(_PENALTY), near, dual, _ITERATIONS)
        if np.count_nonzero((near > 0.0) != before) <= _FEW * len(near):
            break
    return near, dual


def _central(c: Array, linear: Array, near: Any) -> tuple[Basis, int]:
    """A basis on the guessed support that has most entries in common with those of the other rows; and the number of
    systems."""
    guesses = (near > 0.0).astype(np.float32)
    sizes, common = guesses.sum(axis=1), guesses @ guesses.sum(axis=0)
    middle = int((2.0 * common - len(guesses) * sizes).argmax())
    y, count = nonnegative.active_set(c, linear[middle], near[middle].astype(float))
    return Basis(c, y > 0.0), count


def _pivoted(basis: Basis, linear: Array, t: Array, free: Mask) -> tuple[Array, Index, int]:
    """Block principal pivoting from ``free`` as long as it improves: y (m, k), the rows that are not solved, and the
    number of sweeps."""
    rows, out = np.arange(len(free)), np.zeros_like(t)
    least, count = t.size + 1, 0
    while count < _SWEEPS:
        count += 1
        values = basis.values(free, t[rows])
        y = np.where(free, values, 0.0)
        out[rows] = y
        wrong = np.where(free, values < 0.0, values < -nonnegative.tolerance(linear[rows], np.abs(y)))
        left, unsolved = int(np.count_nonzero(wrong)), wrong.any(axis=1)
        rows, free = rows[unsolved], (free ^ wrong)[unsolved]
        if not left or left >= least:
            break
        least = left
    return out, rows, count


def _alone(c: Array, basis: Basis, q: Array, t: Array, start: Array) -> tuple[Array, int]:
    """The active-set method for one row, its systems by exchanges."""

    def on(support: Mask) -> Array:
        return np.where(support, basis.values(support[None], t[None])[0], 0.0)

    return nonnegative.active_set(c, q, start, on)


def _refined(c: Array, basis: Basis, linear: Array, y: Array) -> Array:
    """One step of iterative refinement, which restores the digits that the transform lost if C_SS is
    ill-conditioned."""
    free = y > 0.0
    left = np.where(free, y @ c + linear, 0.0)
    return np.asarray(np.maximum(y + np.where(free, basis.values(free, basis.transformed(left)), 0.0), 0.0))
