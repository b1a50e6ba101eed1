"""``uw``: uncertainty weighting (Kendall et al. 2018)."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from mtlcore import number
from mtlcore.contracts import Aggregation, Aggregator, Needs, State, StepView
from mtlplugins import adam
from mtlplugins.arrays import arrays, losses_of, put, take, tensors, touched


@dataclasses.dataclass(frozen=True)
class UW(Aggregator):
    """Learns s_i = log sigma_i^2 with the network: min sum_i (exp(-s_i) L_i + s_i) / 2, hence w_i = exp(-s_i) / 2.

    s starts at ``init`` and takes one step of Adam beside each step of the network, at the losses before it. [lib
    code: Nash-MTL's repository, s = 0 and Adam with lr 0.025; LibMTL starts at -0.5. The form with 1/2 is meant for
    regression; it is used for every loss there and here.]
    Proved: for fixed L_i > 0 the optimum is exp(s_i) = L_i, that is w_i = 1 / (2 L_i); weights are positive.
    Not promised: a minimum in s for a loss <= 0 (s_i falls without bound, the weight grows), or descent of every task.

    Args:
        lr: step size of s.
        start: first value of s.
    """

    needs = Needs.LOSSES
    claims = frozenset(
        {
            "conic-combination",
            "permutation-equivariant",
            "resume-equivalent",
            "one-backward-pass",
            "coefficient-identity",
        }
    )

    lr: float = number(0.025, low=0.0, log=True)
    start: float = number(0.0)

    def init(self, n_tasks: int) -> State:
        """s (K,) and Adam's moments."""
        return tensors({"log_variance": np.full(n_tasks, self.start), **adam.fresh(n_tasks)})

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """Weights exp(-s) / 2 at the s before its step."""
        old = arrays(state)
        s = old["log_variance"]
        weights = 0.5 * np.exp(-take(s, view))
        gradient = put(np.zeros_like(s), view, np.clip(0.5 - weights * losses_of(view), -adam.LARGEST, adam.LARGEST))
        moved, moments = adam.step(s, gradient, old[adam.KEY], lr=self.lr, touched=touched(s, view))
        return Aggregation(
            weights=torch.from_numpy(weights),
            state=tensors({"log_variance": moved, adam.KEY: moments}),
            diagnostics={"log_variance": torch.from_numpy(moved)},
        )
