"""Jacobians at the edge of what the formulas allow: dependent, repeated, opposite, vanishing rows."""

from __future__ import annotations

from typing import Any

from mtlverify.strategies import pick as st
from mtlverify.strategies.generic import MAX_TASKS, entries, shape


def rank_deficient(draw: Any) -> list[list[int]]:
    """J = A B with A (K, r), B (r, P), r < min(K, P): the rank is at most r, the rows are dependent."""
    k, p = shape(draw, 2, 2)
    r = draw(st.integers(1, min(k, p) - 1))
    a, b = entries(draw, k, r, -5, 5), entries(draw, r, p, -5, 5)
    return [[sum(a[i][m] * b[m][j] for m in range(r)) for j in range(p)] for i in range(k)]


def near_collinear(draw: Any) -> list[list[int]]:
    """g_i = +-M b + e_i with |e_i| <= 3 per entry and M from 10 to 10^5, b having a 1 in its first coordinate.

    |b| >= 1 and |e_i| <= 3 sqrt(P) give an angle to the line of b of at most arcsin(3 sqrt(P) / M). M stops at 10^5:
    beyond, the Gramian's second eigenvalue, about 1 / M^2, reaches the rounding of float64, and "rank" has no answer.
    """
    k, p = shape(draw, 2, 2)
    base = [1, *draw(st.lists(st.integers(-3, 3), min_size=p - 1, max_size=p - 1))]
    far = 10 ** draw(st.integers(1, 5))
    signs = draw(st.lists(st.sampled_from([1, -1]), min_size=k, max_size=k))
    small = entries(draw, k, p, -3, 3)
    return [[s * far * b + e for b, e in zip(base, row, strict=True)] for s, row in zip(signs, small, strict=True)]


def antiparallel(draw: Any) -> list[list[int]]:
    """The second row is -m times the first, m >= 1: stationary with weights (m, 1, 0, ...); the others are free."""
    k, p = shape(draw, 2)
    rows = entries(draw, k, p, -9, 9)
    times = draw(st.integers(1, 9))
    rows[1] = [-times * x for x in rows[0]]
    return rows


def duplicate_rows(draw: Any) -> list[list[int]]:
    """The last row repeats an earlier one. (Row scales, if any, turn a copy into a positive multiple.)"""
    k, p = shape(draw, 2)
    rows = entries(draw, k, p, -9, 9)
    rows[-1] = list(rows[draw(st.integers(0, k - 2))])
    return rows


def equal_norms(draw: Any) -> list[list[int]]:
    """All rows are as long as the first: its entries in another order, with other signs. Sums of squares of integers
    are exact in every order, so the norms are equal to the last bit: which gradient is the smallest is a tie.

    The last row is minus the first, so that the mean, if it harms one of them, does not harm the other: <-g, g_0> =
    -<g, g_0>. Whoever takes "the smallest" for one task takes either.
    """
    k, p = shape(draw, 3, 2)
    base = entries(draw, 1, p, 1, 9)[0]
    rows = [base]
    for _ in range(k - 1):
        order, signs = draw(st.permutations(range(p))), draw(st.lists(st.sampled_from([1, -1]), min_size=p, max_size=p))
        rows.append([sign * base[j] for j, sign in zip(order, signs, strict=True)])
    rows[-1] = [-x for x in base]
    return rows


def circulant(draw: Any) -> list[list[int]]:
    """Every row is the first, its entries moved on in a circle (K = P): <g_i, g_j> is a function of i - j alone. No
    task is special: norms, angles, gains under the mean, and what else inner products tell, are ties to the last bit.
    """
    k = draw(st.integers(2, MAX_TASKS))
    base = [draw(st.integers(4, 9)), *entries(draw, 1, k - 1, -3, 3)[0]]
    return [base[k - i :] + base[: k - i] for i in range(k)]


def one_zero_row(draw: Any) -> list[list[int]]:
    """One row is zero: a task at its minimum. Stationary with all weight on that row."""
    k, p = shape(draw)
    rows = entries(draw, k, p, -9, 9)
    rows[draw(st.integers(0, k - 1))] = [0] * p
    return rows


def all_zero(draw: Any) -> list[list[int]]:
    """J = 0."""
    k, p = shape(draw)
    return [[0] * p for _ in range(k)]
