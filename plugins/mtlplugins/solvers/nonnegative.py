"""min 1/2 y'Cy + q'y over y >= 0: the common problem of min-norm, dual-cone and CAGrad.

Optimality: with mu = Cy + q, y >= 0, mu >= 0, y_i mu_i = 0. C is a cosine matrix: positive semi-definite with ones
on the diagonal. A ridge of 4 sqrt(K) eps, the size of the rounding error already in C, makes the problem strictly
convex, so rank-deficient rows need no special case; its effect is below the resolution of the Gramian.

There are two methods. Block principal pivoting (Judice and Pires 1994; Kim and Park 2011 [memory]) exchanges all
indices with a wrong sign together, and usually ends after two to five linear systems, for many q at once. It may cycle,
typically for many dependent rows. Unsolved problems go to the active-set method of Lawson and Hanson (1974), which is
finite because the objective decreases with each accepted set. From zero it takes about one system per entry of the
support, for every q. Therefore large problems first get a starting point by alternating directions. That iteration
converges slowly, but it has one inverse for all q and finds nearly all supports in a hundred steps; then one to three
systems are needed for each q [measured].

The tolerance for mu_i is relative to the terms of its own row, |q_i| + sum y. In CAGrad the q_i differ as much as the
lengths of the rows; a tolerance relative to the largest would hide violations in the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from mtlplugins.solvers.certificate import EPS
from mtlplugins.solvers.cosines import Array, Index, Mask

_SWEEPS = 10
_COMPRESSED = 48
"""From so many variables on, gathering the free ones costs less than solving systems of full size."""

LARGE = 128
"""From so many variables on, every problem gets a starting point, and each system its own Cholesky factorisation."""
_MANY = 150
"""From so many unknowns on, a starting point for the active-set method costs less than it saves."""
_ITERATIONS, _PENALTY, _RELAXED = 100, 0.1, 1.7
ROUGH, _ROUNDS, _BETWEEN = 0.3, 16, 5
"""The same for a start that only has to have most of the supports right: the penalty, and so many times so many
iterations at most."""


def pair(c: float, p: float, q: float) -> tuple[float, float]:
    """Two variables, cosine c between the rows, linear term (p, q): closed form."""
    if p >= 0.0 and q >= 0.0:
        return 0.0, 0.0
    # The other multiplier at a single-variable solution decides; if neither holds, both are positive.
    if p < 0.0 and q - c * p >= 0.0:
        return -p, 0.0
    if q < 0.0 and p - c * q >= 0.0:
        return 0.0, -q
    # The second follows from its own equation, so that the first one's error, large for c near +-1, cancels there.
    y = (c * q - p) / max((1.0 - c) * (1.0 + c), 4.0 * EPS)
    z = -q - c * y
    if y < 0.0 or z < 0.0:
        return (-p, 0.0) if p < q else (0.0, -q)
    return y, z


def ridged(matrix: Array) -> Array:
    """C with 4 sqrt(K) eps added to its diagonal."""
    out = matrix.copy()
    out.flat[:: len(out) + 1] = 1.0 + 4.0 * len(out) ** 0.5 * EPS
    return out


def solve(matrix: Array, linear: Array, positive: Mask | None = None) -> tuple[Array, int]:
    """One problem: ``linear`` (k,) -> y (k,) and the number of systems solved. ``positive``: guess of the support."""
    k = len(linear)
    c = ridged(matrix)
    free = linear < 0.0 if positive is None else positive
    size = np.abs(linear)
    for count in range(_SWEEPS):
        y = np.zeros(k)
        index = free.nonzero()[0]
        if len(index):
            y[index] = np.linalg.solve(c[index[:, None], index], -linear[index])
        slack = c @ y + linear
        wrong = np.where(free, y < 0.0, slack < -4.0 * EPS * k * (size + float(np.abs(y).sum())))
        if not wrong.any():
            return y, count + 1
        free = free ^ wrong
    return y, _SWEEPS + finish(matrix, linear[None], y[None], np.zeros(1, dtype=np.intp))


def pivot(matrix: Array, linear: Array, positive: Mask | None = None) -> tuple[Array, Index, int]:
    """Block principal pivoting for several right-hand sides: ``linear`` (m, k) -> y (m, k), the rows of it that are
    left unsolved, and the number of sweeps."""
    m, k = linear.shape
    c = ridged(matrix)
    free = linear < 0.0 if positive is None else positive.copy()
    y = np.zeros((m, k))
    rows = np.arange(m)
    least, count = m * k + 1, 0
    while len(rows) and count < _SWEEPS:
        count += 1
        f, q = free[rows], linear[rows]
        x = _on_free(c, f, q)
        wrong = np.where(f, x < 0.0, x @ c + q < -tolerance(q, x))
        y[rows] = x
        left = int(np.count_nonzero(wrong))
        unsolved = wrong.any(axis=1)
        rows = rows[unsolved]
        # Where it converges, fewer signs are wrong after every sweep. Where it does not, few variables may still come
        # right by chance; sweeps of many are too dear for that.
        if left >= least and k > _COMPRESSED:
            break
        least = left
        free[rows] = f[unsolved] ^ wrong[unsolved]
    return y, rows, count


def finish(matrix: Array, linear: Array, y: Array, rows: Index) -> int:
    """The ``rows`` of y (m, k) one by one, in place; the number of systems."""
    if not len(rows):
        return 0
    c, k, count = ridged(matrix), len(matrix), 0
    many = len(rows) * k >= _MANY
    starts = near(matrix, linear[rows]) if many else np.zeros((len(rows), k))
    for row, start in zip(rows, starts):
        y[row], more = active_set(c, linear[row], start)
        count += more
    return count


class Guess(NamedTuple):
    """Solutions after some iterations of alternating directions, in float32, as a guess needs no more.

    Args:
        near: y >= 0 (m, k).
        dual: of the iteration, (m, k).
        settled: False where it would take too long, because the systems are ill-conditioned; otherwise the supports are
            right but for one entry in a thousand or fewer [measured on 500 Gaussian rows in 400 to 1000 dimensions].
    """

    near: Any
    dual: Any
    settled: bool


def guess(matrix: Array, linear: Array) -> Guess:
    """For ``linear`` (m, k), by the penalty ``ROUGH``, which suits well-conditioned systems."""
    inverse, single = shifted_inverse(matrix, ROUGH), linear.astype(np.float32)
    near, dual = np.zeros_like(single), np.zeros_like(single)
    changed = 0
    for done in range(_ROUNDS):
        if done == _ROUNDS // 4 and changed > 2 * len(linear):
            return Guess(near, dual, False)
        before = near > 0.0
        near, dual = alternated(inverse, single, np.float32(ROUGH), near, dual, _BETWEEN)
        # What still changes comes right in a sweep over few rows, which costs as much as some more iterations.
        changed = int(np.count_nonzero((near > 0.0) != before))
        if changed <= len(matrix) // 4:
            break
    return Guess(near, dual, True)


def shifted_inverse(matrix: Array, penalty: float) -> Any:
    """Of C + penalty, in float32."""
    return np.linalg.inv(matrix + penalty * np.eye(len(matrix))).astype(np.float32)


def near(matrix: Array, linear: Array) -> Array:
    """y >= 0 (m, k) near the solutions, good enough to have most of their supports."""
    inverse = np.linalg.inv(matrix + _PENALTY * np.eye(len(matrix)))
    y, dual = np.zeros_like(linear), np.zeros_like(linear)
    return np.asarray(alternated(inverse, linear, _PENALTY, y, dual, _ITERATIONS)[0])


def alternated(inverse: Any, linear: Any, penalty: Any, y: Any, dual: Any, iterations: int) -> tuple[Any, Any]:
    """Alternating directions (Boyd et al. 2011 [memory]), for which all problems and all iterations share the inverse
    of C + penalty: the next y >= 0 (m, k) and its dual, in the dtype of what is given."""
    relaxed = linear.dtype.type(_RELAXED)
    for _ in range(iterations):
        x = (penalty * (y - dual) - linear) @ inverse
        x = relaxed * x + (1 - relaxed) * y
        y = np.maximum(x + dual, 0)
        dual = dual + x - y
    return y, dual


def tolerance(linear: Array, y: Array) -> Array:
    """What rounding may do to the entries of C y + q, for q and y (m, k)."""
    out: Array = 4.0 * EPS * linear.shape[1] * (np.abs(linear) + np.abs(y).sum(axis=1, keepdims=True))
    return out


def _on_free(c: Array, free: Mask, linear: Array) -> Array:
    """x (m, k) with C_FF x_F = -q_F on each row's free set F, and zero elsewhere."""
    m, k = linear.shape
    if k <= _COMPRESSED:
        # The rows and columns that are not free are replaced by those of the identity: one batched call for all.
        system = np.where(free[:, :, None] & free[:, None, :], c, 0.0)
        system.reshape(m, -1)[:, :: k + 1] = np.where(free, c.flat[0], 1.0)
        return np.linalg.solve(system, np.where(free, -linear, 0.0)[:, :, None])[:, :, 0]
    if k >= LARGE:
        return on_free_alone(c, free, linear)
    # The same, on as many rows and columns as the largest free set has.
    out, size = np.zeros((m, k)), int(free.sum(axis=1).max())
    if size:
        index = np.argsort(~free, axis=1, kind="stable")[:, :size]
        inside = np.take_along_axis(free, index, 1)
        system = c[index[:, :, None], index[:, None, :]]
        system *= inside[:, :, None]  # a row of the identity makes its unknown zero, so its column does not matter
        system.reshape(m, -1)[:, :: size + 1] = np.where(inside, c.flat[0], 1.0)
        right = np.where(inside, -np.take_along_axis(linear, index, 1), 0.0)
        np.put_along_axis(out, index, np.linalg.solve(system, right[:, :, None])[:, :, 0], 1)
    return out


