"""min 1/2 x'Hx + f'x over the simplex, H positive semi-definite, H and f of any sizes relative to each other.

It is solved by a primal active-set method. From the centre it goes to the minimum on the face of the positive entries,
or to the boundary of the simplex on the way. At a minimum the entries along which the objective decreases most become
positive. The objective decreases with every set, so no set occurs twice. On a face the minimum is found with the
eigenvectors of H there; along eigenvectors without curvature the objective is linear, and the step ends at the boundary
of the simplex.

If the minimum is not unique, equal entries must get equal numbers: a small ridge selects the shortest x, and entries
that are tied leave and enter together.
"""

from __future__ import annotations

import numpy as np

from mtlplugins.solvers.certificate import EPS
from mtlplugins.solvers.cosines import Array, Index

_RIDGE, _TIE = 1e-9, 1e-9
_CURVED = 1e-11
"""A smaller curvature, relative to the largest entry of H and f, is rounding error, and its eigenvector is noise."""


def minimise(h: Array, f: Array) -> Array:
    """x (n,), at least 0, with sum 1."""
    n, size = len(f), max(float(np.abs(h).max()), float(np.abs(f).max()))
    if size == 0.0:
        return np.full(n, 1.0 / n)
    h = (h + _RIDGE * max(float(h.diagonal().max()), 0.0) * np.eye(n)) / size
    f, x = f / size, np.full(n, 1.0 / n)
    for _ in range(20 * n):
        x = _on_face(h, f, x)
        slope = h @ x + f
        slope = slope - float(slope @ x)
        gain = -float(slope.min())
        if gain <= 64.0 * n * EPS:
            break
        # A step into the face that has these entries, too: towards their middle, to the least value on the way.
        entering = slope <= -gain * (1.0 - _TIE)
        way = np.where(entering, 1.0 / np.count_nonzero(entering), 0.0) - x
        curvature = float(way @ h @ way)
        x = x + (1.0 if curvature <= gain else gain / curvature) * way
    return np.asarray(x / x.sum())


def minimise_above(h: Array, c: Array, a: float) -> Array:
    """min 1/2 x'Hx over the simplex where c'x >= a, for some x of it.

    With the multiplier t of the inequality, x(t) minimises 1/2 x'Hx - t c'x, and c'x(t) grows with t. Where x(0) will
    not do, t is found by bisection, and the answer is the point between the two last x(t) where c'x = a.
    """
    low = minimise(h, np.zeros(len(c)))
    if float(low @ c) >= a:
        return low
    below, above = 0.0, max(float(np.abs(h).max()), np.finfo(float).tiny)
    high = minimise(h, -above * c)
    for _ in range(100):
        if float(high @ c) >= a:
            break
        below, low, above = above, high, 4.0 * above
        high = minimise(h, -above * c)
    for _ in range(60):
        middle = 0.5 * (below + above)
        if not below < middle < above:
            break
        x = minimise(h, -middle * c)
        if float(x @ c) >= a:
            above, high = middle, x
        else:
            below, low = middle, x
    left, right = float(low @ c), float(high @ c)
    share = min(max((a - left) / (right - left), 0.0), 1.0) if right > left else 1.0
    return np.asarray(low + share * (high - low))


def _on_face(h: Array, f: Array, x: Array) -> Array:
    """The minimum on the face of the positive entries of x, or on a face of it where the way there ends."""
    while True:
        index: Index = x.nonzero()[0]
        way = _way(h[np.ix_(index, index)], (h @ x + f)[index])
        falling = way < 0.0
        if not falling.any():
            return x
        limits = np.where(falling, x[index] / np.where(falling, -way, 1.0), np.inf)
        step = min(1.0, float(limits.min()))
        x = x.copy()
        x[index] = np.maximum(x[index] + step * way, 0.0)
        if step == 1.0:
            return x
        x[index[limits <= step * (1.0 + _TIE)]] = 0.0


def _way(h: Array, slope: Array) -> Array:
    """From a point with this slope to the minimum under a fixed sum; where there is none, far beyond every border."""
    n = len(slope)
    flat = np.eye(n) - 1.0 / n
    values, vectors = np.linalg.eigh(flat @ h @ flat)
    part = vectors.T @ (flat @ slope)
    curved = values > _CURVED
    part[~curved & (np.abs(part) <= 64.0 * n * EPS)] = 0.0
    way = -flat @ (vectors[:, ~curved] @ part[~curved])
    largest = float(np.abs(way).max())
    if largest > 0.0:
        return np.asarray(way / largest * 4.0)
    return np.asarray(-flat @ (vectors[:, curved] @ (part[curved] / values[curved])))
