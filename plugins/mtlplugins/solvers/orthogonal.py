"""Every row minus its projection onto the span of the others, from the cosine matrix alone.

For independent rows this is the dual basis: with P = C^-1 the remainder of unit row i is (1 / P_ii) sum_j P_ij (unit
row j), and its squared length, the squared sine of the angle between row i and the span, is 1 / P_ii. So one
inversion serves all K rows, instead of K Gram-Schmidt runs of O(K^2 P). Where C is singular, one eigendecomposition
still serves most: the remainder is zero for a row that a null vector of C gives a part in, and as before with P = C^+
for one that none does. The few in between, and all if C is close to singular without being it, are treated one by one
with a truncated eigendecomposition of the other rows' cosines.
"""

from __future__ import annotations

import numpy as np

from mtlplugins.solvers.certificate import EPS
from mtlplugins.solvers.cosines import Array, Index

SMALLEST_SINE = 1e-6
"""Remainders shorter than this, relative to the row, are zero. A remainder of relative length r is known from C only
to eps / r^2: below 1e-6 its direction would be good to fewer than three digits."""

_TRUSTED = 1e8
_NO_PART = 1e-20
"""Largest squared entry of a null vector that is rounding; a row that depends on others by coefficients of 1e7 has
1e-14."""


def remainders(matrix: Array) -> tuple[Array, Array]:
    """B (k, k): row i holds the coefficients, in unit rows, of the remainder of unit row i; and its length (k,)."""
    k = len(matrix)
    if k == 1:
        return np.ones((1, 1)), np.ones(1)
    try:
        inverse = np.linalg.inv(matrix)
    except np.linalg.LinAlgError:
        return _of_dependent(matrix)
    reciprocal = inverse.diagonal()
    if not (reciprocal.min() > 0.5 and reciprocal.max() < _TRUSTED):
        return _of_dependent(matrix)
    lengths: Array = 1.0 / np.sqrt(reciprocal)
    return inverse / reciprocal[:, None], lengths


def _of_dependent(matrix: Array) -> tuple[Array, Array]:
    k = len(matrix)
    values, vectors = np.linalg.eigh(matrix)
    null = values <= 8.0 * k * EPS
    part = (vectors[:, null] ** 2).sum(axis=1)
    values, vectors = values[~null], vectors[:, ~null]
    # |J^T v| of a null vector v is rounding, and the remainder of row i is no longer than |J^T v| / |v_i|.
    zero = part * SMALLEST_SINE**2 > 8.0 * k * EPS
    inverse = (vectors / values) @ vectors.T
    reciprocal = inverse.diagonal()
    clear = (part < _NO_PART) & (reciprocal < _TRUSTED) & (values[0] * _TRUSTED > 1.0)
    coefficients, lengths = np.zeros((k, k)), np.zeros(k)
    coefficients[clear] = inverse[clear] / reciprocal[clear, None]
    lengths[clear] = 1.0 / np.sqrt(reciprocal[clear])
    rest = (~zero & ~clear).nonzero()[0]
    coefficients[rest], lengths[rest] = _one_by_one(matrix, rest)
    return coefficients, lengths


def _one_by_one(matrix: Array, rows: Index) -> tuple[Array, Array]:
    k = len(matrix)
    own = np.eye(k, dtype=bool)[rows]
    # Batch: the cosines of the rows other than i (row and column i belong to the identity).
    others = np.where(own[:, :, None] | own[:, None, :], np.eye(k), matrix)
    values, vectors = np.linalg.eigh(others)
    target = np.where(own, 0.0, matrix[rows])
    along = np.einsum("iab,ia->ib", vectors, target)
    keep = values > 8.0 * k * EPS
    inverse = np.where(keep, 1.0, 0.0) / np.where(keep, values, 1.0)
    coefficients = np.where(own, 1.0, -np.einsum("iab,ib->ia", vectors, along * inverse))
    squares = np.einsum("ia,ab,ib->i", coefficients, matrix, coefficients)
    lengths = np.sqrt(np.clip(squares, 0.0, 1.0))
    # Large coefficients come from others that nearly depend on each other; what their cancellation leaves is rounding.
    rounding = (4.0 * EPS * k**0.5) ** 0.5 * np.abs(coefficients).sum(axis=1)
    zero = lengths <= np.maximum(SMALLEST_SINE, rounding)
    coefficients[zero] = 0.0
    lengths[zero] = 0.0
    return coefficients, lengths
