"""Jacobians beside a special position: nearly orthogonal, stationary with lopsided weights, several zero rows."""

from __future__ import annotations

from typing import Any

from mtlverify.strategies import pick as st
from mtlverify.strategies.generic import MAX_PARAMETERS, MAX_TASKS, entries, shape
from mtlverify.strategies.pick import assume


def several_zero_rows(draw: Any) -> list[list[int]]:
    """Two rows at least are zero, and one at least is not: several tasks at their minimum."""
    k, p = draw(st.integers(3, MAX_TASKS)), draw(st.integers(1, MAX_PARAMETERS))
    rows = entries(draw, k, p, -9, 9)
    order = draw(st.permutations(range(k)))
    for i in order[: draw(st.integers(2, k - 1))]:
        rows[i] = [0] * p
    rows[order[-1]][0] = draw(st.integers(1, 9))
    return rows


def aligned_beside_zero(draw: Any) -> list[list[int]]:
    """No conflict (all entries are >= 0), and one or two rows are zero. Not every row is."""
    k, p = draw(st.integers(2, MAX_TASKS)), draw(st.integers(1, MAX_PARAMETERS))
    rows = entries(draw, k, p, 0, 9)
    order = draw(st.permutations(range(k)))
    for i in order[: draw(st.integers(1, min(2, k - 1)))]:
        rows[i] = [0] * p
    assume(any(map(any, rows)))
    return rows


def nearly_orthogonal(draw: Any) -> list[list[int]]:
    """Row i is M at column i plus entries from -2 to 2, M from 10^2 to 10^6: each cosine is at most about 6 / M, of
    either sign, so every pair is nearly, but hardly ever exactly, orthogonal.

    M > 2 (P - 1): the leading block is diagonally dominant, so the rows are independent, and x = (1, ..., 1) has
    J x > 0: they are not stationary."""
    k = draw(st.integers(2, MAX_TASKS))
    p = draw(st.integers(k, MAX_PARAMETERS))
    rows = entries(draw, k, p, -2, 2)
    far = 10 ** draw(st.sampled_from((2, 4, 5, 6)))
    for i in range(k):
        rows[i][i] = far
    return rows


nearly_orthogonal.favours = "spread rows"  # type: ignore[attr-defined]
"""A conflict of cosine 1e-6 harms somebody where one row is 1e5 times as long as another."""


def lopsided(draw: Any) -> list[list[int]]:
    """Strongly stationary with weights of very different size: 2^m_i g_i sum to zero, m_i from 0 to 16.

    The last row is -(2^m_1 g_1 + ... + 2^m_(K-1) g_(K-1)), so (2^m_1, ..., 2^m_(K-1), 1) > 0 is the combination. Its
    entries stay below 5 x 9 x 2^16 < 2^22, exact in float32 too.
    """
    k, p = draw(st.integers(2, 5)), draw(st.integers(1, MAX_PARAMETERS))
    rows = entries(draw, k - 1, p, -9, 9)
    powers = draw(st.lists(st.integers(0, 16), min_size=k - 1, max_size=k - 1))
    rows.append([-sum(row[j] << m for m, row in zip(powers, rows, strict=True)) for j in range(p)])
    return rows


def nearly_antiparallel(draw: Any) -> list[list[int]]:
    """g_1 = M a + e, g_2 = -M a + f with M from 10^2 to 10^5 and small e, f; the other rows are small and free.

    Like :func:`mtlverify.strategies.stationary.nearly`, without a common descent direction by construction: stationary
    or not, both occur."""
    k, p = shape(draw, 2, 2)
    rows = entries(draw, k, p, -3, 3)
    along = draw(st.lists(st.integers(-2, 2), min_size=p, max_size=p))
    far = 10 ** draw(st.integers(2, 5))
    rows[0] = [e + far * a for e, a in zip(rows[0], along, strict=True)]
    rows[1] = [e - far * a for e, a in zip(rows[1], along, strict=True)]
    return rows


def one_giant(draw: Any) -> list[list[int]]:
    """One gradient is 10 to 10^6 times as long as the others."""
    k, p = shape(draw, 2)
    rows = entries(draw, k, p, -9, 9)
    i, far = draw(st.integers(0, k - 1)), 10 ** draw(st.integers(1, 6))
    rows[i] = [far * x for x in rows[i]]
    return rows


def wide(draw: Any) -> list[list[int]]:
    """Up to 64 parameters: more than the other families have."""
    k, p = draw(st.integers(2, MAX_TASKS)), draw(st.sampled_from([13, 32, 64]))
    return entries(draw, k, p, -9, 9)


def large(draw: Any) -> list[list[int]]:
    """7 to 64 tasks with 1 to 64 parameters (deep profile)."""
    return entries(draw, draw(st.integers(7, 64)), draw(st.integers(1, 64)), -9, 9)
