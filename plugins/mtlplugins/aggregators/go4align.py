"""``go4align``: one weight per group of tasks, from adaptive group risk minimisation."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import torch

from mtlcore import integer, number
from mtlcore.contracts import Aggregation, Aggregator, Needs, State, StepView
from mtlplugins.arrays import arrays, losses_of, put, take, tensors
from mtlplugins.grouping import group_means
from mtlplugins.positive import positive, solve_part


@dataclasses.dataclass(frozen=True)
class GO4Align(Aggregator):
    """Shen et al. 2024 [official code; paper: abstract]: risk indicators of the tasks, made equal within groups.

        p_i <- p_i exp(-eta L_i) / sum_j p_j exp(-eta L_j)         (p = 1/K at first)
        v_i = p_i sum_j L_j / L_i ,      w_i = mean of v over the group of i,

    where the groups are the clusters of the K numbers v. The factor sum L / L_i makes p_i v_i's share of the total
    alike for all tasks; p leans towards tasks whose losses have been small in sum, as the sign in the code says.

    Differs from the code: the clusters are the optimal ones, found by dynamic programming, where the code runs k-means
    from a random start [choice], so that a step draws nothing. ``groups = 1`` gives every task the mean of v, as there.
    Proved: weights are positive; sum_i w_i = sum_i v_i. Not promised: descent of every task, or indifference to the
    losses' units (eta L_i has one; v_i L_i has the sum's). A loss of exactly zero is left out of the step.
    Absent tasks keep their p; those present share among themselves what they have. Cost: one backward pass.

    Args:
        groups: number of groups; not more than tasks are used. 2 is the smallest that groups anything [choice; the
            code asks for a number and has no default].
        eta: step size of p [official code: 1e-4].

    Raises:
        LossError: a negative loss; names the task.
    """

    needs = Needs.LOSSES
    paper: ClassVar[str] = "https://arxiv.org/abs/2404.07155"
    claims = frozenset({"conic-combination", "permutation-equivariant", "resume-equivalent", "one-backward-pass"})

    groups: int = integer(2, low=1)
    eta: float = number(1e-4, low=0.0, log=True)

    def init(self, n_tasks: int) -> State:
        """log p (K,), up to a constant."""
        return tensors({"log_share": np.zeros(n_tasks)})

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """Weights (K,), equal within a group."""
        keep = positive(view, "go4align divides by it: shift the loss, or use a method that takes negative losses.")
        if keep is not None:
            return solve_part(view, keep, state, lambda part: self.aggregate(part, state))
        losses, full = losses_of(view), arrays(state)["log_share"]
        before = take(full, view)
        moved = before - self.eta * losses
        share = np.exp(moved - moved.max())
        share /= share.sum()
        with np.errstate(over="ignore"):
            value = share * (losses.sum() / losses)
        value = np.minimum(value, np.finfo(float).max / len(value))
        weights, group = group_means(value, self.groups)
        # Only differences matter, and they are kept finite: what is 1e5 below the largest has no share any more.
        after = put(full, view, np.maximum(moved, moved.max() - 1e5))
        new = tensors({"log_share": after - after.max()})
        return Aggregation(weights=torch.from_numpy(weights), state=new, diagnostics={"group": torch.from_numpy(group)})
