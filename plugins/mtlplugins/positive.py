"""What a method that takes logarithms of losses, or divides by them, does with zero and negative ones.

- A negative loss is an error: the method has no meaning there. The message names the task and the way out.
- A loss of exactly zero is left out of the step, weight 0, and the diagnostics say so. This is exact, not a
  patch: a differentiable non-negative loss that is zero is at its minimum, so its gradient is zero and any
  weight gives the same step. Adding a small constant instead would make the method depend on the losses' units.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from mtlcore.contracts import Aggregation, State, StepView
from mtlcore.errors import LossError
from mtlplugins.arrays import Array


def positive(view: StepView, losses: Array, why: str, checked: Array | None = None) -> Array | None:
    """None if every loss is positive, else (K,) bool: which are.

    Args:
        view: names the tasks.
        losses: (K,).
        why: who asks, and the way out; ends the message.
        checked: (K,) bool; only these losses need to be positive. Default: all.

    Raises:
        LossError: a loss that must be positive is negative; names task and value.
    """
    fine: Array = losses > 0
    if checked is not None:
        fine |= ~checked
    if fine.all():
        return None
    negative = (losses < 0) & ~fine
    if negative.any():
        bad = ", ".join(f"{view.task_names[i]!r} ({losses[i]:g})" for i in negative.nonzero()[0])
        raise LossError(f"the loss of task {bad} is negative, but {why}")
    return fine


def solve_part(view: StepView, keep: Array, state: State, solve: Callable[[StepView], Aggregation]) -> Aggregation:
    """``solve`` on the tasks in ``keep`` (K,) bool; the others get weight 0 and are named in the diagnostics."""
    left_out = ", ".join(name for name, kept in zip(view.task_names, keep) if not kept)
    mask = torch.from_numpy(keep).to(view.device)
    weights = torch.zeros(view.n_tasks, dtype=torch.float64, device=mask.device)
    note = {"left_out": f"{left_out}: loss is exactly zero"}
    if not keep.any():
        return Aggregation(weights=weights, state=state, diagnostics=note)
    part = solve(view.restricted(mask))
    assert part.weights is not None
    weights[mask] = part.weights
    return dataclasses.replace(part, weights=weights, diagnostics={**part.diagnostics, **note})
