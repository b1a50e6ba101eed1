"""What published trainers do with a method's direction before the optimizer gets it: multiply it, then clip it.

The names are the same in every method that has them:

- ``outer_scale``: "one" leaves d alone. "n-tasks" multiplies it by K, as the public code of CAGrad, FairGrad and
  Nash-MTL's MGDA does "to match the sum of the losses": trunk and heads then move as they would under a sum.
- ``max_norm``: clips the trunk's d to this length, after ``outer_scale``; heads are not clipped.
- ``heads``: "ones" leaves the task-specific parameters the gradient of their own loss; "weights" multiplies it by the
  task's weight, as code does that weights whole losses. A weight of 0 then stops a head, a negative one drives it up.

K counts the tasks of the batch. A positive factor changes neither conflicts nor the zeros of d.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from mtlplugins.solvers.cosines import Array

SCALES = ("one", "n-tasks")
HEADS = ("ones", "weights")


def scale(outer_scale: str, n_tasks: int) -> float:
    """The factor of d and of its weights."""
    return float(n_tasks) if outer_scale == "n-tasks" else 1.0


def clip(matrix: Array, b: Array, max_norm: float | None) -> float:
    """The factor that brings d = sum_i b_i (unit row i), with cosines ``matrix`` (k, k), to at most ``max_norm``.

    |d| comes from b'Cb and is known to about 1e-8 sum |b|; shorter than that, d is rounding and not clipped.
    """
    if max_norm is None:
        return 1.0
    # Of b scaled to one, so that the square of a very long d is a float.
    largest = float(np.abs(b).max(initial=0.0))
    if largest == 0.0:
        return 1.0
    unit = b / largest
    length = largest * max(float(unit @ matrix @ unit), 0.0) ** 0.5
    return min(1.0, max_norm / length) if length > 0.0 else 1.0


def head_weights(heads: str, weights: Tensor) -> Tensor | None:
    """What ``Aggregation.head_weights`` gets from a method that reads gradients."""
    return weights if heads == "weights" else None
