"""Vectors of one number per task as numpy arrays: on so few numbers a call costs a tenth of a torch call.

A method on losses must cost very little compared with a training step. Its K-vectors are so short that the time is
spent in calls, not in arithmetic. Therefore the losses of a view are read once and the weights are returned once. (For
methods with many small operations see mtlplugins.vectors.)

If tasks are absent from a batch, a method is called on the sub-problem of the tasks present, but its state keeps one
entry for every task of the run (n,). :func:`take`, :func:`put` and :func:`touched` translate between the two.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mtlcore.contracts import State, StepView

Array = npt.NDArray[Any]
Arrays = dict[str, Array]


def losses_of(view: StepView) -> Array:
    """(K,) float64."""
    return np.array(view.loss_values)


def arrays(state: State) -> Arrays:
    """The tensors of a state as arrays that share their memory; do not write to them."""
    return {name: value.cpu().numpy() for name, value in state.items()}


def tensors(values: Arrays) -> State:
    """The arrays of a new state as tensors."""
    return {name: torch.from_numpy(value) for name, value in values.items()}


def take(full: Array, view: StepView) -> Array:
    """The entries (K,) of the tasks in this view."""
    return full if full.shape[0] == view.n_tasks else full[list(view.task_index)]


def put(full: Array, view: StepView, part: Array) -> Array:
    """``full`` (n,) with the entries of the tasks in this view replaced by ``part`` (K,); a new array."""
    if full.shape[0] == view.n_tasks:
        return part
    full = full.copy()
    full[list(view.task_index)] = part
    return full


def touched(full: Array, view: StepView) -> Array | None:
    """Which of the n tasks are in the view, (n,) bool; None if all are."""
    if full.shape[0] == view.n_tasks:
        return None
    mask = np.zeros(full.shape[0], dtype=bool)
    mask[list(view.task_index)] = True
    return mask


def log_quotient(one: Array, other: Array) -> Array:
    """log(one / other) of positive vectors, also where the quotient would overflow or underflow."""
    with np.errstate(over="ignore", under="ignore"):
        quotient = one / other
    if quotient.min() > 0.0 and quotient.max() < np.inf:
        return np.asarray(np.log(quotient))
    return np.asarray(np.log(one) - np.log(other))


def softmax(scores: Array) -> Array:
    """exp(z_i) / sum_j exp(z_j), without overflow."""
    powers = np.exp(scores - scores.max())
    out: Array = powers / powers.sum()
    return out
