"""Vectors of one number per task as lists of floats: what a step's arithmetic on so little data costs least in.

Between forward and backward passes that fill the caches with something else, the first call of every numpy or torch
function in a step takes 3 to 15 microseconds, however short the vector; the interpreter itself is warm. So a step's
numbers are read once, computed with in comprehensions, and handed back once.

When tasks are absent from a batch, a method is called on the sub-problem of those present; state indexed by task
stays full length (n,). :func:`take` and :func:`put` translate between the two.
"""

from __future__ import annotations

import operator
from array import array
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor

from mtlcore.contracts import StepView

Vector = list[float]
_T = TypeVar("_T")


def losses_of(view: StepView) -> Vector:
    """(K,)."""
    found: Vector = view.losses.tolist()
    return found


def tensor(values: Vector) -> Tensor:
    """The same numbers as a tensor, float64. The way with the least overhead: half of ``torch.tensor``'s."""
    buffer = array("d", values)
    # An empty buffer is an error for frombuffer.
    return torch.frombuffer(buffer, dtype=torch.float64) if buffer else torch.empty(0, dtype=torch.float64)


def mask(values: Iterable[bool]) -> Tensor:
    """The same truth values, bool; at least one."""
    return torch.frombuffer(bytearray(values), dtype=torch.bool)


def take(full: list[_T], view: StepView) -> list[_T]:
    """The entries (K,) of the tasks in this view."""
    return full if len(full) == len(view.task_index) else [full[i] for i in view.task_index]


def put(full: list[_T], view: StepView, part: list[_T]) -> list[_T]:
    """``full`` (n,) with the entries of the tasks in this view replaced by ``part`` (K,); a new list, or ``part``."""
    if len(full) == len(part):
        return part
    full = full.copy()
    for i, value in zip(view.task_index, part):
        full[i] = value
    return full


def dot(one: Vector, other: Vector) -> float:
    """Their inner product."""
    return sum(map(operator.mul, one, other), start=0.0)
