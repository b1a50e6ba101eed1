"""State with one row of parameter size per task, and inner products between the gradients of two batches.

P is not known before the first step, so such a state starts as an empty tensor of shape (0,). The first step gives it
its shape (n, P), n being the number of all tasks of the run, in the dtype and on the device of the rows. If tasks are
absent, only the rows of those present are read and written.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mtlcore import linalg
from mtlcore.contracts import StepView
from mtlplugins.arrays import Array


def empty() -> Tensor:
    """The entry of the state before the first step."""
    return torch.empty(0, device="cpu")


def read(kept: Tensor, view: StepView, n_tasks: int) -> Tensor:
    """(n, P), a copy: what was kept, or zeros in the first step."""
    rows = view.jacobian
    if kept.numel() == 0:
        return rows.new_zeros(n_tasks, rows.shape[1])
    return kept.to(rows, copy=True)


def index(view: StepView, like: Tensor) -> Tensor:
    """Positions (K,) of the tasks of this view in a state (n, P), where that state is."""
    return torch.tensor(view.task_index, device=like.device)


def cross(left: Tensor, right: Tensor) -> Array:
    """J_1 J_2^T (K, K) in float64, for rows of two batches: a block of the Gramian of both."""
    k = left.shape[0]
    both: Array = linalg.gramian(torch.cat([left, right.to(left)])).cpu().numpy()
    return both[:k, k:]


def other(view: StepView, number: int) -> tuple[Tensor, Array]:
    """Rows (K, P) of this view's tasks in the further batch ``number``, and which of the tasks are in that batch (K,);
    the rows of the others are zero."""
    batch = view.others[number]
    position = {task: at for at, task in enumerate(batch.task_index)}
    listed = [position.get(task, 0) for task in view.task_index]
    present = batch.present.numpy()
    there = np.array([task in position and bool(present[position[task]]) for task in view.task_index])
    part = batch.jacobian[torch.tensor(listed, device=batch.jacobian.device)]
    return part * torch.from_numpy(there).to(part)[:, None], there
