"""The smallest multiples of the rows that take a vector into their dual cone.

min 1/2 y'Gy + q'y over y >= 0, whose answer has Gy + q >= 0: with G = J D J^T and q = J m, the vector m + D J^T y is
the point of {x : Jx >= 0} nearest to m in the norm <x, D^-1 x>. K unknowns, however long the vector is.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_EPS = 2.0**-52


def multipliers(gram: Tensor, gains: Tensor) -> Tensor | None:
    """y, (k,) float64.

    Args:
        gram: (k, k) float64, G, on the processor.
        gains: (k,) float64, q. In the range of G, as it is where D has no zeros.

    Returns:
        None where the solver did not come to an end.
    """
    from scipy.optimize import nnls

    norms = gram.diagonal().clamp_min(0.0).sqrt()
    alive = norms > 0.0
    out = torch.zeros_like(norms)
    size = float((gains[alive] / norms[alive]).abs().max()) if bool(alive.any()) else 0.0
    if size == 0.0 or not bool((gains[alive] < 0.0).any()):
        return out
    # Unit rows and a vector of size 1: what rounding may do is then the same for gradients of any size.
    units = (gram[alive][:, alive] / norms[alive, None] / norms[None, alive]).numpy()
    values, vectors = np.linalg.eigh(units)
    # The ridge, the size of the rounding already in G, makes dependent rows no special case.
    roots = np.sqrt(np.maximum(values, 0.0) + 4.0 * len(units) ** 0.5 * _EPS)
    linear = (gains[alive] / norms[alive] / size).numpy()
    try:
        found, _ = nnls(roots[:, None] * vectors.T, -(vectors.T @ linear) / roots, maxiter=100 * len(units))
    except RuntimeError:
        return None
    out[alive] = torch.from_numpy(found) * size / norms[alive]
    return out