def on_free_alone(c: Array, free: Mask, linear: Array) -> Array:
    """One by one: half of the operations of a general solve, and nothing padded."""
    from scipy.linalg.lapack import dposv  # takes time to import, and is needed for many rows only

    out = np.zeros(linear.shape)
    for x, where, q in zip(out, free, linear):
        index = where.nonzero()[0]
        if len(index):
            system = c[index[:, None], index]
            _, found, fault = dposv(system, -q[index], lower=1, overwrite_a=1)
            x[index] = np.linalg.solve(c[index[:, None], index], -q[index]) if fault else found
    return out


def active_set(c: Array, q: Array, start: Array, on: Callable[[Mask], Array] | None = None) -> tuple[Array, int]:
    """Lawson and Hanson on one right-hand side, in Gramian form, from any y >= 0.

    Args:
        c: C with its ridge.
        q: (k,).
        start: y >= 0 (k,).
        on: support (k,) -> y (k,) with C_FF y_F = -q_F on it and zero elsewhere; None for a solve of that system.

    Returns:
        y (k,) and the number of systems.
    """
    k = len(q)

    def solved(support: Mask) -> Array:
        index = support.nonzero()[0]
        out = np.zeros(k)
        out[index] = np.linalg.solve(c[index[:, None], index], -q[index])
        return out

    on = on or solved
    y, support = start, start > 0.0
    refused = np.zeros(k, dtype=bool)
    size = np.abs(q)
    entering, count = -1, 0
    for _ in range(10 * k):
        if count or not support.any():
            descent = -(c @ y + q)
            descent[support | refused | (descent <= 4.0 * EPS * k * (size + float(y.sum())))] = -np.inf
            entering = int(descent.argmax())
            if descent[entering] == -np.inf:
                break
            support[entering] = True
        while True:
            target = on(support)
            count += 1
            blocking = (support & (target <= 0.0)).nonzero()[0]
            if not len(blocking):
                # Progress: an index refused at the old point may be useful at the new one.
                refused[:] = False
                y = target
                break
            if entering in blocking and y[entering] == 0.0:
                # Its multiplier was rounding error: leave it out, or the method would cycle.
                support[entering] = False
                refused[entering] = True
                break
            step = y[blocking] / (y[blocking] - target[blocking])
            y = y + float(step.min()) * (target - y)
            leaving = blocking[step <= step.min()]
            y[leaving] = 0.0
            support[leaving] = False
    return y, count


def residual(matrix: Array, linear: Array, y: Array) -> float:
    """Largest violation of the optimality conditions of one problem, relative to its terms."""
    slack = matrix @ y + linear
    size = np.abs(linear) + float(y.sum())
    wrong = np.where(y > 0.0, np.abs(slack), np.maximum(-slack, 0.0))
    return float((wrong[size > 0.0] / size[size > 0.0]).max(initial=0.0))
