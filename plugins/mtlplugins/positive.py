"""What a method that takes logarithms of losses, or divides by them, does with zero and negative ones.

- A negative loss is an error: the method has no meaning there. The message names the task and the way out.
- A loss of exactly zero is left out of the step, weight 0, and the diagnostics say so. This is exact, not a
  patch: a differentiable non-negative loss that is zero is at its minimum, so its gradient is zero and any
  weight gives the same step. Adding a small constant instead would make the method depend on the losses' units.
- A positive loss below the normal floats is an error, too: its reciprocal is not a float.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence

import torch

from mtlcore.contracts import Aggregation, State, StepView
from mtlcore.errors import LossError

_SMALLEST = sys.float_info.min


def positive(view: StepView, why: str, checked: Sequence[bool] | None = None) -> list[bool] | None:
    """None if every loss of the view is positive, else K truth values: which are.

    Args:
        view: the step.
        why: who asks, and the way out; ends the message.
        checked: (K,); only these losses need to be positive. Default: all.

    Raises:
        LossError: a loss that must be positive is negative, or too small to divide by; names task and value.
    """
    losses = view.loss_values
    if checked is None:
        fine = [loss >= _SMALLEST for loss in losses]
    else:
        fine = [loss >= _SMALLEST or not wanted for loss, wanted in zip(losses, checked)]
    if all(fine):
        return None
    for name, loss, kept in zip(view.task_names, losses, fine):
        if loss > 0 and not kept:
            raise LossError(
                f"the loss of task {name!r} ({loss:g}) is too small to divide by: measure it in another unit."
            )
    together = zip(view.task_names, losses, fine)
    bad = ", ".join(f"{name!r} ({loss:g})" for name, loss, kept in together if loss < 0 and not kept)
    if bad:
        raise LossError(f"the loss of task {bad} is negative, but {why}")
    return fine


def solve_part(
    view: StepView, keep: Sequence[bool], state: State, solve: Callable[[StepView], Aggregation]
) -> Aggregation:
    """``solve`` on the tasks where ``keep`` (K,) holds; the others get weight 0 and are named in the diagnostics."""
    left_out = ", ".join(name for name, kept in zip(view.task_names, keep) if not kept)
    mask = torch.tensor(keep, device="cpu")
    weights = torch.zeros(view.n_tasks, dtype=torch.float64, device="cpu")
    note = {"left_out": f"{left_out}: loss is exactly zero"}
    if not any(keep):
        return Aggregation(weights=weights, state=state, diagnostics=note)
    part = solve(view.restricted(mask))
    assert part.weights is not None
    weights[mask] = part.weights
    return dataclasses.replace(part, weights=weights, diagnostics={**part.diagnostics, **note})
