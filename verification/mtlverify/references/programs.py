"""Compiled cvxpy programs, one per number of rows, solved by Clarabel."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np

from mtlcore.errors import MissingExtraError
from mtlverify.references import Array, ReferenceFailed

PRECISE = {"tol_gap_abs": 1e-12, "tol_gap_rel": 1e-12, "tol_feas": 1e-12, "max_iter": 200}


def cvxpy() -> Any:
    """The package, or the error with the pip line."""
    try:
        import cvxpy as cp
    except ImportError as error:
        raise MissingExtraError("cvxpy", "verify", "Solving the exact reference programs") from error
    return cp


def solve(problem: Any) -> None:
    """Solve to the last digit that Clarabel can get. Whether that is enough is decided by the residual afterwards."""
    cp = cvxpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "solution may be inaccurate": the optimality residual is measured anyway
        try:
            problem.solve(solver=cp.CLARABEL, **PRECISE)
        except cp.error.SolverError as error:
            raise ReferenceFailed(f"Clarabel: {error}") from error
    if problem.status not in (cp.OPTIMAL, cp.OPTIMAL_INACCURATE):
        raise ReferenceFailed(f"Clarabel: {problem.status}")


@functools.cache
def nonnegative_least_squares(k: int) -> tuple[Any, Any, Any, Any]:
    """min |R y + x|^2 over y >= 0: problem, R, x, y. Its residual R y + x is the projection of x onto {z: R'z >= 0}."""
    cp = cvxpy()
    root, point, y = cp.Parameter((k, k)), cp.Parameter(k), cp.Variable(k, nonneg=True)
    return cp.Problem(cp.Minimize(cp.sum_squares(root @ y + point))), root, point, y


@functools.cache
def nearest_in_simplex(k: int) -> tuple[Any, Any, Any, Any]:
    """min |R y|^2 over y >= 0, <a, y> = 1: problem, R, a, y."""
    cp = cvxpy()
    root, cost, y = cp.Parameter((k, k)), cp.Parameter(k, nonneg=True), cp.Variable(k, nonneg=True)
    return cp.Problem(cp.Minimize(cp.sum_squares(root @ y)), [cost @ y == 1]), root, cost, y


def run(program: tuple[Any, Any, Any, Any], first: Array, second: Array) -> Array:
    """Fill in the two parameters, solve, return the variable."""
    problem, a, b, y = program
    a.value, b.value = first, second
    solve(problem)
    return np.maximum(np.asarray(y.value, dtype=np.float64), 0.0)
