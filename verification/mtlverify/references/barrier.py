"""FairGrad and Nash-MTL: G w = w^(-1/alpha) entry by entry, the optimality condition of a convex barrier program.
[Ban & Ji 2024 (2402.15638); Navon et al. 2022 (2202.01017) is alpha = 1]"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from mtlverify.references import Array, NoUniqueAnswer, ReferenceFailed, Solution, damped_newton, programs, reference
from mtlverify.references.min_norm import min_norm
from mtlverify.references.rows import UnitRows, unit_rows

STATIONARY = 1e-4
"""Unit gradients whose hull comes this near to 0 have no solution, or one of length 1 / STATIONARY that no two solvers
agree upon to six digits."""


@reference("nash-mtl")
def nash_mtl(rows: Array, plugin: Any) -> Solution:
    """alpha = 1: G w = 1 / w."""
    return barrier(rows, 1.0)


@reference("fairgrad")
def fairgrad(rows: Array, plugin: Any) -> Solution:
    """alpha-fair utilities of the tasks' gains."""
    return barrier(rows, float(plugin.alpha))


def covers(plugin: Any) -> bool:
    """The plain solution: no clipping, no factor, no weights reused from earlier steps."""
    plain = getattr(plugin, "max_norm", None) is None and getattr(plugin, "outer_scale", "one") == "one"
    return plain and getattr(plugin, "update_every", 1) == 1


def barrier(rows: Array, alpha: float) -> Solution:
    """With b = w |g| the condition is (C b)_i = s_i b_i^(-1/alpha), s_i = |g_i|^(1/alpha - 1): the minimum of
    1/2 |U'b|^2 + sum_i s_i phi(b_i), phi' = -b^(-1/alpha). By a conic program (Clarabel), then Newton's method in
    log b; where 16 digits do not do, by :mod:`.damped_newton`.

    The residual is the largest |log| of a ratio of the two sides, a relative error.
    """
    if not rows.any(axis=1).all():
        raise NoUniqueAnswer("a zero gradient gains nothing from any direction: the barrier has no minimum")
    given = unit_rows(rows)
    if float(np.linalg.norm(min_norm(given.units).direction)) < STATIONARY:
        raise NoUniqueAnswer("the gradients are Pareto-stationary: the barrier has no minimum")
    # w -> w s^(-alpha / (1 + alpha)) when G -> s G: take the geometric mean of the norms as the unit of length.
    log_unit = float(np.log(given.norms).mean())
    log_pull = (1.0 / alpha - 1.0) * (np.log(given.norms) - log_unit)
    try:
        found = by_cone_program(given, log_pull, alpha)
    except ReferenceFailed:
        found = damped_newton.minimum(given.units, log_pull, alpha)
    # In that unit d is U'b; then d scales as unit^((1 - alpha) / (1 + alpha)).
    back = float(np.exp(log_unit * (1.0 - alpha) / (1.0 + alpha)))
    return Solution(back * found.direction, back * found.size, found.residual).accepted()


def by_cone_program(given: UnitRows, log_pull: Array, alpha: float) -> Solution:
    """Power (or exponential) cones; accurate where the gains are more than the rounding of their summands.

    Raises:
        ReferenceFailed: the solver broke off, or what it found does not satisfy the condition.
    """
    problem, root, factors, b = _program(len(log_pull), alpha)
    root.value, factors.value = given.square_root, np.exp(log_pull)
    programs.solve(problem)
    with np.errstate(all="ignore"):  # what overflows is not accepted
        y = _newton(given.units, log_pull, alpha, np.log(np.maximum(b.value, 1e-300)))
        best = np.exp(y)
        residual = float(np.abs(_condition(given.units, log_pull, alpha, y)).max())
    return Solution(given.units.T @ best, float(best.sum()), residual).accepted()


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


def _condition(units: Array, log_pull: Array, alpha: float, y: Array) -> Array:
    """log of (C b)_i b_i^(1/alpha) / s_i, zero at the solution; relative by construction."""
    gains: Array = units @ (units.T @ np.exp(y))
    return np.asarray(np.log(np.maximum(gains, 1e-300)) + y / alpha - log_pull)


def _newton(units: Array, log_pull: Array, alpha: float, y: Array) -> Array:
    """Newton on the condition, halving steps that do not help."""
    gram = units @ units.T
    for _ in range(60):
        value = _condition(units, log_pull, alpha, y)
        size = float(np.abs(value).max())
        if size < 1e-14 or not np.isfinite(size):
            break
        b = np.exp(y)
        slope = gram * b / np.maximum(gram @ b, 1e-300)[:, None] + np.eye(len(y)) / alpha
        if not np.isfinite(slope).all():
            break
        move = np.linalg.lstsq(slope, -value, rcond=None)[0]
        steps = [y + move * 0.5**k for k in range(12)]
        better = [s for s in steps if float(np.abs(_condition(units, log_pull, alpha, s)).max()) < size]
        if not better:
            break
        y = better[0]
    return y
