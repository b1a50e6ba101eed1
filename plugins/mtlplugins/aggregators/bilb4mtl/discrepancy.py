"""The upper level's objective: a sum of absolute differences of the values v_i = tau_i l~_i.

Its (sub)gradient df/dv = k depends on the signs of the differences only. ``adjacent`` is the paper's [paper]; the
others do not depend on the order of the tasks [choice].
"""

from __future__ import annotations

import operator
from bisect import bisect_left, bisect_right

from mtlplugins.vectors import Vector

KINDS = ("adjacent", "all-pairs", "sorted-adjacent")


def discrepancy(kind: str, values: Vector) -> tuple[float, Vector]:
    """f(v) and one of its subgradients k = df/dv, (K,); sum k = 0 and |k_i| <= 2. Equal values contribute nothing to k.

    - ``adjacent``: f = sum_i |v_i - v_{i+1}|, k_i = s_i - s_{i-1} with s_i = sign(v_i - v_{i+1}). [paper]
    - ``all-pairs``: f = (2/K) sum_{i<j} |v_i - v_j|. By the factor the total weight is K - 1, the number of adjacent
      differences, so lambda has the same meaning; for K = 2 it is ``adjacent``. [choice]
    - ``sorted-adjacent``: adjacent differences after sorting; their sum is max v - min v. [choice]
    """
    if kind == "adjacent":
        gaps = list(map(operator.sub, values, values[1:]))
        # A gap that is neither is zero, or NaN and stays so.
        signs = [1.0 if gap > 0.0 else -1.0 if gap < 0.0 else gap for gap in gaps]
        return sum(map(abs, gaps), start=0.0), list(map(operator.sub, [*signs, 0.0], [0.0, *signs]))
    if kind == "all-pairs":
        # Of K values in order, the gap above the r-th lies between r and K - r of them; k_i counts who is below v_i
        # minus who is above.
        n, ordered = len(values), sorted(values)
        between = [r * (n - r) * (b - a) for r, a, b in zip(range(1, n), ordered, ordered[1:])]
        ranks = [bisect_left(ordered, v) + bisect_right(ordered, v) - n for v in values]
        return sum(between) * (2.0 / n), [rank * (2.0 / n) for rank in ranks]
    low, high = min(values), max(values)
    up, down = 1.0 / values.count(high), 1.0 / values.count(low)
    return high - low, [up * (v == high) - down * (v == low) for v in values]
