"""GradOPS by orthonormal bases: a conflicting gradient loses its part in the span of all others. [Zhu et al. 2025]"""

from __future__ import annotations

from typing import Any

import numpy as np

from mtlverify.references import Array, Solution, reference
from mtlverify.references.dual_cone import project
from mtlverify.references.rows import unit_rows

RANK = 1e-9
"""A direction of the others' span counts if its singular value exceeds this (unit rows)."""


def covers(plugin: Any) -> bool:
    """Uniform weights, no rescaling."""
    return plugin.alpha == 0.0 and plugin.weights is None and not plugin.rescale


@reference("gradops")
def gradops(rows: Array, plugin: Any) -> Solution:
    """d = sum_i g_i'. If all that is left of the projected gradients is negligible (the stall), each gradient is
    projected onto the dual cone instead [choice of the method's author here, see its docstring]."""
    given = unit_rows(rows)
    units, k = given.units, len(given.units)
    if k == 0:
        return Solution(np.zeros(rows.shape[1]), 0.0)
    cosines = units @ units.T
    conflicting = (cosines < -(2.0**-50) * k).any(axis=1) | (plugin.project == "always")
    left = np.array([remainder(units, i) if conflicting[i] else units[i] for i in range(k)])
    longest = float(np.linalg.norm(left, axis=1).max())
    if conflicting.any() and plugin.fallback and longest < plugin.stall:
        parts = [project(given, u) for u in units]
        left = np.array([p.direction for p in parts])
        size = float(given.norms @ [p.size for p in parts])
        worst = max(p.residual for p in parts)
        distance = float(given.norms @ [p.distance for p in parts])
        return Solution(given.norms @ left, size, worst, distance).accepted()
    return Solution(given.norms @ left, float(given.norms.sum()))


def remainder(units: Array, i: int) -> Array:
    """u_i minus its projection onto span{u_j, j != i}, by an orthonormal basis; projected twice against rounding."""
    others = np.delete(units, i, axis=0)
    if not len(others):
        return units[i]
    _, values, basis = np.linalg.svd(others, full_matrices=False)
    basis = basis[values > RANK]
    once = units[i] - basis.T @ (basis @ units[i])
    return once - basis.T @ (basis @ once)
