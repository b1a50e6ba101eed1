"""Min-norm and projections by trying every set of active tasks in 60 digits: no solver, no tolerance, few tasks.

References and methods are both held against it, for two float64 programs may share a mistake of float64.
"""

from __future__ import annotations

import itertools

import mpmath as mp
import numpy as np
import pytest
import torch

import mtlcore
from mtlverify.references import known, reference_for

DIGITS = 60
EXACT = mp.mpf(10) ** -25
"""Signs are decided with less; equality in float64 input is not equality of generic numbers."""


def jacobians(seed: int, n: int = 20):
    """Gaussian rows, opposite, duplicate and dependent ones, lengths spread over 1e10, nearly collinear ones."""
    rng = np.random.default_rng(seed)
    for _ in range(n):
        k, p = rng.integers(2, 5), rng.integers(2, 6)
        rows = rng.standard_normal((k, p))
        kind = rng.integers(5)
        if kind == 1:
            rows[1] = rows[0] * rng.choice([1.0, -1.0, 2.5])
        elif kind == 2:
            rows *= 10.0 ** rng.uniform(-5, 5, (k, 1))
        elif kind == 3:
            rows = rows[:, :1] * rows[:1] + 1e-4 * rng.standard_normal((k, p))
        elif kind == 4 and k > 2:
            rows[2] = rows[0] + rows[1]
        yield rows * 10.0 ** rng.uniform(-8, 8)


def min_norm(rows):
    """Of the points where all tasks of a support gain the same, the shortest in the hull."""
    k, a = len(rows), mp.matrix(rows.tolist())
    gram, points = a * a.T, []
    for support in supports(k, least=1):
        n, unit = len(support), max(gram[i, i] for i in support)
        bordered = mp.matrix(n + 1, n + 1)
        for x, i in enumerate(support):
            bordered[x, n] = bordered[n, x] = 1
            for y, j in enumerate(support):
                bordered[x, y] = gram[i, j] / unit
        found = solved(bordered, mp.matrix([0] * n + [1]))
        if found is not None and min(found[x] for x in range(n)) >= -EXACT:
            points.append(sum((found[x] * a[i, :] for x, i in enumerate(support)), a[0, :] * 0))
    return min(points, key=mp.norm)


def mean_projection(rows):
    """UPGrad: each row's nearest point of the cone {x: J x >= 0}, on average."""
    k, a = len(rows), mp.matrix(rows.tolist())
    units = mp.matrix([list(a[i, :] / mp.norm(a[i, :])) for i in range(k)])
    return sum((projected(units, a[j, :]) for j in range(k)), a[0, :] * 0) / k


def projected(units, point):
    """The nearest of the feasible points that come from an active set with multipliers >= 0."""
    gram, pull, found = units * units.T, units * point.T, []
    for active in supports(units.rows, least=0):
        block = mp.matrix([[gram[i, j] for j in active] for i in active]) if active else None
        y = [] if block is None else solved(block, mp.matrix([-pull[i] for i in active]))
        if y is None or any(v < 0 for v in y):
            continue
        x = point + sum((v * units[i, :] for v, i in zip(y, active)), point * 0)
        if min(units * x.T) >= -EXACT * mp.norm(point):
            found.append(x)
    return min(found, key=lambda x: mp.norm(x - point))


def supports(k: int, least: int):
    return itertools.chain.from_iterable(itertools.combinations(range(k), n) for n in range(least, k + 1))


def solved(matrix, right):
    """None for a singular matrix: the answer has a support with independent rows, too."""
    try:
        return mp.lu_solve(matrix, right)
    except (ZeroDivisionError, TypeError):  # mpmath's own ways of saying so
        return None


@pytest.mark.parametrize(("name", "enumerated"), [("mgda", min_norm), ("upgrad", mean_projection)])
def test_reference_and_method_find_what_trying_everything_finds(name, enumerated):
    assert name in known()
    method = mtlcore.create("aggregator", name)
    reference = reference_for(method)
    with mp.workdps(DIGITS):
        for rows in jacobians(seed=1):
            exact = np.array([float(v) for v in enumerated(rows)])
            found = reference(rows, method, np.ones(len(rows)))
            shipped = mtlcore.aggregate(method, torch.from_numpy(rows)).numpy()
            assert np.linalg.norm(found.direction - exact) <= 1e-11 * found.size, rows
            # The method sees the Gramian only, which has lost what is below sqrt(eps) of nearly dependent rows.
            assert np.linalg.norm(shipped - exact) <= 1e-8 * found.size, rows


def test_trying_everything_tells_a_wrong_answer():
    rows = np.array([[4.0, 0.0], [-1.0, 1.0]])
    with mp.workdps(DIGITS):
        assert [float(v) for v in min_norm(rows)] == pytest.approx([2 / 13, 10 / 13])
        # g_1' = (2, 2), g_2' = (0, 1), halved.
        assert [float(v) for v in mean_projection(rows)] == pytest.approx([1.0, 1.5])
