"""Options for what published training code does with a method's direction: multiply it, then clip it.

They have the same names in every method:

- ``outer_scale``: "one" does not change d. "n-tasks" multiplies it by K, as the public code of CAGrad, FairGrad and
  Nash-MTL's MGDA does "to match the sum of the losses": the scale of d is then that of a sum of losses.
- ``max_norm``: clips the trunk's d to this length, after ``outer_scale``; heads are not clipped.
- ``heads``: with "ones" the task-specific parameters get the gradient of their own loss; with "weights" it is
  multiplied by the task's weight, as in code that weights whole losses. A weight of 0 then stops a head, and a negative
  one increases its loss.

K counts the tasks in the batch. A positive factor changes neither conflicts nor the zeros of d.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from mtlplugins.solvers.cosines import Array

SCALES = ("one", "n-tasks")
HEADS = ("ones", "weights")


def scale(outer_scale: str, n_tasks: int) -> float:
    """The factor by which d and its weights are multiplied."""
    return float(n_tasks) if outer_scale == "n-tasks" else 1.0


def clip(matrix: Array, b: Array, max_norm: float | None) -> float:
    """The factor that brings d = sum_i b_i (unit row i), with cosines ``matrix`` (k, k), to at most ``max_norm``.

    |d| is computed from b'Cb, with an error of about 1e-8 sum |b|; a shorter d is rounding error and is not clipped.
    """
    if max_norm is None:
        return 1.0
    # b is scaled to one first: the square of a very long d would overflow.
    largest = float(np.abs(b).max(initial=0.0))
    if largest == 0.0:
        return 1.0
    unit = b / largest
    length = largest * max(float(unit @ matrix @ unit), 0.0) ** 0.5
    return min(1.0, max_norm / length) if length > 0.0 else 1.0


def head_weights(heads: str, weights: Tensor) -> Tensor | None:
    """The ``Aggregation.head_weights`` of a method that reads gradients."""
    return weights if heads == "weights" else None
