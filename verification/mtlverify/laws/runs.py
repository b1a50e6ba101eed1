"""A made-up run of a few steps, for laws that must hold beyond the first one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from mtlcore import Aggregator, StepView
from mtlverify.answer import Answer, answered, start, stepped, view_of
from mtlverify.example import Example
from mtlverify.strategies import Draw

STEPS = 4
LONG = 8
"""Steps of one run in sixteen: what goes wrong late, a warm-up that ends or a window that is full, shows there only."""


def steps(example: Example) -> int:
    """Steps of the run on an example. The seed says so, so a counterexample from a long run is replayed as one."""
    return LONG if example.seed % 16 == 15 else STEPS


def absences(draw: Draw, k: int, p: int) -> dict[str, Any]:
    """Which tasks are away in which step, as pairs (step, task). In every step one task at least is there; in about
    half of the runs, and late in a long one, all are there all the time."""
    away: list[list[int]] = []
    for number in range(STEPS) if k > 1 and draw(st.booleans()) else ():
        stays = draw(st.integers(0, k - 1))
        out = draw(st.lists(st.booleans(), min_size=k, max_size=k))
        away += [[number, task] for task in range(k) if out[task] and task != stays]
    return {"away": away}


def losses_at(example: Example, number: int) -> Tensor:
    """(K,) losses before step ``number``: each falls at a rate of its own."""
    rates = torch.linspace(0.5, 0.9, example.n_tasks, dtype=torch.float64)
    return example.losses * rates**number


def views(
    plugin: Aggregator, example: Example, number: int, order: Sequence[int] | None = None
) -> tuple[Tensor, StepView, StepView]:
    """The rows of step ``number``, in which gradients have turned and losses fallen, and the views before and after it.

    With ``order`` the same run, in which the tasks are listed in another order, some of them, or some twice. As in a
    real step, a task that is away (``example.extra["away"]``) has rows of zeros and losses of NaN.
    """
    listed = list(range(example.n_tasks) if order is None else order)
    away = {task for at, task in example.extra.get("away", ()) if at == number}
    present = torch.tensor([task not in away for task in listed])
    rows = torch.roll(example.jacobian, number, dims=1)[listed] * present[:, None]
    shown = None if bool(present.all()) else present
    late = start(plugin, example)

    def view(at: int) -> StepView:
        losses = losses_at(example, at)[listed].masked_fill(~present, float("nan"))
        return view_of(plugin, rows, losses, seed=example.seed + number, step=late + number, present=shown)

    return rows, view(number), view(number + 1)


def observed(plugin: Aggregator, seen: StepView, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state after the method has seen the losses after its step, looked at as in a step."""
    shown = seen if seen.complete or plugin.handles_absent else seen.restricted(seen.present)
    with torch.no_grad():
        return plugin.observe(shown, state)


def step(
    plugin: Aggregator,
    example: Example,
    number: int,
    state: dict[str, Tensor],
    order: Sequence[int] | None = None,
) -> tuple[Answer, dict[str, Tensor]]:
    """The answer in step ``number`` of the run, and the state after it."""
    rows, before, after = views(plugin, example, number, order)
    aggregation = stepped(plugin, before, state, rows)
    return answered(aggregation, rows), observed(plugin, after, dict(aggregation.state))


def length(state: dict[str, Tensor], example: Example) -> int:
    """Steps of a run that are worth asking about: the first only if the method has no state, for then all are alike."""
    return steps(example) if state else 1


def answers(plugin: Aggregator, example: Example, order: Sequence[int] | None = None) -> Iterator[Answer]:
    """The answers of the whole run, or of its first step with all tasks there if the method has no state."""
    state = plugin.init(example.n_tasks if order is None else len(order))
    if not state:
        example = example.with_(extra={**example.extra, "away": []})
    for number in range(length(state, example)):
        answer, state = step(plugin, example, number, state, order)
        yield answer


def direction_in(plugin: Aggregator, example: Example, number: int) -> Callable[[Tensor], Tensor]:
    """The direction of step ``number`` as a function of the run's gradients."""
    return lambda rows: list(answers(plugin, example.with_(jacobian=rows)))[number].direction
