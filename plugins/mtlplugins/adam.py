"""Adam on one flat vector, as a pure function: the optimizer inside methods that learn their weights.

The moments are part of the method's state: one array (3, n) under the key ``adam``. Its rows are the first moments, the
second moments, and the number of steps of each parameter. :func:`step` works on arrays of any length, :func:`step_few`
on lists of a few numbers (see mtlplugins.vectors).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from mtlplugins.arrays import Array, Arrays
from mtlplugins.vectors import Vector

KEY = "adam"
LARGEST = 1e150
"""Largest gradient that may be passed: the square of a larger one could be infinite, and the second moment would stay
infinite."""


def fresh(n: int) -> Arrays:
    """The entry of the state for ``n`` parameters before the first step."""
    return {KEY: np.zeros((3, n))}


def step(
    parameters: Array,
    gradient: Array,
    moments: Array,
    *,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    touched: Array | None = None,
) -> tuple[Array, Array]:
    """One step of Adam (Kingma & Ba 2015), with the numbers of torch.optim.Adam; no argument is written to.

    Args:
        parameters: (n,) current values.
        gradient: (n,).
        moments: (3, n), from the previous step.
        lr: step size.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: added to the gradient as ``weight_decay * parameters`` (L2, not decoupled).
        touched: (n,) bool; where it is False, parameter and moments do not change. (That is not the same as a zero
            gradient.)

    Returns:
        New parameters and new moments.
    """
    if weight_decay:
        gradient = gradient + weight_decay * parameters
    new = np.empty_like(moments)
    first, second, count = new
    np.multiply(moments[0], beta1, out=first)
    first += (1.0 - beta1) * gradient
    np.multiply(moments[1], beta2, out=second)
    second += (1.0 - beta2) * gradient * gradient
    np.add(moments[2], 1.0, out=count)
    # Powers are expensive, and usually all entries have made the same number of steps.
    steps = count[:1] if count.size and (count == count[0]).all() else count
    root = np.sqrt(second / (1.0 - beta2**steps))
    root += eps
    # If second moment and eps are 0, the step has no defined size: no step.
    root[root == 0.0] = np.inf
    moved = parameters - (lr / (1.0 - beta1**steps)) * first / root
    if touched is not None:
        moved, new = np.where(touched, moved, parameters), np.where(touched, new, moments)
    return moved, new


def step_few(
    parameters: Vector,
    gradient: Iterable[float],
    moments: Sequence[Vector],
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
) -> list[Vector]:
    """The same step as :func:`step`, on lists. Leave out the entries that are not to change.

    Returns:
        [new parameters, *new moments].
    """
    moved: Vector = []
    first: Vector = []
    second: Vector = []
    count: Vector = []
    steps, keep1, keep2 = -1.0, 1.0 - beta1, 1.0 - beta2
    for p, g, m, v, c in zip(parameters, gradient, *moments):
        m = beta1 * m + keep1 * g
        v = beta2 * v + keep2 * g * g
        c += 1.0
        if c != steps:  # powers are dear, and most entries have taken as many steps as the one before
            steps, bias1, bias2 = c, 1.0 - beta1**c, 1.0 - beta2**c
        root = math.sqrt(v / bias2) + eps
        moved.append(p - lr * (m / bias1) / root if root else p)
        first.append(m)
        second.append(v)
        count.append(c)
    return [moved, first, second, count]
