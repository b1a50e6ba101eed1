"""The nearest point of the simplex {w >= 0, sum w = 1}, exactly, by sorting (Held, Wolfe and Crowder 1974)."""

from __future__ import annotations

import numpy as np

from mtlplugins.solvers.cosines import Array


def project_simplex(point: Array, total: float = 1.0) -> Array:
    """(k,) -> (k,): max(point - t, 0) with the t for which the sum is ``total``."""
    centred = point - point.max()  # only differences matter, and these do not overflow
    order = np.sort(centred)[::-1]
    level = (np.cumsum(order) - total) / np.arange(1, len(order) + 1)
    support = int(np.nonzero(order > level)[0][-1])
    out: Array = np.maximum(centred - level[support], 0.0)
    return out
