"""``task-weighted``: any method, with a fixed importance of each task."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from mtlcore import Aggregation, Needs, StepView, vector
from mtlcore.contracts import State
from mtlplugins.per_task import check_length
from mtlplugins.wrapping import Wrapper, scaled


@dataclasses.dataclass(frozen=True)
class TaskWeighted(Wrapper):
    """The method gets the losses u_i L_i and their gradients u_i g_i, u_i > 0. [choice: the same for every method]

    It is the same as multiplying the losses before they are passed in, but u is part of the method: of its checkpoint
    and of its tuning. Heads get u_i times the method's factor. Proved: u_i > 0 changes no sign of an inner product, so
    no conflict is kept, and so are the cone, homogeneity and the zeros of d. Dropped: symmetry, because tasks are
    treated differently. u has no effect on a method that does not depend on the scale of its rows (Nash-MTL, the
    direction of ConFIG): use the method's own preferences there.

    Args:
        method: any aggregator.
        weights: u, one number > 0 per task; None: ones.

    Raises:
        ConfigurationError: there is not one weight per task.
    """

    paper: ClassVar[str] = ""
    keeps = frozenset(
        {
            "non-conflicting",
            "conic-combination",
            "positively-homogeneous",
            "linear-under-scaling",
            "scale-free",
            "loss-unit-invariant",
            "parameter-rotation",
            "strongly-stationary-zero",
            "pareto-stationary-zero",
            "zero-only-if-stationary",
            "one-backward-pass",
        }
    )

    weights: tuple[float, ...] | None = vector(None, low=0.0, open_low=True)

    @property
    def claims(self) -> frozenset[str]:  # type: ignore[override]
        """What is promised; without weights all tasks are treated alike."""
        unnamed = self.wrapped.claims - {"matches-reference", "coefficient-identity"}
        return super().claims if self.weights is not None else unnamed

    def init(self, n_tasks: int) -> State:
        """The method's state."""
        check_length("task-weighted", "weights", self.weights, n_tasks)
        return super().init(n_tasks)

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """The method's weights times u."""
        if self.weights is None:
            answer, new = self.asked(view, state)
            return dataclasses.replace(answer, state=new)
        u = torch.tensor([self.weights[i] for i in view.task_index], dtype=torch.float64, device="cpu")
        answer, new = self.asked(scaled(view, u, self.wrapped.needs, losses=True), state)
        heads, weights = answer.head_weights, answer.weights
        if weights is not None:
            weights = weights.cpu().double() * u
        heads = None if heads is None else heads.cpu().double() * u
        if heads is None and self.wrapped.needs > 0:
            heads = u
        return dataclasses.replace(answer, weights=weights, state=new, head_weights=heads)

    def observe(self, view: StepView, state: State) -> State:
        """The method's second look, at the losses u_i L_i."""
        if self.weights is None:
            return super().observe(view, state)
        u = torch.tensor([self.weights[i] for i in view.task_index], dtype=torch.float64, device="cpu")
        return super().observe(scaled(view, u, Needs.LOSSES, losses=True), state)
