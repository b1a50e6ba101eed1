"""A made-up run of a few steps, for laws that must hold beyond the first one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from mtlcore import Aggregator
from mtlverify.answer import Answer, answered, stepped, view_of
from mtlverify.example import Example

STEPS = 4


def losses_at(example: Example, number: int) -> Tensor:
    """(K,) losses before step ``number``: each falls at a rate of its own."""
    rates = torch.linspace(0.5, 0.9, example.n_tasks, dtype=torch.float64)
    return example.losses * rates**number


def step(
    plugin: Aggregator,
    example: Example,
    number: int,
    state: dict[str, Tensor],
    order: Sequence[int] | None = None,
) -> tuple[Answer, dict[str, Tensor]]:
    """The answer in step ``number``, in which gradients have turned and losses fallen, and the state after it.

    With ``order`` the same run, in which the tasks are listed in another order, some of them, or some twice.
    """
    listed = list(range(example.n_tasks) if order is None else order)
    rows, seed = torch.roll(example.jacobian, number, dims=1)[listed], example.seed + number
    view = view_of(plugin, rows, losses_at(example, number)[listed], seed=seed, step=number)
    aggregation = stepped(plugin, view, state, rows)
    with torch.no_grad():  # as in a step
        seen = view_of(plugin, rows, losses_at(example, number + 1)[listed], seed=seed, step=number)
        return answered(aggregation, rows), plugin.observe(seen, dict(aggregation.state))


def answers(plugin: Aggregator, example: Example, order: Sequence[int] | None = None) -> Iterator[Answer]:
    """The answers of the whole run; of its first step only if the method has no state, for then they are all alike."""
    state = plugin.init(example.n_tasks if order is None else len(order))
    for number in range(STEPS if state else 1):
        answer, state = step(plugin, example, number, state, order)
        yield answer


def direction_in(plugin: Aggregator, example: Example, number: int) -> Callable[[Tensor], Tensor]:
    """The direction of step ``number`` as a function of the run's gradients."""
    return lambda rows: list(answers(plugin, example.with_(jacobian=rows)))[number].direction
