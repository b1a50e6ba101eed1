"""The upper level's objective: how far apart the tasks' values v_i = tau_i l~_i are.

Each kind is a sum of absolute differences, so its (sub)gradient is a vector of pulls, df/dv = k, that depends on
signs only. ``adjacent`` is the paper's; the others do not depend on the order of the tasks [choice].
"""

from __future__ import annotations

import torch
from torch import Tensor

KINDS = ("adjacent", "all-pairs", "sorted-adjacent")


def discrepancy(kind: str, values: Tensor) -> tuple[Tensor, Tensor]:
    """f(v) and one of its subgradients k = df/dv, (K,); sum k = 0 and |k_i| <= 2. Ties pull nobody.

    - ``adjacent``: f = sum_i |v_i - v_{i+1}|, k_i = s_i - s_{i-1} with s_i = sign(v_i - v_{i+1}). [paper]
    - ``all-pairs``: f = (2/K) sum_{i<j} |v_i - v_j|. The factor makes the total weight K - 1, as many as there are
      adjacent differences, so that lambda keeps its meaning; for K = 2 it is ``adjacent``. [choice]
    - ``sorted-adjacent``: adjacent differences after sorting, which telescope to max v - min v. [choice]
    """
    n = values.shape[0]
    if n == 1:
        return values.new_zeros(()), torch.zeros_like(values)
    if kind == "adjacent":
        step = values[:-1] - values[1:]
        sign = step.sign()
        pull = torch.zeros_like(values)
        pull[:-1] = sign
        pull[1:] -= sign
        return step.abs().sum(), pull
    if kind == "all-pairs":
        gaps = values[:, None] - values[None, :]
        return gaps.abs().sum() / n, gaps.sign().sum(1) * (2.0 / n)
    high, low = values.max(), values.min()
    top, bottom = (values == high).to(values.dtype), (values == low).to(values.dtype)
    return high - low, top / top.sum() - bottom / bottom.sum()
