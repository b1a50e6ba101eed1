"""``task-weighted``: any method, for tasks that do not count alike."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from mtlcore import Aggregation, StepView, vector
from mtlcore.contracts import State
from mtlplugins.per_task import check_length
from mtlplugins.wrapping import Wrapper, scaled


@dataclasses.dataclass(frozen=True)
class TaskWeighted(Wrapper):
    """The method sees the losses u_i L_i and their gradients u_i g_i, u_i > 0. [choice: one meaning for every method]

    The same as multiplying the losses before they are handed over, but part of the method, of its checkpoint and of its
    tuning; heads get u_i times what the method gives them. Proved: u_i > 0 changes no sign of an inner product, so no
    conflict is kept; so are the cone, scaling and zeros. Dropped: symmetry, since tasks are named. A method that does
    not see scale (Nash-MTL, ConFIG's direction) does not see u either: use the method's own preferences there.

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
        """Without weights nobody is named."""
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
        answer, new = self.asked(scaled(view, u, self.wrapped.needs, losses=view.losses * u), state)
        heads, weights = answer.head_weights, answer.weights
        if weights is not None:
            weights = weights.cpu().double() * u
        heads = None if heads is None else heads.cpu().double() * u
        if heads is None and self.wrapped.needs > 0:
            heads = u
        return dataclasses.replace(answer, weights=weights, state=new, head_weights=heads)

    def observe(self, view: StepView, state: State) -> State:
        """The second look, at u_i L_i."""
        if self.weights is None:
            return super().observe(view, state)
        u = torch.tensor([self.weights[i] for i in view.task_index], dtype=torch.float64, device="cpu")
        return super().observe(scaled(view, u, self.wrapped.needs.LOSSES, losses=view.losses * u), state)
