"""How good a front of trade-offs is, in two numbers: its hypervolume and its spread.

A point is one trained network. Its coordinates, one for each of the K sub-tasks, are relative worsenings against the
single-task network of the same seed, as fractions, each the mean over the metrics of the sub-task: 0 is as good as
trained alone, -0.1 a tenth better, 0.5 half as bad again. So metrics of any unit and direction are on one scale, the
one of delta-m. The reference point is 1 in every sub-task: errors twice as large, or an accuracy of zero [choice].

Both are the same for all folders, methods and seeds. That makes numbers comparable wherever the task and its
single-task networks are; a reference point taken from the worst runs would change with every method that is added.
Being far away, it makes the best value of each sub-task count for most, and how the front bends between them for
little.

More points are more chances, and these are points of the test part: of two fronts of the same method the one with more
points has the larger hypervolume, and noise alone gives several points some spread. Compare fronts of equally many.
"""

from __future__ import annotations

import moocore
import numpy as np

REFERENCE = 1.0
"""Coordinate of the reference point in every sub-task: nothing beyond it counts."""


def hypervolume(points: np.ndarray) -> float:
    """Volume of what the points (n, K) dominate within the reference point [paper: Zitzler and Thiele 1998].

    No unit. The single-task networks themselves, all at 0, have 1; a point at or beyond the reference point in some
    sub-task adds nothing. One point x has the product of all 1 - x_k. Monotone: another point never makes it smaller.

    Raises:
        ValueError: a coordinate is not finite.
    """
    points = np.asarray(points, dtype=float)
    if not np.isfinite(points).all():
        raise ValueError("the points of a front must be finite")
    return float(moocore.hypervolume(points, ref=np.full(points.shape[1], REFERENCE)))


def nondominated(points: np.ndarray) -> np.ndarray:
    """Those of the points (n, K) than which no other is better in one sub-task and as good in all; of equals one."""
    points = np.asarray(points, dtype=float)
    kept: np.ndarray = points[moocore.is_nondominated(points)]
    return kept


def spread(points: np.ndarray) -> float:
    """How far the worst and the best value of a sub-task among non-dominated points are apart; mean over sub-tasks.

    As fractions of the single-task network's value, as the points are; 0 for one point [choice].
    """
    return float(np.ptp(nondominated(points), axis=0).mean())
