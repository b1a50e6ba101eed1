"""A made-up run of a few steps, for laws that must hold beyond the first one."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlcore import Aggregator
from mtlverify.answer import Answer, answered, view_of
from mtlverify.example import Example

STEPS = 4


def losses_at(example: Example, number: int) -> Tensor:
    """(K,) losses before step ``number``: each falls at a rate of its own."""
    rates = torch.linspace(0.5, 0.9, example.n_tasks, dtype=torch.float64)
    return example.losses * rates**number


def step(
    plugin: Aggregator, example: Example, number: int, state: dict[str, Tensor]
) -> tuple[Answer, dict[str, Tensor]]:
    """The answer in step ``number``, in which gradients have turned and losses fallen, and the state after it."""
    rows, seed = torch.roll(example.jacobian, number, dims=1), example.seed + number
    view = view_of(plugin, rows, losses_at(example, number), seed=seed, step=number)
    with torch.no_grad():  # as in a step
        aggregation = plugin.aggregate(view, state)
        seen = view_of(plugin, rows, losses_at(example, number + 1), seed=seed, step=number)
        return answered(aggregation, rows), plugin.observe(seen, dict(aggregation.state))
