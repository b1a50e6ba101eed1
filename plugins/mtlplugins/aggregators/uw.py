"""``uw``: uncertainty weighting (Kendall et al. 2018)."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from mtlcore import choice, integer, number
from mtlcore.contracts import Aggregation, Aggregator, Needs, State, StepView
from mtlplugins import adam, schedule
from mtlplugins.arrays import arrays, losses_of, put, take, tensors, touched
from mtlplugins.positive import positive, solve_part


@dataclasses.dataclass(frozen=True)
class UW(Aggregator):
    """s_i = log sigma_i^2 is learned with the network: min sum_i (exp(-s_i) L_i + s_i) / 2, hence w_i = exp(-s_i) / 2.

    s starts at ``start``. Adam makes one step on s in each step of the network, at the losses before that step. [lib
    code: Nash-MTL's repository, s = 0 and Adam with lr 0.025; LibMTL starts at -0.5. The form with 1/2 is derived for
    regression; it is used for every loss there and here.]
    Proved: for fixed L_i > 0 the optimum is exp(s_i) = L_i, that is, w_i = 1 / (2 L_i); weights are positive.
    A loss <= 0 has no optimum: s_i would fall, and the weight would grow, without bound. Therefore a negative loss is
    an error, and a task with a loss of exactly zero is left out of the step; its s_i does not change (see
    mtlplugins.positive).
    Not promised: descent of every task.

    Args:
        lr: step size of s.
        start: first value of s.
        lr_schedule: how ``lr`` changes: "constant" (default [choice], because a method does not see the schedule of the
            training loop), "step" or "cosine" (see mtlplugins.schedule). In published code s is in the network's
            optimizer and follows its schedule [lib code]: give the same schedule here.
        lr_steps: length of the schedule in steps.
        lr_factor: factor of the schedule "step".

    Raises:
        LossError: a negative loss; names the task.
        ConfigurationError: a schedule without its length.
    """

    needs = Needs.LOSSES
    paper = "https://arxiv.org/abs/1705.07115"
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
    lr_schedule: str = choice("constant", schedule.KINDS)
    lr_steps: int | None = integer(None, low=1)
    lr_factor: float = number(0.5, low=0.0, high=1.0, open_low=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        schedule.check("uw", self.lr_schedule, self.lr_steps)

    def init(self, n_tasks: int) -> State:
        """s (K,) and Adam's moments."""
        return tensors({"log_variance": np.full(n_tasks, self.start), **adam.fresh(n_tasks)})

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """Weights exp(-s) / 2 at the s before its step."""
        keep = positive(view, "uw learns its logarithm: shift the loss by its lower bound, or use another method.")
        if keep is not None:
            return solve_part(view, keep, state, lambda part: self.aggregate(part, state))
        old = arrays(state)
        s = old["log_variance"]
        weights = 0.5 * np.exp(-take(s, view))
        gradient = put(np.zeros_like(s), view, np.clip(0.5 - weights * losses_of(view), -adam.LARGEST, adam.LARGEST))
        lr = schedule.rate(self.lr, self.lr_schedule, self.lr_steps, self.lr_factor, view.step)
        moved, moments = adam.step(s, gradient, old[adam.KEY], lr=lr, touched=touched(s, view))
        return Aggregation(
            weights=torch.from_numpy(weights),
            state=tensors({"log_variance": moved, adam.KEY: moments}),
            diagnostics={"log_variance": torch.from_numpy(moved)},
        )
