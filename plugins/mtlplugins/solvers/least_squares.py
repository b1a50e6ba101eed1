"""The solution of least norm of C y = r for a cosine matrix that may be singular."""

from __future__ import annotations

import numpy as np

from mtlplugins.solvers.certificate import EPS
from mtlplugins.solvers.cosines import Array
from mtlplugins.solvers.spectrum import singular


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


def of_gramian(matrix: Array, norms: Array) -> tuple[Array, int]:
    """v = G^+ |g| (k,), up to a positive factor, and the numerical rank of G = D C D; eigenvalues of G below 8K eps
    times the largest count as zero. For independent rows v = D^-1 C^-1 1."""
    unit = norms / norms.max()
    values, basis = singular(matrix, unit)
    along = (basis @ unit) / values
    # The factor keeps the square of the least singular value in range.
    solution: Array = (along / values * values[-1]) @ basis
    return solution, len(values)
