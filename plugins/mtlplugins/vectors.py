"""Vectors of one number per task as lists of floats: the fastest form for so few numbers.

Forward and backward passes evict the code of other functions from the processor's caches. So in every step the first
call of a numpy or torch function takes 3 to 15 microseconds, even on a short vector; the interpreter's own code stays
in the caches. Therefore the numbers of a step are read once, computed with in comprehensions, and returned once.

If tasks are absent from a batch, a method is called on the sub-problem of the tasks present, but its state keeps one
entry for every task of the run (n,). :func:`take` and :func:`put` translate between the two.
"""

from __future__ import annotations

import itertools
import operator
from array import array
from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from mtlcore.contracts import StepView
from mtlcore.linalg import vector as tensor

Vector = list[float]
_T = TypeVar("_T")

__all__ = ["Vector", "dot", "losses_of", "mask", "matrix", "put", "take", "tensor", "tensors"]


def losses_of(view: StepView) -> Vector:
    """(K,)."""
    return list(view.loss_values)


def matrix(rows: Sequence[Vector]) -> Tensor:
    """(rows, K), float64; at least one row, all of one length."""
    return tensor(list(itertools.chain.from_iterable(rows))).view(len(rows), len(rows[0]))


def tensors(**lists: Vector) -> dict[str, Tensor]:
    """Each list as a tensor; all lie in one block of memory."""
    memory = array("d", itertools.chain.from_iterable(lists.values()))
    out, start = {}, 0
    for name, values in lists.items():
        n = len(values)
        # An empty part of a buffer is an error for frombuffer.
        part = torch.frombuffer(memory, dtype=torch.float64, count=n, offset=start) if n else tensor([])
        out[name] = part
        start += 8 * n
    return out


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
