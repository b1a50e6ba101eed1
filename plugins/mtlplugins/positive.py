"""Zero and negative losses in methods that take logarithms of losses or divide by them.

- A negative loss is an error, because the method is not defined for it. The message names the task and a remedy.
- A task with a loss of exactly zero is left out of the step (weight 0), and the diagnostics say so. This is exact: a
  differentiable non-negative loss that is zero is at its minimum, so its gradient is zero and every weight gives the
  same step. With a small constant added to the losses, the method would depend on their units.
- A positive loss below the normal floats is an error, too, because its reciprocal is not finite.
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
    """Which losses of the view are positive, K truth values; None if all are.

    Args:
        view: the step.
        why: end of the error message: the method, and a remedy.
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
