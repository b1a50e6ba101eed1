"""Vectors of one number per task, as numpy arrays: a tenth of the overhead that a torch call has on so little data.

A loss-level method must cost next to nothing beside one training step, and its K-vectors are so short that the time
goes into calls, not into arithmetic. The view's losses are read once, the weights are handed back once. (For a method
of many small operations, see mtlplugins.vectors.)

When tasks are absent from a batch, a method is called on the sub-problem of those present; state indexed by task
stays full length (n,). :func:`take`, :func:`put` and :func:`touched` translate between the two.
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
    """The tensors of a state as arrays that share their memory: read only."""
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
    """None if the view has all n tasks, else (n,) bool: which it has."""
    if full.shape[0] == view.n_tasks:
        return None
    mask = np.zeros(full.shape[0], dtype=bool)
    mask[list(view.task_index)] = True
    return mask


def log_quotient(one: Array, other: Array) -> Array:
    """log(one / other) of positive vectors, also where the quotient is not a float any more."""
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
