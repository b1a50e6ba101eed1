"""Priority-constrained descent as a least distance program, turned into nonnegative least squares. [Lawson & Hanson
1974, chapter 23; the problem: PCD (TMLR 2026), as TorchJD documents it]"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import nnls

from mtlverify.references import Array, NoUniqueAnswer, Solution, reference


def multipliers(a: Array, b: Array) -> Array:
    """y >= 0 with x = A'y, the shortest x with A x >= b.

    With the residual r of min |(A'; b') y - (0; 1)| over y >= 0 it is x = -r_1 / r_2. r = 0 where there is no such x,
    and |r|^2 = 1 / (1 + |x|^2) otherwise.
    """
    if not len(b) or b.max() <= 0.0:
        return np.zeros(len(b))
    target = np.append(np.zeros(a.shape[1]), 1.0)
    system = np.vstack([a.T, b])
    found = nnls(system, target, maxiter=100 * len(b))[0]
    rest = target - system @ found
    if float(rest @ rest) < 1e-8:
        raise NoUniqueAnswer("the constraints are all but infeasible: the answer jumps there")
    return np.asarray(found / rest[-1])


def covers(plugin: Any) -> bool:
    """Without a memory. (The primary task is known by its place: the reference wants all tasks.)"""
    return bool(plugin.beta == 0.0)


@reference("pcd")
def pcd(rows: Array, plugin: Any) -> Solution:
    """Without a memory the moving averages are the squared lengths, so the rows are unit rows."""
    norms = np.linalg.norm(rows, axis=1)
    if norms[plugin.primary] == 0.0:
        return Solution(np.zeros(rows.shape[1]), 0.0)
    alive = (norms > 0.0) & (np.arange(len(rows)) != plugin.primary)
    first, units = rows[plugin.primary] / norms[plugin.primary], rows[alive] / norms[alive, None]
    taus = np.full(len(rows), plugin.tau) if plugin.taus is None else np.array(plugin.taus)
    least = taus[alive] - units @ first
    y = multipliers(units, least)
    direction = first + units.T @ y
    length, size = float(np.linalg.norm(direction)), 1.0 + float(y.sum())
    if length < 1e-6:
        raise NoUniqueAnswer("the direction is zero before it is normalised")
    slack = units @ (units.T @ y) - least
    violation = float(np.where(y > 0.0, np.abs(slack), np.maximum(-slack, 0.0)).max(initial=0.0))
    scale = float(norms[plugin.primary]) / length
    distance = 2.0 * scale * float(np.sqrt(2.0 * violation * size))
    return Solution(direction * scale, size * scale, violation / size, distance).accepted()
