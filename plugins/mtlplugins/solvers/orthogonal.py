"""Every row minus its projection onto the span of the others, from the cosine matrix alone.

For independent rows this is the dual basis: with P = C^-1 the remainder of unit row i is (1 / P_ii) sum_j P_ij (unit
row j), and its squared length, the squared sine of the angle between row i and the span, is 1 / P_ii. So one
inversion serves all K rows, instead of K Gram-Schmidt runs of O(K^2 P). Where C is singular or close to it, one
eigendecomposition serves all K rows. With N the null vectors, a row is of one of three kinds:

- It has a component in N. Then it depends on the others: the shortest vanishing combination in which its coefficient is
  1 is N N' e_i / |N' e_i|^2.
- It has none. Then the remainder is as before, with P = C^+.
- Rounding does not allow to decide: the component is not above the error of N, which is eps divided by the gap to the
  other eigenvalues. Then P = (C + ridge)^-1 is used; it agrees with the first case for large components and with the
  second for small ones.

In every case the combination found is at least as long as the remainder. Resolution: C has an error of about
4 sqrt(K) eps in norm, so a remainder with coefficients c has an error of (4 sqrt(K) eps)^(1/2) sum |c|; a remainder
that is not longer than that, or than 1e-6, counts as zero.
"""

from __future__ import annotations

import numpy as np

from mtlplugins.solvers.certificate import EPS
from mtlplugins.solvers.cosines import Array

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
    coefficients = _combinations(matrix)
    squares = ((coefficients @ matrix) * coefficients).sum(axis=1)
    lengths = np.sqrt(np.clip(squares, 0.0, 1.0))
    # Large coefficients come from others that nearly depend on each other; what their cancellation leaves is rounding.
    rounding = (4.0 * EPS * len(matrix) ** 0.5) ** 0.5 * np.abs(coefficients).sum(axis=1)
    zero = lengths <= np.maximum(SMALLEST_SINE, rounding)
    coefficients[zero] = 0.0
    lengths[zero] = 0.0
    return coefficients, lengths


def _combinations(matrix: Array) -> Array:
    """(k, k): row i has a one in place i and makes |J^T c| least, of those the shortest c."""
    rounding = 8.0 * len(matrix) * EPS
    values, vectors = np.linalg.eigh(matrix)
    null = values <= rounding
    projector = vectors[:, null] @ vectors[:, null].T
    part = projector.diagonal()
    inverse = (vectors[:, ~null] / values[~null]) @ vectors[:, ~null].T
    unknown = (part > _NO_PART) & (part <= (rounding / values[~null].min()) ** 2)
    inverse[part > _NO_PART] = projector[part > _NO_PART]
    if unknown.any():
        inverse[unknown] = ((vectors / (np.maximum(values, 0.0) + rounding)) @ vectors.T)[unknown]
    coefficients: Array = inverse / inverse.diagonal()[:, None]
    return coefficients
