"""Laws about tasks that are missing from a batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mtlverify.answer import uses_randomness
from mtlverify.example import Example
from mtlverify.law import anything, given, law, worst
from mtlverify.laws.compare import same_direction_and_length
from mtlverify.laws.runs import Reaction, answers, length, step, steps
from mtlverify.strategies import Draw, jacobians
from mtlverify.strategies import pick as st


def absentees(draw: Draw, k: int, p: int) -> dict[str, Any]:
    """Which tasks are present; there is at least one."""
    present = draw(st.lists(st.booleans(), min_size=k, max_size=k))
    present[draw(st.integers(0, k - 1))] = True
    return {"present": present}


def same_draws(plugin: Any) -> str | None:
    """The law does not apply to random methods that handle absent tasks, because they may draw numbers for them."""
    if plugin.handles_absent and uses_randomness(plugin):
        return "draws from the generator, and may draw for absent tasks, too"
    return None


@law(
    "absent-task",
    statement="A task missing from the batch has weight 0 and no influence: the answer is that of the tasks present.",
    source="an absent task is not a zero gradient (a zero gradient would be Pareto-stationary)",
    examples=lambda: jacobians(more=absentees),
    within=anything,
    applies=same_draws,
)
def absent_task(plugin: Any, example: Example) -> float:
    """Absent rows are 0 and absent losses NaN, as in a real step. If the method has a state, the law is checked along a
    run in which the same tasks are always absent."""
    present = torch.tensor(example.extra["present"])
    alone = answers(plugin, example, present.nonzero().flatten().tolist())
    given(bool(present.any()), "a task is present")
    together = _with_absent(plugin, example, present)

    react = Reaction(lambda rows: _with_absent(plugin, example.with_(jacobian=rows), present))
    margins = (
        same_direction_and_length(got, expected.direction, (expected,), react.at(number), example.jacobian)
        for number, (got, expected) in enumerate(zip(together, alone, strict=True))
    )
    return worst(margins, of="step")


def _with_absent(plugin: Any, example: Example, present: Tensor) -> Iterator[Tensor]:
    """The directions of the run. (A step itself sets the weight of an absent task to 0.)"""
    away = [
        [number, task] for number in range(steps(example)) for task, there in enumerate(present.tolist()) if not there
    ]
    example = example.with_(extra={"away": away})
    state = plugin.init(example.n_tasks)
    for number in range(length(state, example)):
        answer, state = step(plugin, example, number, state)
        yield answer.direction
