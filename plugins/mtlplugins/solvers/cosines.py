"""The row-normalised problem: C = D^-1 G D^-1 with D = diag(|g_i|)."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtlplugins.solvers.certificate import EPS

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Index = NDArray[np.intp]


@dataclass(frozen=True)
class Cosines:
    """A Gramian without its scale.

    Args:
        matrix: (k, k) cosines of the rows that are not zero; exact ones on the diagonal.
        norms: (k,) their Euclidean norms |g_i|.
        live: positions of these rows among all K; None if all are non-zero. A zero gradient contributes nothing and is
            no constraint, so it is not part of any problem.
        n_tasks: K.
    """

    matrix: Array
    norms: Array
    live: Index | None
    n_tasks: int

    def scatter(self, weights: Array, dead: float | Array = 0.0) -> Array:
        """(k,) values of the live rows -> (K,), with ``dead``, one for all or (K,), for rows that are zero."""
        if self.live is None:
            return weights
        out = np.full(self.n_tasks, dead)
        out[self.live] = weights
        return out

    def gather(self, values: Array) -> Array:
        """(K,) -> (k,), the entries of the live rows."""
        return values if self.live is None else values[self.live]


def cosines(gramian: Array) -> Cosines:
    """Normalise a (K, K) Gramian. Gradients shorter than 1.5e-154 count as zero: their squared norms are below the
    normal floats and have few digits."""
    n = gramian.shape[0]
    squares = gramian.diagonal()
    live = None
    if squares.min() < sys.float_info.min:
        live = (squares >= sys.float_info.min).nonzero()[0]
        gramian = gramian[live[:, None], live]
        squares = squares[live]
    norms = np.sqrt(squares)
    matrix = gramian / norms / norms[:, None]
    matrix.flat[:: len(norms) + 1] = 1.0
    return Cosines(matrix, norms, live, n)


def noise(matrix: Array, b: Array) -> float:
    """Rounding error of an entry of ``matrix @ b``; the cosines themselves have errors of a few eps."""
    return float(4.0 * EPS * len(b) ** 0.5 * np.abs(b).sum())
