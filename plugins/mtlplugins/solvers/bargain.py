"""The weights of FairGrad and Nash-MTL, or the answer that there are none.

With a solution of G w = w^(-1/alpha), w > 0, every task gains. A solution exists if and only if some direction has a
positive inner product with every gradient [derived]. Otherwise the weights of a regularised problem would give a
direction of rounding errors, which may harm a task; here None is returned instead.
"""

from __future__ import annotations

import numpy as np

from mtlplugins.solvers.barrier import barrier
from mtlplugins.solvers.cosines import Array, noise
from mtlplugins.solvers.min_norm import min_norm
from mtlplugins.solvers.safety import without_conflict

_DOUBT = 0.1


def agreeable(matrix: Array) -> bool:
    """Whether some direction has a positive inner product with every unit row, up to rounding; cosines ``matrix``
    (k, k).

    The smallest norm x in the hull of the unit rows decides. The point d of that norm has <unit row i, d> >= x^2: it is
    such a direction if x^2 is above the rounding error of the product, and there is none if x = 0. A Gramian resolves x
    down to about 1e-8. Below that a gain counts as positive if it is more than a tenth of the bound of its rounding
    error, because for opposite rows the actual error is that small [choice].
    """
    b, _, _ = min_norm(matrix, np.ones(len(matrix)))
    return float((matrix @ b).min()) > _DOUBT * noise(matrix, b)


def bargain(matrix: Array, norms: Array, alpha: float) -> tuple[Array | None, dict[str, object]]:
    """The weights b (k,) of the unit rows, for cosines ``matrix`` (k, k), ``norms`` (k,) > 0 and alpha > 0; None if no
    direction is good for every task.

    If every gain of the solution is above its rounding error, the solution itself proves that there is such a
    direction; otherwise :func:`agreeable` decides.

    Returns:
        the weights or None, and diagnostics; with None ``solver`` is "stationary", and ``direction`` says why.
    """
    b, certificate = barrier(matrix, norms, alpha)
    diagnostics = certificate.diagnostics()
    if float((matrix @ b).min()) <= 16.0 * noise(matrix, b) and not agreeable(matrix):
        return None, {**diagnostics, "solver": "stationary", "direction": "zero: no direction is good for every task"}
    b, checked = without_conflict(matrix, b)
    return b, {**diagnostics, **checked}
