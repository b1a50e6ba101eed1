"""Jacobians without a special position, and aligned ones.

Each family draws an integer matrix of K = 1 to 6 rows (``many``: more) and P = 1 to 8 columns as a list of rows.
"""

from __future__ import annotations

from typing import Any

from mtlverify.strategies import pick as st
from mtlverify.strategies.pick import assume

MAX_TASKS = 6
MAX_PARAMETERS = 8


def entries(draw: Any, k: int, p: int, low: int, high: int) -> list[list[int]]:
    """A K x P matrix of integers in [low, high], in one draw (cheap, and shrinks entry by entry)."""
    flat = draw(st.lists(st.integers(low, high), min_size=k * p, max_size=k * p))
    return [flat[i * p : (i + 1) * p] for i in range(k)]


def shape(draw: Any, min_tasks: int = 1, min_parameters: int = 1) -> tuple[int, int]:
    """K and P, each from its own range."""
    return draw(st.integers(min_tasks, MAX_TASKS)), draw(st.integers(min_parameters, MAX_PARAMETERS))


def small(draw: Any) -> list[list[int]]:
    """Entries in -3..3: exact ties, orthogonal and repeated rows, everything that a measure-zero argument forgets."""
    return entries(draw, *shape(draw, 2, 2), -3, 3)


def gaussian(draw: Any) -> list[list[int]]:
    """Each entry is the sum of three uniform integers in -33..33: bell-shaped, symmetric, almost surely no ties."""
    k, p = shape(draw, 2)
    flat = draw(st.lists(st.integers(-33, 33), min_size=3 * k * p, max_size=3 * k * p))
    return [[sum(flat[3 * (i * p + j) : 3 * (i * p + j) + 3]) for j in range(p)] for i in range(k)]


def opposed(draw: Any) -> list[list[int]]:
    """Every pair of different tasks disagrees in the first coordinate at least: row i is +-(large, small, ...), signs
    alternating. <g_i, g_j> <= -a b + (P - 1) 9 < 0 for neighbours, because a, b >= 10 and P <= 8 give a b >= 100 > 63.
    """
    k, p = shape(draw, 2)
    rows = entries(draw, k, p, -3, 3)
    for i, row in enumerate(rows):
        row[0] = draw(st.integers(10, 99)) * (-1) ** i
    return rows


def single_task(draw: Any) -> list[list[int]]:
    """K = 1: the row itself is the only sensible direction."""
    return entries(draw, 1, draw(st.integers(1, MAX_PARAMETERS)), -9, 9)


def tall(draw: Any) -> list[list[int]]:
    """K > P: rank at most P < K, so the rows are linearly dependent."""
    p = draw(st.integers(1, MAX_TASKS - 1))
    return entries(draw, draw(st.integers(p + 1, MAX_TASKS)), p, -9, 9)


def independent(draw: Any) -> list[list[int]]:
    """Linearly independent rows, well conditioned: 9 on the diagonal of the first K columns, |entries| <= 1 elsewhere.

    The leading K x K block is strictly diagonally dominant (9 > K - 1), hence regular.
    """
    k = draw(st.integers(2, MAX_TASKS))
    p = draw(st.integers(k, MAX_PARAMETERS))
    rows = entries(draw, k, p, -1, 1)
    for i in range(k):
        rows[i][i] = 9
    return rows


def many(draw: Any) -> list[list[int]]:
    """More tasks than any other family has: 7 to 40, and up to 8 parameters."""
    return entries(draw, draw(st.sampled_from([7, 11, 17, 40])), draw(st.integers(2, MAX_PARAMETERS)), -9, 9)


def aligned(draw: Any) -> list[list[int]]:
    """No conflict: all entries are >= 0, so all inner products are >= 0. No row is zero."""
    rows = entries(draw, *shape(draw), 0, 9)
    assume(all(any(row) for row in rows))
    return rows


def orthogonal(draw: Any) -> list[list[int]]:
    """Row i has its only entry in column i: all inner products of different rows are exactly 0."""
    k = draw(st.integers(2, MAX_TASKS))
    p = draw(st.integers(k, MAX_PARAMETERS))
    return [[draw(st.integers(1, 9)) if i == j else 0 for j in range(p)] for i in range(k)]
