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
    """Shen et al. 2024 [official code; paper: abstract]: risk indicators of the tasks, averaged within groups.

        p_i <- p_i exp(-eta L_i) / sum_j p_j exp(-eta L_j)         (p = 1/K at first)
        v_i = p_i sum_j L_j / L_i ,      w_i = mean of v over the group of i,

    where the groups are the clusters of the K numbers v_i. By the factor sum_j L_j / L_i the weighted losses are
    v_i L_i = p_i sum_j L_j: their shares are p. p is larger for tasks with a small sum of past losses, by the sign in
    the code.

    Differs from the code: the clusters are optimal, found by dynamic programming; the code runs k-means from a random
    start [choice]. So a step draws no random numbers. ``groups = 1`` gives every task the mean of v, as in the code.
    Proved: weights are positive; sum_i w_i = sum_i v_i. Not promised: descent of every task, or independence of the
    losses' units (the exponent eta L_i has a unit). A task with a loss of exactly zero is left out of the step.
    Absent tasks keep their p; the p of those present are normalised among themselves. Cost: one backward pass.

    Args:
        groups: number of groups, at most the number of tasks. 2 is the smallest number that separates tasks [choice;
            the code has no default].
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
