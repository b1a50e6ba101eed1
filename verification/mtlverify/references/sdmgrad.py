"""SDMGrad without noise: the min-norm point, drawn towards the mean. [Xiao, Ban & Ji 2023]

For one batch a step, of the built-in method or of any other plugin of this name.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from mtlverify.references import Array, Solution, reference
from mtlverify.references.min_norm import min_norm


def covers(plugin: Any) -> bool:
    """Read is ``lambda_``, the weight of the mean; one batch per step (double sampling has no single answer)."""
    return float(getattr(plugin, "lambda_", -1.0)) >= 0.0 and getattr(plugin, "batches", 1) == 1


@reference("sdmgrad")
def sdmgrad(rows: Array, plugin: Any) -> Solution:
    """d = (J'w + lambda g_0) / (1 + lambda), w = argmin over the simplex of |J'w + lambda g_0|, g_0 the mean.

    J'w + lambda g_0 = sum_i w_i (g_i + lambda g_0), because the weights sum to 1: the min-norm program of shifted rows.
    lambda = 0 is MGDA, lambda -> inf the mean.
    """
    weight = float(plugin.lambda_)
    found = min_norm(rows + weight * rows.mean(axis=0))
    length = float(np.linalg.norm(rows, axis=1).mean())
    return dataclasses.replace(
        found,
        direction=found.direction / (1.0 + weight),
        size=(found.size + weight * length) / (1.0 + weight),  # the shifted rows may be short where both terms are long
        distance=found.distance / (1.0 + weight),
    )
