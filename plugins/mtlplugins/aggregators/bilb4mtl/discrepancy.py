"""The upper level's objective: how far apart the tasks' values v_i = tau_i l~_i are.

Each kind is a sum of absolute differences, so its (sub)gradient is a vector of pulls, df/dv = k, that depends on
signs only. ``adjacent`` is the paper's; the others do not depend on the order of the tasks [choice].
"""

from __future__ import annotations

import numpy as np

from mtlplugins.arrays import Array

KINDS = ("adjacent", "all-pairs", "sorted-adjacent")


def discrepancy(kind: str, values: Array) -> tuple[float, Array]:
    """f(v) and one of its subgradients k = df/dv, (K,); sum k = 0 and |k_i| <= 2. Ties pull nobody.

    - ``adjacent``: f = sum_i |v_i - v_{i+1}|, k_i = s_i - s_{i-1} with s_i = sign(v_i - v_{i+1}). [paper]
    - ``all-pairs``: f = (2/K) sum_{i<j} |v_i - v_j|. The factor makes the total weight K - 1, as many as there are
      adjacent differences, so that lambda keeps its meaning; for K = 2 it is ``adjacent``. [choice]
    - ``sorted-adjacent``: adjacent differences after sorting, which telescope to max v - min v. [choice]
    """
    pull = np.zeros_like(values)
    if len(values) == 1:
        return 0.0, pull
    if kind == "adjacent":
        gaps = values[:-1] - values[1:]
        signs = np.sign(gaps)
        pull[:-1] = signs
        pull[1:] -= signs
        return float(gaps @ signs), pull
    if kind == "all-pairs":
        gaps = values[:, None] - values[None, :]
        pull += np.sign(gaps).sum(1) * (2.0 / len(values))
        return float(np.abs(gaps).sum()) / len(values), pull
    top, bottom = values == values.max(), values == values.min()
    pull += top / top.sum() - bottom / bottom.sum()
    return float(values.max() - values.min()), pull
