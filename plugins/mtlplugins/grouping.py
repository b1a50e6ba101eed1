"""Grouping of numbers: the best partition of K values into a given number of groups (one-dimensional k-means), exactly.

In one dimension the groups of an optimal partition are runs of the sorted values, so dynamic programming over where
runs end finds it: O(groups K^2) instead of an iteration from a random start that may stop at a worse one.
"""

from __future__ import annotations

import numpy as np

from mtlplugins.arrays import Array


def group_means(values: Array, groups: int) -> tuple[Array, Array]:
    """Each value's group mean (K,), and its group (K,), 0 for the smallest; the sum of squared distances is least.

    Equal values are one value with a weight, so that they are always in one group. Of equally good partitions the one
    whose upper groups are larger is taken; it depends on the values alone, not on their order.
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
