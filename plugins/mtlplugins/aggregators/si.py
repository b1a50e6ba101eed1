"""``si``: the scale-invariant baseline, the sum of the log losses."""

from __future__ import annotations

import dataclasses

import torch

from mtlcore.contracts import Aggregation, Aggregator, Needs, State, StepView
from mtlplugins.arrays import losses_of
from mtlplugins.positive import positive, solve_part


@dataclasses.dataclass(frozen=True)
class SI(Aggregator):
    """min sum_i log L_i, hence w_i = 1 / L_i [paper*, as in the Nash-MTL and FAMO comparisons].

    Proved: w_i grad L_i does not change when the loss of task i is measured in another unit (L_i -> c L_i). Weights are
    positive, so a stationary point of the sum is Pareto stationary.
    Not promised: descent of every task. As a loss goes to zero its weight grows without bound.

    Raises:
        LossError: a negative loss; names the task.
    """

    needs = Needs.LOSSES
    paper = "https://arxiv.org/abs/2202.01017"
    claims = frozenset(
        {
            "conic-combination",
            "permutation-equivariant",
            "loss-unit-invariant",
            "resume-equivalent",
            "one-backward-pass",
            "coefficient-identity",
        }
    )

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """Weights 1 / L_i; a task whose loss is exactly zero is left out (see mtlplugins.positive)."""
        losses = losses_of(view)
        keep = positive(view, "si takes its logarithm: shift the loss, or use a method without logarithms.")
        if keep is not None:
            return solve_part(view, keep, state, lambda part: self.aggregate(part, state))
        return Aggregation(weights=torch.from_numpy(1.0 / losses), state=state)
