"""What a law or a proof may ask of a Jacobian, as predicates: the domain of a law, the assumptions of a proof.

A strategy builds inputs that satisfy them by construction; these ask about any input, for the minimiser, for the hunt
and for the assumptions of proofs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import torch
from scipy.optimize import linprog, nnls
from torch import Tensor

Precondition = Callable[[Tensor], bool]


def independent(rows: Tensor) -> bool:
    """Full row rank, none of the unit rows nearer than 1e-6 to the span of the others."""
    units = rows.double() / rows.double().norm(dim=1, keepdim=True).clamp_min(1e-300)
    return rows.shape[0] <= rows.shape[1] and float(torch.linalg.svdvals(units).min()) > 1e-6


def aligned(rows: Tensor) -> bool:
    """No two rows have a negative inner product. (Rows of zeros are allowed.)"""
    data = rows.double()
    return bool((data @ data.T >= 0).all())


def stationary(rows: Tensor) -> bool:
    """Some convex combination vanishes."""
    from mtlverify.references.min_norm import bounds, min_norm

    data = rows.double()
    norms = data.norm(dim=1)
    if not bool((norms > 0).all()):
        return True
    small = 1e-13 * float(norms.max())
    least, most = bounds(data.numpy())  # it decides nearly always, and Clarabel takes a second to import
    if most <= small or least > small:
        return most <= small
    return float(torch.from_numpy(min_norm(data.numpy()).direction).norm()) <= small


def not_stationary(rows: Tensor) -> bool:
    """No convex combination vanishes, and visibly so: the unit rows' hull is 1e-6 away from zero.

    By Lawson-Hanson on min |U'b|^2 + (sum b - 1)^2, whose least value is x^2 / (1 + x^2) at distance x."""
    data = rows.double()
    norms = data.norm(dim=1)
    if not bool((norms > 0).all()):
        return False
    units = (data / norms[:, None]).numpy()
    _, residual = nnls(np.vstack([units.T, np.ones(len(units))]), np.append(np.zeros(units.shape[1]), 1.0))
    return bool(residual > 1e-6)


def strongly_stationary(rows: Tensor) -> bool:
    """Some combination with all weights >= 1 vanishes."""
    k, p = rows.shape
    scale = rows.double().abs().max()
    if scale == 0:
        return True
    matrix = (rows.double() / scale).T.numpy()
    found = linprog([0.0] * k, A_eq=matrix, b_eq=[0.0] * p, bounds=[(1, None)] * k)
    return bool(found.status == 0) and exactly_strongly_stationary(rows)


def exactly_strongly_stationary(rows: Tensor) -> bool:
    """The same, in rational arithmetic: a linear program accepts what vanishes up to its own tolerance.

    Decided for at most 6 rows: J^T w = 0, w > 0 holds exactly when every row is in some set S of rows, with S minimal
    dependent and positively so. More rows: as the linear program says.
    """
    k = len(rows)
    if k > 6:
        return True
    data = [[Fraction(x) for x in row] for row in rows.double().tolist()]
    covered: set[int] = {i for i in range(k) if not any(data[i])}
    for size in range(2, k + 1):
        for chosen in itertools.combinations(range(k), size):
            if not covered.issuperset(chosen):
                kernel = null_vectors([data[i] for i in chosen])
                if len(kernel) == 1 and (all(x > 0 for x in kernel[0]) or all(x < 0 for x in kernel[0])):
                    covered.update(chosen)
    return len(covered) == k


def null_vectors(rows: list[list[Fraction]]) -> list[list[Fraction]]:
    """A basis of {w: w_1 row_1 + ... + w_k row_k = 0}, by Gauss's elimination on the transposed matrix."""
    k, p = len(rows), len(rows[0])
    matrix = [[rows[i][j] for i in range(k)] for j in range(p)]
    pivots: list[int] = []
    at = 0
    for column in range(k):
        pivot = next((r for r in range(at, p) if matrix[r][column] != 0), None)
        if pivot is None:
            continue
        matrix[at], matrix[pivot] = matrix[pivot], matrix[at]
        head = matrix[at][column]
        matrix[at] = [x / head for x in matrix[at]]
        for r in range(p):
            if r != at and matrix[r][column] != 0:
                factor = matrix[r][column]
                matrix[r] = [x - factor * y for x, y in zip(matrix[r], matrix[at], strict=True)]
        pivots.append(column)
        at += 1
        if at == p:
            break
    free = [c for c in range(k) if c not in pivots]
    basis = []
    for c in free:
        vector = [Fraction(0)] * k
        vector[c] = Fraction(1)
        for r, column in enumerate(pivots):
            vector[column] = -matrix[r][c]
        basis.append(vector)
    return basis


def escapable(rows: Tensor) -> bool:
    """Some direction improves every task."""
    k, p = rows.shape
    scale = rows.double().abs().max().clamp_min(1e-300)
    data = (rows.double() / scale).numpy()
    return bool(linprog([0.0] * p, A_ub=-data, b_ub=[-1.0] * k, bounds=[(None, None)] * p).status == 0)
