"""Every row minus its projection onto the span of the others, from the cosine matrix alone.

For independent rows this is the dual basis: with P = C^-1 the remainder of unit row i is (1 / P_ii) sum_j P_ij (unit
row j), and its squared length, the squared sine of the angle between row i and the span, is 1 / P_ii. So one
inversion serves all K rows, instead of K Gram-Schmidt runs of O(K^2 P). Rows for which C is too close to singular
for that are treated one by one with a truncated eigendecomposition of the other rows' cosines.
"""

from __future__ import annotations

import numpy as np

from mtlplugins.solvers.certificate import EPS
from mtlplugins.solvers.cosines import Array

SMALLEST_SINE = 1e-6
"""Remainders shorter than this, relative to the row, are zero. A remainder of relative length r is known from C only
to eps / r^2: below 1e-6 its direction would be good to fewer than three digits."""

_TRUSTED = 1e8


def remainders(matrix: Array) -> tuple[Array, Array]:
    """B (k, k): row i holds the coefficients, in unit rows, of the remainder of unit row i; and its length (k,)."""
    k = len(matrix)
    if k == 1:
        return np.ones((1, 1)), np.ones(1)
    try:
        inverse = np.linalg.inv(matrix)
    except np.linalg.LinAlgError:
        return _one_by_one(matrix)
    reciprocal = inverse.diagonal()
    if not (reciprocal.min() > 0.5 and reciprocal.max() < _TRUSTED):
        return _one_by_one(matrix)
    lengths: Array = 1.0 / np.sqrt(reciprocal)
    return inverse / reciprocal[:, None], lengths


def _one_by_one(matrix: Array) -> tuple[Array, Array]:
    k = len(matrix)
    identity = np.eye(k, dtype=bool)
    # Batch i: the cosines of the rows other than i (row and column i belong to the identity).
    others = np.where(identity[:, :, None] | identity[:, None, :], np.eye(k), matrix)
    values, vectors = np.linalg.eigh(others)
    target = np.where(identity, 0.0, matrix)
    along = np.einsum("iab,ia->ib", vectors, target)
    keep = values > 8.0 * k * EPS
    inverse = np.where(keep, 1.0, 0.0) / np.where(keep, values, 1.0)
    coefficients = np.where(identity, 1.0, -np.einsum("iab,ib->ia", vectors, along * inverse))
    squares = np.einsum("ia,ab,ib->i", coefficients, matrix, coefficients)
    lengths = np.sqrt(np.clip(squares, 0.0, 1.0))
    zero = lengths <= SMALLEST_SINE
    coefficients[zero] = 0.0
    lengths[zero] = 0.0
    return coefficients, lengths
