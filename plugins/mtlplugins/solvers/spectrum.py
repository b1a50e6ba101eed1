"""Singular values and left singular vectors of the rows J, from their cosines and norms."""

from __future__ import annotations

import numpy as np

from mtlplugins.solvers.certificate import EPS
from mtlplugins.solvers.cosines import Array

CUTS = {"float64": 8.0 * EPS, "float32": 2.0**-23}
"""Eigenvalues of G = J J^T below this number times K, relative to the largest, count as zero. "float64" is the rounding
error of G here; "float32" is the eps of the dtype of G in published code."""


def singular(matrix: Array, norms: Array, cut: str = "float64") -> tuple[Array, Array]:
    """Of rows with cosines ``matrix`` (k, k) and ``norms`` (k,): the r singular values that count, from the largest,
    and the vectors (r, k) that belong to them: G = basis^T diag(values^2) basis."""
    k = len(norms)
    # A factor F with F^T F = G, from the cosines: its singular values keep the digits that those of G, whose
    # entries spread twice as far as the norms, would lose.
    values, vectors = np.linalg.eigh(matrix)
    keep = values > CUTS["float64"] * k * values[-1]
    factor = (np.sqrt(values[keep]) * vectors[:, keep]).T * norms
    _, values, basis = np.linalg.svd(factor, full_matrices=False)
    keep = values**2 > CUTS[cut] * k * values[0] ** 2
    return values[keep], basis[keep]
