"""The smallest conflict that can be drawn: two parameters, small integers, found by enumeration."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mtlverify import tolerance
from mtlverify.answer import Answer, ask
from mtlverify.example import Example

VISIBLE = 0.1
"""Sine of the angle (6 degrees) by which a direction must be on the wrong side to be seen in a picture."""
LARGEST = {2: 4, 3: 2}
"""Number of tasks -> largest entry that is tried."""


def worst_cosine(answer: Answer) -> float:
    """min_i <g_i, d> / (|g_i| |d|); 0 where d is nothing but rounding."""
    values = cosines(answer)
    return 0.0 if values is None else float(values.min())


def cosines(answer: Answer) -> Tensor | None:
    """(number of non-zero rows,) or None."""
    if answer.length <= tolerance.equality(answer):
        return None
    rows = answer.jacobian.double()
    rows = rows[rows.norm(dim=1) > 0]
    out: Tensor = (rows / rows.norm(dim=1, keepdim=True)) @ (answer.direction.double() / answer.length)
    return out


def matrices(escapable: bool) -> Iterator[Tensor]:
    """(K, 2) integer matrices without zero rows, order of tasks ignored, fewest tasks and smallest entries first; with
    or without a common descent direction."""
    for k, largest in LARGEST.items():
        rows = [r for r in itertools.product(range(-largest, largest + 1), repeat=2) if any(r)]
        rows.sort(key=lambda r: (max(map(abs, r)), sum(map(abs, r)), r))
        sets = itertools.combinations_with_replacement(range(len(rows)), k)
        for chosen in sorted(sets, key=lambda c: (max(c), sum(c))):
            matrix = torch.tensor([rows[i] for i in chosen], dtype=torch.float64)
            if has_common_descent(matrix) == escapable:
                yield matrix


def has_common_descent(rows: Tensor) -> bool:
    """Some direction is visibly good for every task."""
    return bool(((rows / rows.norm(dim=1, keepdim=True)) @ _rays() > VISIBLE).all(dim=0).any())


@functools.cache
def _rays() -> Tensor:
    angles = torch.arange(0.0, 360.0, 5.0, dtype=torch.float64).deg2rad()
    return torch.stack([angles.cos(), angles.sin()])


def smallest_conflict(plugin: Any) -> Example | None:
    """The first matrix on which the method visibly harms a task: one with a common descent direction, if there is."""
    for rows in itertools.chain(matrices(escapable=True), matrices(escapable=False)):
        example = Example(rows, torch.ones(len(rows), dtype=torch.float64))
        try:
            if worst_cosine(ask(plugin, example)) <= -VISIBLE:
                return example
        except Exception:  # a method that cannot be asked this way has its counterexample from the search
            return None
    return None
