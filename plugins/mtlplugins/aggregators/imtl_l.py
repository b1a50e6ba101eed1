"""``imtl-l``: impartial loss scaling (Liu et al. 2021)."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from mtlcore import number
from mtlcore.contracts import Aggregation, Aggregator, Needs, State, StepView
from mtlplugins import adam
from mtlplugins.arrays import arrays, losses_of, put, take, tensors, touched


@dataclasses.dataclass(frozen=True)
class IMTLL(Aggregator):
    """Learns s_i with the network: min sum_i (exp(s_i) L_i - s_i), hence w_i = exp(s_i) [paper*, lib code].

    s starts at 0 and takes one step of Adam beside each step of the network. [choice: Adam and its lr, as for uw;
    the paper puts s into the network's optimizer.]
    Proved: for fixed L_i > 0 the optimum is exp(s_i) L_i = 1: all scaled losses equal 1, w_i = 1 / L_i, whatever the
    losses' units. Weights are positive.
    Not promised: a minimum in s for a loss <= 0 (s_i grows without bound), or descent of every task.

    Args:
        lr: step size of s.
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

    def init(self, n_tasks: int) -> State:
        """s (K,) and Adam's moments."""
        return tensors({"log_scale": np.zeros(n_tasks), **adam.fresh(n_tasks)})

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """Weights exp(s) at the s before its step."""
        old = arrays(state)
        s = old["log_scale"]
        weights = np.exp(take(s, view))
        scaled = weights * losses_of(view)
        gradient = put(np.zeros_like(s), view, np.clip(scaled - 1.0, -adam.LARGEST, adam.LARGEST))
        moved, moments = adam.step(s, gradient, old[adam.KEY], lr=self.lr, touched=touched(s, view))
        return Aggregation(
            weights=torch.from_numpy(weights),
            state=tensors({"log_scale": moved, adam.KEY: moments}),
            diagnostics={"scaled_losses": torch.from_numpy(scaled)},
        )
