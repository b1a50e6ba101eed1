"""``ema``: any method, on moving averages of the task gradients."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from mtlcore import Aggregation, Needs, StepView, linalg, number
from mtlcore.contracts import State
from mtlcore.errors import ConfigurationError
from mtlplugins import rows
from mtlplugins.wrapping import Wrapper, changed


@dataclasses.dataclass(frozen=True)
class EMA(Wrapper):
    """m_i <- beta m_i + (1 - beta) g_i, with the bias correction of Adam; the method gets m instead of g. [choice]

    This is momentum before the method instead of after it. The method then compares gradients with less noise; MoCo,
    DB-MTL and M-ConFIG do this in other forms. d = M' w. The method decides about the heads.

    Kept: promises about how d depends on the rows (scaling, symmetry). Dropped: all promises about the gradients of the
    step, such as no conflict. beta = 0 changes nothing. Absent tasks keep m.
    Cost: the rows, and K P numbers of state.

    Args:
        method: any aggregator with one batch a step.
        beta: weight of earlier gradients [choice: 0.9].

    Raises:
        ConfigurationError: the method wants several batches.
    """

    paper: ClassVar[str] = ""
    least = Needs.JACOBIAN
    keeps = frozenset(
        {
            "permutation-equivariant",
            "equivariant-in-distribution",
            "positively-homogeneous",
            "linear-under-scaling",
            "scale-free",
            "parameter-rotation",
        }
    )

    beta: float = number(0.9, low=0.0, high=1.0, open_high=True)

    def init(self, n_tasks: int) -> State:
        """m (K, P), the number of steps of each task, and the method's state."""
        if self.wrapped.batches > 1:
            raise ConfigurationError(
                f"ema averages the gradients of one batch over steps, and {type(self.wrapped).__name__} compares those "
                f"of {self.wrapped.batches}; choose a method that needs one batch."
            )
        count = torch.zeros(n_tasks, dtype=torch.float64, device="cpu")
        return {"mean": rows.empty(), "count": count, **super().init(n_tasks)}

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """A direction (P,)."""
        count = state["count"].clone()
        mean = rows.read(state["mean"], view, len(count))
        at, listed = rows.index(view, mean), list(view.task_index)
        count[listed] += 1.0
        mean[at] = self.beta * mean[at] + (1.0 - self.beta) * view.jacobian
        correction = 1.0 - self.beta ** count[listed]
        seen = (mean[at].double() / correction.to(mean.device)[:, None]).to(mean.dtype)
        answer, new = self.asked(changed(view, jacobian=seen), state)
        direction = answer.direction
        if direction is None:
            assert answer.weights is not None
            direction = linalg.combine(seen, answer.weights)
        new = {**new, "mean": mean, "count": count}
        return dataclasses.replace(
            answer, weights=None, direction=direction, state=new, head_weights=self.heads(answer)
        )
