"""The lower level's losses l~_i(l_i): as they are, rescaled by the first ones, or logarithmic.

- ``identical``: l~ = l.
- ``rescaled``: l~_i = l_i / c_i, c_i = l_i(0) / min_j l_j(0): every task starts at the smallest first loss. [code]
- ``log``: l~_i = log(l_i / l_i_ref). The reference is the first loss, or the first of every period of
  ``log_reference_every`` steps: the published code takes it anew from the first batch of every epoch. [code]

References are state: (K,) losses, and (K,) int64 periods in which they were taken (-1: not yet).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mtlcore.contracts import State, StepView
from mtlplugins.positive import positive

KINDS = ("identical", "rescaled", "log")


def fresh(kind: str, n_tasks: int) -> State:
    """State before the first step; empty for ``identical``."""
    if kind == "identical":
        return {}
    return {
        "reference": torch.ones(n_tasks, dtype=torch.float64),
        "reference_period": torch.full((n_tasks,), -1, dtype=torch.int64),
    }


def usable(kind: str, view: StepView, losses: Tensor, state: State, index: Tensor | None) -> Tensor | None:
    """None if all losses of this step can be normalised, else (K,) bool: which can (see mtlplugins.positive)."""
    if kind == "identical":
        return None
    way_out = f"normalisation={kind!r} needs positive ones: use normalisation='identical', or shift the loss."
    if kind == "log":
        return positive(view, losses, way_out)
    seen = state["reference_period"].to(losses.device) >= 0
    return positive(view, losses, way_out, checked=~_part(seen, index))


def updated(kind: str, every: int | None, step: int, losses: Tensor, state: State, index: Tensor | None) -> State:
    """References of this step: the state's, taken anew where a task starts its run or its period."""
    if kind == "identical":
        return {}
    period = step // every if kind == "log" and every is not None else 0
    reference, taken = state["reference"].to(losses.device), state["reference_period"].to(losses.device)
    due = taken != period
    if index is not None:
        present = torch.zeros_like(due)
        present[index] = True
        due &= present
        losses = torch.ones_like(reference).index_copy(0, index, losses)
    return {
        "reference": torch.where(due, losses, reference),
        "reference_period": torch.where(due, torch.full_like(taken, period), taken),
    }


def normalise(kind: str, losses: Tensor, references: State, index: Tensor | None) -> tuple[Tensor, Tensor]:
    """Normalised losses l~ and their derivatives dl~/dl, both (K,)."""
    if kind == "identical":
        return losses, torch.ones_like(losses)
    reference = _part(references["reference"], index)
    if kind == "log":
        return torch.log(losses / reference), losses.reciprocal()
    known = references["reference_period"] >= 0
    smallest = references["reference"].masked_fill(~known, torch.inf).min()
    # In this order tasks at their reference are equal to the last bit; otherwise rounding would decide, in the very
    # first step, who is pulled where.
    return (losses / reference) * smallest, smallest / reference


def _part(values: Tensor, index: Tensor | None) -> Tensor:
    return values if index is None else values[index]
