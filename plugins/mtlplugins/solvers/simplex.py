"""The nearest point of the simplex {w >= 0, sum w = 1}, exactly, by sorting (Held, Wolfe and Crowder 1974)."""

from __future__ import annotations

import numpy as np

from mtlplugins.solvers.certificate import EPS
from mtlplugins.solvers.cosines import Array


def settled(pull: Array, size: float) -> Array:
    """A gradient (k,) on the simplex, from which only differences count, without those that rounding explains: ``size``
    is the largest of the terms that were added up. A step of any length then keeps tasks equal that are, and where the
    gradient is least it is zero, so that however long the step, the weights there keep their digits."""
    order = np.argsort(pull)
    ranked = pull[order] - pull[order[0]]
    apart = np.diff(ranked, prepend=0.0) > 64.0 * len(pull) * EPS * size
    first = np.maximum.accumulate(np.where(apart, np.arange(len(pull)), 0))
    out: Array = np.empty_like(pull)
    out[order] = ranked[first]
    return out


def project_simplex(point: Array, total: float = 1.0) -> Array:
    """(k,) -> (k,): max(point - t, 0) with the t for which the sum is ``total``."""
    centred = point - point.max()  # only differences matter, and these do not overflow
    order = np.sort(centred)[::-1]
    level = (np.cumsum(order) - total) / np.arange(1, len(order) + 1)
    support = int(np.nonzero(order > level)[0][-1])
    out: Array = np.maximum(centred - level[support], 0.0)
    return out
