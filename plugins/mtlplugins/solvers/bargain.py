"""The agreement that FairGrad and Nash-MTL look for, or the certificate that there is none.

G w = w^(-1/alpha), w > 0 makes every task gain: a solution exists exactly where some direction has a positive inner
product with every gradient [derived]. Where none has, a method that returns the weights of a ridged problem moves
along rounding errors, and these may harm a task. Here it returns nothing instead.
"""

from __future__ import annotations

import numpy as np

from mtlplugins.solvers.barrier import barrier
from mtlplugins.solvers.cosines import Array, noise
from mtlplugins.solvers.min_norm import min_norm
from mtlplugins.solvers.safety import without_conflict

_DOUBT = 0.1


def agreeable(matrix: Array) -> bool:
    """Whether some direction has a positive inner product with every unit row, cosines ``matrix`` (k, k), to within
    their rounding.

    Decided by the least norm x in the hull of the unit rows: the nearest point d to zero has <unit row i, d> >= x^2, so
    d is such a direction if x^2 is above the rounding of that product, and there is none if x = 0. A Gramian holds x
    down to about 1e-8. Nearer to zero it cannot tell: a gain that is positive by more than a tenth of the bound of its
    rounding counts, for rows of opposite directions keep that much of the truth [choice].
    """
    b, _, _ = min_norm(matrix, np.ones(len(matrix)))
    return float((matrix @ b).min()) > _DOUBT * noise(matrix, b)


def bargain(matrix: Array, norms: Array, alpha: float) -> tuple[Array | None, dict[str, object]]:
    """The weights b (k,) of the unit rows, for cosines ``matrix`` (k, k), ``norms`` (k,) > 0 and alpha > 0; None where
    no direction is good for every task.

    The solution is its own proof that there is one where every gain is above its rounding; only elsewhere is
    :func:`agreeable` asked.

    Returns:
        the weights or None, and diagnostics; without an agreement ``solver`` is "stationary", ``direction`` says why.
    """
    b, certificate = barrier(matrix, norms, alpha)
    diagnostics = certificate.diagnostics()
    if float((matrix @ b).min()) <= 16.0 * noise(matrix, b) and not agreeable(matrix):
        return None, {**diagnostics, "solver": "stationary", "direction": "zero: no direction is good for every task"}
    b, checked = without_conflict(matrix, b)
    return b, {**diagnostics, **checked}
