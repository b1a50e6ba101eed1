"""Laws about tasks that are missing from a batch."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from mtlcore import StepView
from mtlcore.aggregation import call
from mtlverify.answer import answered, ask, uses_randomness
from mtlverify.example import Example
from mtlverify.law import law
from mtlverify.laws.compare import same_direction_and_length
from mtlverify.strategies import Draw, jacobians


def absentees(draw: Draw, k: int, p: int) -> dict[str, Any]:
    """Which tasks are present; at least one is."""
    present = draw(st.lists(st.booleans(), min_size=k, max_size=k))
    present[draw(st.integers(0, k - 1))] = True
    return {"present": present}


def same_draws(plugin: Any) -> str | None:
    """A random method that looks at absent tasks itself may draw for them; the others never hear of them."""
    if plugin.handles_absent and uses_randomness(plugin):
        return "draws from the generator, and may draw for absent tasks, too"
    return None


@law(
    "absent-task",
    statement="A task missing from the batch has weight 0 and no influence: the answer is that of the tasks present.",
    source="an absent task is not a zero gradient (a zero gradient would be Pareto-stationary)",
    examples=lambda: jacobians(more=absentees),
    applies=same_draws,
)
def absent_task(plugin: Any, example: Example) -> float:
    """The absent rows are 0 and the absent losses NaN, as in a real step."""
    present = torch.tensor(example.extra["present"])

    def with_absent(rows: Tensor) -> Tensor:
        view = StepView(
            losses=example.losses.masked_fill(~present, float("nan")),
            jacobian=rows * present[:, None],
            present=present,
            generator=example.seed,
        )
        returned = call(plugin, view, plugin.init(example.n_tasks), rows.shape[1])
        if returned.weights is not None and bool((returned.weights[~present] != 0).any()):
            return torch.full((rows.shape[1],), float("nan"))
        return answered(returned, rows * present[:, None]).direction

    alone = ask(plugin, example, jacobian=example.jacobian[present], losses=example.losses[present])
    return same_direction_and_length(
        with_absent(example.jacobian), alone.direction, (alone,), with_absent, example.jacobian
    )
