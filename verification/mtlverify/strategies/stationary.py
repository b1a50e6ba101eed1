"""Jacobians that are, or are not, Pareto-stationary by construction.

J is Pareto-stationary when some w >= 0, w != 0, has J^T w = 0; *strongly* when some w > 0 does; *weakly* when it is
stationary but not strongly. By Gordan's alternative J is not stationary exactly when some x has J x > 0. All three
are kept by positive row scales s: (w_i / s_i) takes the place of w_i, and J x > 0 keeps its sign.
"""

from __future__ import annotations

from typing import Any

from mtlverify.strategies import pick as st
from mtlverify.strategies.generic import MAX_PARAMETERS, entries


def strongly(draw: Any) -> list[list[int]]:
    """The last row is -(w_1 g_1 + ... + w_{K-1} g_{K-1}) with integers w_i >= 1, so J^T (w, 1) = 0 and (w, 1) > 0."""
    k, p = draw(st.integers(2, 5)), draw(st.integers(1, MAX_PARAMETERS))
    rows = entries(draw, k - 1, p, -9, 9)
    weights = draw(st.lists(st.integers(1, 5), min_size=k - 1, max_size=k - 1))
    rows.append([-sum(w * row[j] for w, row in zip(weights, rows, strict=True)) for j in range(p)])
    return rows


def weakly(draw: Any) -> list[list[int]]:
    """A strongly stationary block with first coordinate 0, and further rows with first coordinate >= 1.

    Stationary: the block's weights, and 0 for the others. Not strongly: the first coordinate of J^T w is the sum of
    w_i times numbers >= 1 over the further rows, so J^T w = 0 with w >= 0 forces w_i = 0 there.
    """
    block = [[0, *row] for row in strongly(draw)]
    others = entries(draw, draw(st.integers(1, 2)), len(block[0]), -9, 9)
    for row in others:
        row[0] = draw(st.integers(1, 9))
    return block + others


def escapable(draw: Any) -> list[list[int]]:
    """Not stationary: column j has entries >= 1 in every row, so x = e_j gives J x > 0. Other entries are free, so
    conflicts are frequent."""
    k, p = draw(st.integers(2, 6)), draw(st.integers(1, MAX_PARAMETERS))
    rows = entries(draw, k, p, -9, 9)
    j = draw(st.integers(0, p - 1))
    for row in rows:
        row[j] = abs(row[j]) + 1
    return rows


def nearly(draw: Any) -> list[list[int]]:
    """Not stationary, but nearly: g_1 = M a + e_1, g_2 = -M a + e_2, the other rows e_i, M from 10^2 to 10^5.
    In the first coordinate a is 0 and e is 1 to 9, in the others |a| <= 9, |e| <= 99.

    J x > 0 for x = the first unit vector. Yet (g_1 + g_2) / 2, and the mean, are about M / 100 times shorter than g_1.
    A method that takes what is short for zero, or stops early, goes wrong here.
    """
    k, p = draw(st.integers(2, 5)), draw(st.integers(2, MAX_PARAMETERS))
    rows = [[draw(st.integers(1, 9)), *row] for row in entries(draw, k, p - 1, -99, 99)]
    along = [0, draw(st.integers(1, 9)), *draw(st.lists(st.integers(-9, 9), min_size=p - 2, max_size=p - 2))]
    far = 10 ** draw(st.integers(2, 5))
    rows[0] = [e + far * a for e, a in zip(rows[0], along, strict=True)]
    rows[1] = [e - far * a for e, a in zip(rows[1], along, strict=True)]
    return rows
