"""``imtl-l``: impartial loss scaling (Liu et al. 2021)."""

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
class IMTLL(Aggregator):
    """s_i is learned with the network: min sum_i (exp(s_i) L_i - s_i), hence w_i = exp(s_i) [paper*, lib code].

    s starts at 0. Adam makes one step on s in each step of the network. [choice: Adam and its lr, as for uw; the paper
    puts s into the network's optimizer.]
    Proved: for fixed L_i > 0 the optimum is exp(s_i) L_i = 1: all scaled losses equal 1 and w_i = 1 / L_i, in any units
    of the losses. Weights are positive.
    A loss <= 0 has no optimum: s_i would grow without bound. Therefore a negative loss is an error, and a task with a
    loss of exactly zero is left out of the step; its s_i does not change (see mtlplugins.positive).
    Not promised: descent of every task.

    Args:
        lr: step size of s.
        lr_schedule: how ``lr`` changes: "constant" (default [choice], because a method does not see the schedule of the
            training loop), "step" or "cosine" (see mtlplugins.schedule). In the paper s is in the network's optimizer
            and follows its schedule: give the same schedule here.
        lr_steps: length of the schedule in steps.
        lr_factor: factor of the schedule "step".

    Raises:
        LossError: a negative loss; names the task.
        ConfigurationError: a schedule without its length.
    """

    needs = Needs.LOSSES
    paper = "https://openreview.net/forum?id=IMPnRXEWpvr"
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
    lr_schedule: str = choice("constant", schedule.KINDS)
    lr_steps: int | None = integer(None, low=1)
    lr_factor: float = number(0.5, low=0.0, high=1.0, open_low=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        schedule.check("imtl-l", self.lr_schedule, self.lr_steps)

    def init(self, n_tasks: int) -> State:
        """s (K,) and Adam's moments."""
        return tensors({"log_scale": np.zeros(n_tasks), **adam.fresh(n_tasks)})

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """Weights exp(s) at the s before its step."""
        keep = positive(view, "imtl-l learns its logarithm: shift the loss by its lower bound, or use another method.")
        if keep is not None:
            return solve_part(view, keep, state, lambda part: self.aggregate(part, state))
        old = arrays(state)
        s = old["log_scale"]
        weights = np.exp(take(s, view))
        scaled = weights * losses_of(view)
        gradient = put(np.zeros_like(s), view, np.clip(scaled - 1.0, -adam.LARGEST, adam.LARGEST))
        lr = schedule.rate(self.lr, self.lr_schedule, self.lr_steps, self.lr_factor, view.step)
        moved, moments = adam.step(s, gradient, old[adam.KEY], lr=lr, touched=touched(s, view))
        return Aggregation(
            weights=torch.from_numpy(weights),
            state=tensors({"log_scale": moved, adam.KEY: moments}),
            diagnostics={"scaled_losses": torch.from_numpy(scaled)},
        )
