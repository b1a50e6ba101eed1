"""The nearest point of the simplex {w >= 0, sum w = 1}, exactly, by sorting (Held, Wolfe and Crowder 1974)."""

from __future__ import annotations

import numpy as np

from mtlplugins.solvers.certificate import EPS
from mtlplugins.solvers.cosines import Array


def settled(pull: Array, size: float) -> Array:
    """A gradient (k,) on the simplex, from which only differences count, with those that rounding explains removed:
    ``size`` is the largest of the terms that were added up. A step of any length then keeps tasks equal that are."""
    centred = pull - pull.mean()
    out: Array = np.where(np.abs(centred) <= 64.0 * len(pull) * EPS * size, 0.0, centred)
    return out


def project_simplex(point: Array, total: float = 1.0) -> Array:
    """(k,) -> (k,): max(point - t, 0) with the t for which the sum is ``total``."""
    centred = point - point.max()  # only differences matter, and these do not overflow
    order = np.sort(centred)[::-1]
    level = (np.cumsum(order) - total) / np.arange(1, len(order) + 1)
    support = int(np.nonzero(order > level)[0][-1])
    out: Array = np.maximum(centred - level[support], 0.0)
    return out
