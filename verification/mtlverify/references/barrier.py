"""FairGrad and Nash-MTL: G w = w^(-1/alpha) entry by entry, the optimality condition of a convex barrier program.
[Ban & Ji 2024 (2402.15638); Navon et al. 2022 (2202.01017) is alpha = 1]"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from mtlverify.references import Array, NoUniqueAnswer, ReferenceFailed, Solution, programs
from mtlverify.references.min_norm import min_norm
from mtlverify.references.rows import unit_rows

STATIONARY = 1e-4
"""Unit gradients whose hull comes this near to 0 have no solution, or one of length 1 / STATIONARY that no two solvers
agree upon to six digits."""


def nash_mtl(rows: Array, plugin: Any) -> Solution:
    """alpha = 1: G w = 1 / w."""
    return barrier(rows, 1.0)


def fairgrad(rows: Array, plugin: Any) -> Solution:
    """alpha-fair utilities of the tasks' gains."""
    return barrier(rows, float(plugin.alpha))


def covers(plugin: Any) -> bool:
    """The plain solution: no clipping, no weights reused from earlier steps."""
    return getattr(plugin, "max_norm", None) is None and getattr(plugin, "update_every", 1) == 1


def barrier(rows: Array, alpha: float) -> Solution:
    """With b = w |g| the condition is (C b)_i = s_i b_i^(-1/alpha), s_i = |g_i|^(1/alpha - 1): the minimum of
    1/2 |U'b|^2 + sum_i s_i phi(b_i), phi' = -b^(-1/alpha). Solved by Clarabel, then by Newton's method in log b.
    """
    if not rows.any(axis=1).all():
        raise NoUniqueAnswer("a zero gradient gains nothing from any direction: the barrier has no minimum")
    given = unit_rows(rows)
    if float(np.linalg.norm(min_norm(given.units).direction)) < STATIONARY:
        raise NoUniqueAnswer("the gradients are Pareto-stationary: the barrier has no minimum")
    # w -> w s^(-alpha / (1 + alpha)) when G -> s G: take the geometric mean of the norms as the unit of length.
    unit = float(np.exp(np.log(given.norms).mean()))
    pull = (given.norms / unit) ** (1.0 / alpha - 1.0)
    problem, root, factors, b = _program(len(rows), alpha)
    root.value, factors.value = given.square_root, pull
    try:
        programs.solve(problem)
        start = np.log(np.maximum(b.value, 1e-300))
    except ReferenceFailed:
        # Too wide a spread of ``pull`` for the power cones: start from what is exact for orthogonal gradients.
        start = np.log(pull) / (1.0 + 1.0 / alpha)
    y = _newton(given.units, pull, alpha, start)
    residual = float(np.abs(_condition(given.units, pull, alpha, y)).max())
    # In units of `unit`, d is U'b; then d scales as unit^((1 - alpha) / (1 + alpha)).
    b_best = np.exp(y)
    back = unit ** ((1.0 - alpha) / (1.0 + alpha))
    return Solution(back * (given.units.T @ b_best), back * float(b_best.sum()), residual).accepted()


@functools.cache
def _program(k: int, alpha: float) -> tuple[Any, ...]:
    cp = programs.cvxpy()
    root, pull, b = cp.Parameter((k, k)), cp.Parameter(k, nonneg=True), cp.Variable(k)
    if alpha == 1.0:
        fairness = pull @ cp.log(b)
    else:
        power = 1.0 - 1.0 / alpha
        fairness = pull @ cp.power(b, power) / power
    return cp.Problem(cp.Minimize(cp.sum_squares(root @ b) / 2 - fairness)), root, pull, b


def _condition(units: Array, pull: Array, alpha: float, y: Array) -> Array:
    """log of (C b)_i b_i^(1/alpha) / s_i, zero at the solution; relative by construction."""
    gains = units @ (units.T @ np.exp(y))
    return np.log(np.maximum(gains, 1e-300)) + y / alpha - np.log(pull)


def _newton(units: Array, pull: Array, alpha: float, y: Array) -> Array:
    """Newton on the condition, halving steps that do not help."""
    gram = units @ units.T
    for _ in range(60):
        value = _condition(units, pull, alpha, y)
        size = float(np.abs(value).max())
        if size < 1e-14:
            break
        b = np.exp(y)
        slope = gram * b / np.maximum(gram @ b, 1e-300)[:, None] + np.eye(len(y)) / alpha
        move = np.linalg.lstsq(slope, -value, rcond=None)[0]
        steps = [y + move * 0.5**k for k in range(12)]
        better = [s for s in steps if float(np.abs(_condition(units, pull, alpha, s)).max()) < size]
        if not better:
            break
        y = better[0]
    return y
