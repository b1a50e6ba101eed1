"""``constant``: fixed weights, used as given."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from mtlcore import vector
from mtlcore.contracts import Aggregation, Aggregator, Needs, State, StepView
from mtlplugins.per_task import check_length


@dataclasses.dataclass(frozen=True)
class Constant(Aggregator):
    """d = sum_i u_i g_i with the numbers u_i as given: not normalised, and negative ones allowed. [textbook]

    ``ls`` normalises its weights to sum 1 and leaves their common scale to the learning rate; here the scale is part of
    the method. A negative u_i increases L_i (for adversarial terms). If tasks are absent, the others keep their u_i.

    Proved: d is linear in the gradients. With all u_i >= 0, d is in the cone of the gradients. Not promised: no
    conflict.
    Cost: one backward pass, O(1) in K.

    Args:
        weights: one number per task; None: ones (the sum).

    Raises:
        ConfigurationError: there is not one weight per task.
    """

    needs = Needs.LOSSES
    paper: ClassVar[str] = ""

    weights: tuple[float, ...] | None = vector(None)

    @property
    def claims(self) -> frozenset[str]:  # type: ignore[override]
        """What is promised; equal weights treat tasks alike, negative ones leave the cone."""
        always = {
            "positively-homogeneous",
            "linear-under-scaling",
            "resume-equivalent",
            "one-backward-pass",
            "parameter-rotation",
            "coefficient-identity",
        }
        if self.weights is None:
            always |= {"permutation-equivariant", "no-conflict-identity"}
        if self.weights is None or min(self.weights, default=0.0) >= 0.0:
            always.add("conic-combination")
        return frozenset(always)

    def init(self, n_tasks: int) -> State:
        """No state."""
        check_length("constant", "weights", self.weights, n_tasks)
        return {}

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """The given numbers (K,) of the tasks present."""
        if self.weights is None:
            return Aggregation(weights=torch.ones(view.n_tasks, dtype=torch.float64, device="cpu"), state=state)
        check_length("constant", "weights", self.weights, max(len(self.weights), max(view.task_index) + 1))
        chosen = [self.weights[i] for i in view.task_index]
        return Aggregation(weights=torch.tensor(chosen, dtype=torch.float64, device="cpu"), state=state)
