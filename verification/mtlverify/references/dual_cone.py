"""Projections onto the dual cone {x: J x >= 0} of the directions that harm no task. [Quinton & Rey 2024, Prop. 1]"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
from scipy.optimize import nnls

from mtlverify.references import Array, ReferenceFailed, Solution, programs, reference
from mtlverify.references.rows import UnitRows, unit_rows


def covers(plugin: Any) -> bool:
    """Equal preferences."""
    return getattr(plugin, "preferences", None) is None


@reference("upgrad")
def upgrad(rows: Array, plugin: Any) -> Solution:
    """The mean of the K projected gradients; projections commute with positive scaling, so unit rows are used."""
    if not rows.any():
        return Solution(np.zeros(rows.shape[1]), 0.0)
    given = unit_rows(rows)
    parts = [project(given, unit) for unit in given.units]
    shares = given.norms / len(rows)
    return Solution(
        direction=sum(s * p.direction for s, p in zip(shares, parts, strict=True)),
        size=float(sum(s * p.size for s, p in zip(shares, parts, strict=True))),
        residual=max(p.residual for p in parts),
        distance=float(sum(s * p.distance for s, p in zip(shares, parts, strict=True))),
    ).accepted()


@reference("dualproj")
def dualproj(rows: Array, plugin: Any) -> Solution:
    """The projection of the mean gradient."""
    if not rows.any():
        return Solution(np.zeros(rows.shape[1]), 0.0)
    given = unit_rows(rows)
    mean = rows.mean(axis=0)
    length = float(np.linalg.norm(mean))
    if length == 0:
        return Solution(mean, float(given.norms.sum()) / len(rows))
    found = project(given, mean / length)
    size = length * found.size + float(given.norms.sum()) / len(rows)
    return Solution(length * found.direction, size, found.residual, length * found.distance).accepted()


def project(given: UnitRows, point: Array) -> Solution:
    """z = point + U'y with y = argmin |point + U'y| over y >= 0, for a point of length 1.

    Optimal exactly when U z >= 0, y >= 0 and y_i <u_i, z> = 0. If these hold up to e, then for the true projection z*,
    |z - z*|^2 <= e (|y|_1 + |y*|_1), and |y*|_1 is about |y|_1.
    """
    basis, _ = np.linalg.qr(given.units.T)  # orthonormal basis of the row space; the rest of the point is untouched
    k = len(given.units)
    root, target = np.zeros((k, k)), np.zeros(k)
    inside = basis.T @ point
    root[: basis.shape[1]], target[: basis.shape[1]] = basis.T @ given.units.T, inside
    # Lawson-Hanson is exact where its active set is right, an interior point near it always: the better one is kept.
    candidates = [nnls(given.units.T, -point, maxiter=100 * k)[0]]
    with contextlib.suppress(ReferenceFailed):  # whether the active set alone is right is measured below
        candidates.append(programs.run(programs.nonnegative_least_squares(k), root, target))
    near = candidates[-1]
    for cut in (1e-9, 1e-7, 1e-5, 1e-3):
        support = np.flatnonzero(near > cut)
        polished = np.zeros(k)
        if len(support):
            polished[support] = np.linalg.lstsq(given.units[support].T, -point, rcond=1e-13)[0]
        if (polished >= 0).all():
            candidates.append(polished)
    best = min(candidates, key=lambda y: _violation(given.units, point, y))
    violation, size = _violation(given.units, point, best), 1.0 + float(best.sum())
    return Solution(
        direction=point + given.units.T @ best,
        size=size,
        residual=violation / size,
        distance=float(np.sqrt(2.0 * violation * size)),
    )


def _violation(units: Array, point: Array, y: Array) -> float:
    slack = units @ (point + units.T @ y)
    return float(np.where(y > 0, np.abs(slack), np.maximum(-slack, 0.0)).max())
