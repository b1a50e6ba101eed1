"""State of all tasks, in a step that has only some of them.

When tasks are absent from a batch, a method is called on the sub-problem of those present. State indexed by task
stays full length (n,); these three functions translate. Without absent tasks they cost nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mtlcore.contracts import StepView


def take(full: Tensor, view: StepView) -> Tensor:
    """The entries (K,) of the tasks in this view, on its device."""
    full = full.to(view.present.device)
    return full if full.shape[0] == view.n_tasks else full[list(view.task_index)]


def put(full: Tensor, view: StepView, part: Tensor) -> Tensor:
    """``full`` (n,) with the entries of the tasks in this view replaced by ``part`` (K,); a new tensor."""
    if full.shape[0] == view.n_tasks:
        return part
    full = full.to(part.device, copy=True)
    full[list(view.task_index)] = part
    return full


def touched(full: Tensor, view: StepView) -> Tensor | None:
    """None if the view has all n tasks, else (n,) bool: which it has."""
    if full.shape[0] == view.n_tasks:
        return None
    mask = torch.zeros(full.shape[0], dtype=torch.bool, device=view.present.device)
    mask[list(view.task_index)] = True
    return mask
