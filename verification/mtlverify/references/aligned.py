"""Aligned-MTL by SVD: the nearest system of gradients with condition number 1. [Senushkin et al. 2023]"""

from __future__ import annotations

from typing import Any

import numpy as np

from mtlverify.references import Array, NoUniqueAnswer, Solution, reference

GAP = 1e-6
"""Singular values between the rank cut-off and GAP (relative to the largest) are not told from zero by a method that
sees the Gramian; the definition jumps there."""


def covers(plugin: Any) -> bool:
    """Uniform weights, and the rank of float64."""
    plain = getattr(plugin, "weights", None) is None and getattr(plugin, "preferences", None) is None
    return plain and getattr(plugin, "rank_cut", "float64") == "float64"


@reference("aligned-mtl")
def aligned_mtl(rows: Array, plugin: Any) -> Solution:
    """J = V S W': d = s (V W')' w over the singular values that count, with w = 1 / K (or 1) and s the smallest of them
    (or the median, of an even number the lower of the two, or the root mean square)."""
    scale = float(np.abs(rows).max(initial=0.0))
    if scale == 0:
        return Solution(np.zeros(rows.shape[1]), 0.0)
    left, values, right = np.linalg.svd(rows / scale, full_matrices=False)
    rank = values > 1e-12 * values[0]
    if (values[rank] < GAP * values[0]).any():
        raise NoUniqueAnswer("nearly dependent gradients: the rank, and with it the answer, hangs on rounding")
    kept = values[rank]
    how = getattr(plugin, "scale", "min")
    length = {"min": kept.min(), "median": kept[len(kept) // 2], "rmse": float(np.sqrt((kept**2).mean()))}[how]
    preference = np.full(len(rows), 1.0 if getattr(plugin, "reduction", "mean") == "sum" else 1.0 / len(rows))
    direction = scale * length * (right[rank].T @ (left[:, rank].T @ preference))
    return Solution(direction, scale * float(values[0]))
