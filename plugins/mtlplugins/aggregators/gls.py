"""``gls``: geometric loss strategy (Chennupati et al. 2019)."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from mtlcore.contracts import Aggregation, Aggregator, Needs, State, StepView
from mtlplugins.arrays import losses_of
from mtlplugins.positive import positive, solve_part


@dataclasses.dataclass(frozen=True)
class GLS(Aggregator):
    """min (prod_i L_i)^(1/K), hence w_i = GLS / (K L_i), where GLS is the geometric mean of the losses [paper*, lib
    code].

    Proved: d is GLS times the mean gradient of the log losses. So its *direction* does not depend on the losses' units;
    its length is multiplied by c^(1/K) when one loss is multiplied by c. Weights are positive.
    Not promised: descent of every task.

    Raises:
        LossError: a negative loss; names the task.
    """

    needs = Needs.LOSSES
    paper = "https://arxiv.org/abs/1904.08492"
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
        """Weights GLS / (K L_i), the mean taken over the tasks whose loss is not exactly zero."""
        losses = losses_of(view)
        keep = positive(view, "gls takes its logarithm: shift the loss, or use a method without logarithms.")
        if keep is not None:
            return solve_part(view, keep, state, lambda part: self.aggregate(part, state))
        # Through logarithms: a product of 40 losses of 1e-12 would underflow.
        logs = np.log(losses)
        mean = logs.mean()
        weights = torch.from_numpy(np.exp(mean - logs) / view.n_tasks)
        return Aggregation(weights=weights, state=state, diagnostics={"geometric_mean": float(np.exp(mean))})
