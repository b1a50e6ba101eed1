"""Optimal partition of K numbers into a given number of groups: one-dimensional k-means, solved exactly.

In one dimension the groups of an optimal partition are intervals of the sorted values. Dynamic programming over the
ends of the intervals finds it in O(groups K^2); the usual iteration from a random start may stop at a worse partition.
"""

from __future__ import annotations

import numpy as np

from mtlplugins.arrays import Array


def group_means(values: Array, groups: int) -> tuple[Array, Array]:
    """The mean of each value's group (K,), and the number of its group (K,), 0 for the smallest values.

    The sum of squared distances to the group means is minimal. Equal values are always in one group, because they are
    treated as one value with a weight. Of equally good partitions the one with larger upper groups is taken; it depends
    on the values only, not on their order.
    """
    distinct, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    n, groups = len(distinct), min(groups, len(distinct))
    centred = (distinct - distinct[0]) / max(float(distinct[-1] - distinct[0]), np.finfo(float).tiny)
    weight = np.concatenate([[0.0], np.cumsum(counts)])
    first = np.concatenate([[0.0], np.cumsum(counts * centred)])
    second = np.concatenate([[0.0], np.cumsum(counts * centred**2)])

    def cost(start: int, stop: int) -> float:
        total = first[stop] - first[start]
        return float(second[stop] - second[start] - total * total / (weight[stop] - weight[start]))

    best = np.full((groups + 1, n + 1), np.inf)
    cut = np.zeros((groups + 1, n + 1), dtype=np.intp)
    best[0, 0] = 0.0
    for g in range(1, groups + 1):
        for stop in range(g, n + 1):
            costs = [best[g - 1, start] + cost(start, stop) for start in range(g - 1, stop)]
            cut[g, stop] = g - 1 + int(np.argmin(costs))
            best[g, stop] = min(costs)
    of_distinct, stop = np.zeros(n, dtype=np.intp), n
    for g in range(groups, 0, -1):
        start = int(cut[g, stop])
        of_distinct[start:stop] = g - 1
        stop = start
    group = of_distinct[where.ravel()]
    sums = np.bincount(group, weights=values, minlength=groups)
    return (sums / np.bincount(group, minlength=groups))[group], group
