"""An option that names one task by its position. The state keeps which task that is, so that it stays the same one
where tasks come, go or change their order."""

from __future__ import annotations

import torch

from mtlcore.contracts import State, StepView
from mtlcore.errors import ConfigurationError


def chosen(method: str, option: str, position: int, n_tasks: int) -> State:
    """The entry of the state: under the option's name 1 for that task, 0 for the others, (K,).

    Raises:
        ConfigurationError: no task has that position.
    """
    if position >= n_tasks:
        raise ConfigurationError(f"{method}: {option}={position}, but the {n_tasks} tasks are counted from 0.")
    mark = torch.zeros(n_tasks, dtype=torch.float64, device="cpu")
    mark[position] = 1.0
    return {option: mark}


def place(method: str, option: str, state: State, view: StepView) -> int | None:
    """Where the task is among those of the view; None if it is absent.

    Raises:
        ConfigurationError: the task is no longer one of the run.
    """
    mark = state[option].tolist()
    if not any(mark):
        raise ConfigurationError(f"{method}: the task of {option} was removed. Make a new method with another one.")
    at = mark.index(1.0)
    return view.task_index.index(at) if at in view.task_index else None
