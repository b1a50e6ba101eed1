"""The barrier program in 250 digits: slow (a tenth of a second), and no row defeats it.

F(b) = 1/2 b'Cb + sum_i s_i phi(b_i) with phi' = -b^-p is strictly convex on b > 0 and, where the rows are not
Pareto-stationary, has a minimum; Newton's method that goes on until F falls enough (Armijo) and never leaves b > 0
converges to it from everywhere (textbook). A b_i that is too small grows by a factor 1 + 1/p per step, one that
is too large falls by 100, so even a hundred decades are a hundred steps.

Why more than 16 digits: at the solution a gain (C b)_i equals s_i b_i^-p. With rows 1e16 apart and alpha = 0.1 that may
be 1e-138 of the terms it is the sum of. float64 has nothing left of it, although d = U'b hardly depends on it, and the
line search sees no F in it at all.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mtlcore.errors import MissingExtraError
from mtlverify.references import Array, ReferenceFailed, Solution

DIGITS = 250
SOLVED = 1e-20
"""Relative error of the gains that ends the iteration; it converges quadratically, so this costs one step."""
LIMIT = 1000
"""Steps; rows spread over 16 decades took at most 120 with alpha from 0.1 to 10 [measured]."""


def minimum(units: Array, log_pull: Array, alpha: float) -> Solution:
    """For unit rows (k, P) that are not Pareto-stationary and log s (k,). The residual is the largest
    |log (C b)_i - log s_i b_i^-p|, the relative error of the optimality conditions.

    Raises:
        ReferenceFailed: not converged in LIMIT steps.
    """
    mp = _mpmath()
    with mp.workdps(DIGITS):
        rows = mp.matrix(units.tolist())
        gram, pull, p = rows * rows.T, [mp.exp(x) for x in log_pull.tolist()], 1 / mp.mpf(alpha)
        b = mp.matrix([s ** (1 / (1 + p)) for s in pull])  # exact for orthogonal rows
        for _ in range(LIMIT):
            gains = gram * b
            wanted = mp.matrix([s * x**-p for s, x in zip(pull, b, strict=True)])
            residual = max(abs(mp.log(g / w)) if g > 0 else mp.inf for g, w in zip(gains, wanted, strict=True))
            if residual <= SOLVED:
                direction = rows.T * b
                return Solution(np.array([float(x) for x in direction]), float(sum(b)), float(residual))
            hessian = gram + mp.diag([p * w / x for w, x in zip(wanted, b, strict=True)])
            move = mp.lu_solve(hessian, wanted - gains)
            b = b + _stride(mp, gram, pull, p, b, move, gains - wanted) * move
        raise ReferenceFailed(f"the barrier's minimum was not reached in {LIMIT} steps: residual {float(residual):.2g}")


def _stride(mp: Any, gram: Any, pull: list[Any], p: Any, b: Any, move: Any, gradient: Any) -> Any:
    """At most 1, at most 99 % of the way to the boundary, and F falls by a tenth of what its slope promises."""
    here, slope = _value(mp, gram, pull, p, b), (gradient.T * move)[0]
    stride = min([mp.mpf(1), *(mp.mpf("0.99") * x / -m for x, m in zip(b, move, strict=True) if m < 0)])
    while _value(mp, gram, pull, p, b + stride * move) > here + stride * slope / 10:
        stride = stride / 2
    return stride


def _value(mp: Any, gram: Any, pull: list[Any], p: Any, b: Any) -> Any:
    """F(b)."""
    phi = [-mp.log(x) if p == 1 else x ** (1 - p) / (p - 1) for x in b]
    return (b.T * gram * b)[0] / 2 + mp.fdot(zip(pull, phi, strict=True))


def _mpmath() -> Any:
    try:
        import mpmath
    except ImportError as error:
        raise MissingExtraError("mpmath", "verify", "Solving the barrier program in extended precision") from error
    return mpmath.mp
