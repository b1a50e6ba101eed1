"""Linear scalarisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from mtlcore import Aggregation, Aggregator, Needs, StepView, vector
from mtlplugins.per_task import check_length, weights_present

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class LS(Aggregator):
    """The mean of the losses, or a weighted mean: d = sum_i u_i g_i with u on the simplex.

    One backward pass, O(1) in K. A stationary point is Pareto stationary, because the weights are a fixed point of
    the simplex. It may conflict with tasks. [textbook]

    Args:
        weights: one non-negative number per task, normalised to sum 1; None: equal weights.

    Raises:
        ConfigurationError: the weights of the tasks present are all zero, or there is not one per task.
    """

    needs: ClassVar[Needs] = Needs.LOSSES

    weights: tuple[float, ...] | None = vector(None, low=0.0)

    @property
    def claims(self) -> frozenset[str]:  # type: ignore[override]
        """What is promised; equal weights treat tasks alike."""
        always = {
            "positively-homogeneous",
            "linear-under-scaling",
            "conic-combination",
            "simplex-weights",
            "matches-reference",
            "resume-equivalent",
            "one-backward-pass",
            "coefficient-identity",
            "parameter-rotation",
        }
        if self.weights is None:
            always |= {"permutation-equivariant", "no-conflict-identity", "zero-only-if-stationary"}
        return frozenset(always)

    def init(self, n_tasks: int) -> State:
        """No state."""
        check_length("ls", "weights", self.weights, n_tasks)
        return {}

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """Constant weights."""
        n = view.n_tasks
        if self.weights is None:
            return Aggregation(weights=torch.full((n,), 1.0 / n, dtype=torch.float64, device="cpu"), state=state)
        chosen = torch.tensor(weights_present("ls", self.weights, view), dtype=torch.float64, device="cpu")
        return Aggregation(weights=chosen / chosen.sum(), state=state)
