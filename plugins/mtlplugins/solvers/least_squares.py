"""The solution of least norm of C y = r for a cosine matrix that may be singular."""

from __future__ import annotations

import numpy as np

from mtlplugins.solvers.certificate import EPS
from mtlplugins.solvers.cosines import Array


def minimum_norm(matrix: Array, right: Array) -> tuple[Array, int]:
    """y = C^+ r (k,) and the numerical rank of C; eigenvalues below 8K eps times the largest count as zero."""
    values, vectors = np.linalg.eigh(matrix)
    keep = values > 8.0 * len(values) * EPS * values[-1]
    vectors = vectors[:, keep]
    along = vectors.T @ right
    # A right-hand side without a component along the range has the solution 0, not its rounding error.
    along[np.abs(along) <= 8.0 * len(values) * EPS * np.abs(right).sum()] = 0.0
    solution: Array = vectors @ (along / values[keep])
    return solution, int(keep.sum())
