"""Directions at equal angles to all gradients: IMTL-G and ConFIG.
[Liu et al. 2021 (IMTL), equation 3; Liu et al. 2024 (2408.11104), ConFIG]"""

from __future__ import annotations

from typing import Any

import numpy as np

from mtlverify.references import Array, NoUniqueAnswer, Solution, reference
from mtlverify.references.rows import UnitRows, unit_rows

DEPENDENT = 1e-6
"""Unit rows with a smaller singular value are not told from dependent ones by a method that sees the Gramian, whose
eigenvalues are the squares; for those, "equal angles" has no unique direction."""


def covers(plugin: Any) -> bool:
    """Equal preferences, and ConFIG's own length."""
    return getattr(plugin, "preferences", None) is None and getattr(plugin, "length", "projection") == "projection"


@reference("config")
def config(rows: Array, plugin: Any) -> Solution:
    """d = (sum_i <g_i, x>) x, x the unit vector along the least-squares solution of <u_i, x> = 1 for all i."""
    given = _independent(rows)
    x = _bisector(given)
    unit = x / np.linalg.norm(x)
    return Solution(float(given.norms @ (given.units @ unit)) * unit, float(given.norms.sum()))


@reference("imtl-g")
def imtl_g(rows: Array, plugin: Any) -> Solution:
    """The combination of the gradients with weights summing to 1 whose projections on all u_i are equal.

    d = t x with <u_i, x> = 1, x = U'b; the weights t b_i / |g_i| sum to 1, which fixes t. The sum may vanish.
    """
    given = _independent(rows)
    x = _bisector(given)
    b = np.linalg.lstsq(given.units.T, x, rcond=None)[0]
    total, magnitude = float((b / given.norms).sum()), float((np.abs(b) / given.norms).sum())
    if abs(total) < DEPENDENT * magnitude:
        raise NoUniqueAnswer("the weights sum to zero: no multiple of them sums to 1")
    return Solution(x / total, float(np.abs(b).sum()) / abs(total))


def _bisector(given: UnitRows) -> Array:
    x, *_ = np.linalg.lstsq(given.units, np.ones(len(given.units)), rcond=None)
    return np.asarray(x)


def _independent(rows: Array) -> UnitRows:
    if not rows.any(axis=1).all():
        raise NoUniqueAnswer("a zero gradient has no angle")
    given = unit_rows(rows)
    k, p = given.units.shape
    if k > p or np.linalg.svd(given.units, compute_uv=False).min() < DEPENDENT:
        raise NoUniqueAnswer("the gradients are linearly dependent: no direction at equal angles, or many")
    return given
