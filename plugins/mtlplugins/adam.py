"""Adam on one flat vector, as a pure function: the small optimizer inside methods that learn their weights.

Moments are state, so they live in the dict of tensors that a method returns; nothing is remembered elsewhere.
:func:`step` works on arrays of any length, :func:`step_few` on a few numbers (see mtlplugins.vectors).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from mtlplugins.arrays import Array, Arrays
from mtlplugins.vectors import Vector

MOMENTS = ("adam_first", "adam_second", "adam_count")
_SMALLEST = float(np.finfo(np.float64).tiny)


def fresh(n: int) -> Arrays:
    """Moments of ``n`` parameters before the first step. Entries count their own steps, see :func:`step`."""
    return {name: np.zeros(n) for name in MOMENTS}


def step(
    parameters: Array,
    gradient: Array,
    moments: Arrays,
    *,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    touched: Array | None = None,
) -> tuple[Array, Arrays]:
    """One step of Adam (Kingma & Ba 2015) as torch.optim.Adam makes it, without writing to anything.

    Args:
        parameters: (n,) current values.
        gradient: (n,).
        moments: what :func:`fresh` or the previous step returned; other keys are ignored.
        lr: step size.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: added to the gradient as ``weight_decay * parameters`` (L2, not decoupled).
        touched: (n,) bool; entries that are False stay as they are, moments included. Absent is not zero gradient.

    Returns:
        New parameters and new moments.
    """
    if weight_decay:
        gradient = gradient + weight_decay * parameters
    first = beta1 * moments["adam_first"] + (1.0 - beta1) * gradient
    second = beta2 * moments["adam_second"] + (1.0 - beta2) * gradient * gradient
    count = moments["adam_count"] + 1.0
    # The floor only turns 0/0 (no gradient so far, eps = 0) into 0.
    root = np.maximum(np.sqrt(second / (1.0 - beta2**count)) + eps, _SMALLEST)
    moved = parameters - lr * (first / (1.0 - beta1**count)) / root
    new = {"adam_first": first, "adam_second": second, "adam_count": count}
    if touched is not None:
        moved = np.where(touched, moved, parameters)
        new = {name: np.where(touched, value, moments[name]) for name, value in new.items()}
    return moved, new


def step_few(
    parameters: Vector,
    gradient: Iterable[float],
    moments: dict[str, Vector],
    *,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
) -> tuple[Vector, dict[str, Vector]]:
    """The same step as :func:`step`, on lists; entries that are to stay as they are do not belong into them."""
    new: dict[str, Vector] = {name: [] for name in MOMENTS}
    moved, first, second, count = [], *new.values()
    steps, keep1, keep2 = -1.0, 1.0 - beta1, 1.0 - beta2
    for p, g, m, v, c in zip(parameters, gradient, *(moments[name] for name in MOMENTS)):
        m = beta1 * m + keep1 * g
        v = beta2 * v + keep2 * g * g
        c += 1.0
        if c != steps:  # powers are dear, and most entries have taken as many steps as the one before
            steps, bias1, bias2 = c, 1.0 - beta1**c, 1.0 - beta2**c
        root = math.sqrt(v / bias2) + eps
        moved.append(p - lr * (m / bias1) / (root if root > _SMALLEST else _SMALLEST))
        first.append(m)
        second.append(v)
        count.append(c)
    return moved, new
