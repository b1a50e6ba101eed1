"""Adam on one flat vector, as a pure function: the small optimizer inside methods that learn their weights.

Moments are state, so they live in the dict of tensors that a method returns; nothing is remembered elsewhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mtlcore.contracts import State

_SMALLEST = torch.finfo(torch.float64).tiny


def fresh(n: int) -> State:
    """Moments of ``n`` parameters before the first step. Entries count their own steps, see :func:`step`."""
    return {name: torch.zeros(n, dtype=torch.float64) for name in ("adam_first", "adam_second", "adam_count")}


def step(
    parameters: Tensor,
    gradient: Tensor,
    moments: State,
    *,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float | Tensor = 1e-8,
    weight_decay: float = 0.0,
    touched: Tensor | None = None,
) -> tuple[Tensor, State]:
    """One step of Adam (Kingma & Ba 2015) as torch.optim.Adam makes it, without writing to anything.

    Args:
        parameters: (n,) current values.
        gradient: (n,).
        moments: what :func:`fresh` or the previous step returned; other keys are ignored.
        lr: step size.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        eps: added to the root of the second moment; a tensor when it must follow the scale of the data.
        weight_decay: added to the gradient as ``weight_decay * parameters`` (L2, not decoupled).
        touched: (n,) bool; entries that are False stay as they are, moments included. Absent is not zero gradient.

    Returns:
        New parameters and new moments.
    """
    first, second, count = moments["adam_first"], moments["adam_second"], moments["adam_count"]
    if weight_decay:
        gradient = gradient.add(parameters, alpha=weight_decay)
    count_next = count + 1.0
    first_next = torch.lerp(first, gradient, 1.0 - beta1)
    second_next = torch.lerp(second, gradient.square(), 1.0 - beta2)
    # The floor only turns 0/0 (no gradient so far, eps = 0) into 0.
    root = (second_next / (1.0 - beta2**count_next)).sqrt_().add_(eps).clamp_min_(_SMALLEST)
    moved = parameters - lr * (first_next / (1.0 - beta1**count_next)) / root
    if touched is not None:
        moved = torch.where(touched, moved, parameters)
        first_next = torch.where(touched, first_next, first)
        second_next = torch.where(touched, second_next, second)
        count_next = torch.where(touched, count_next, count)
    return moved, {"adam_first": first_next, "adam_second": second_next, "adam_count": count_next}
