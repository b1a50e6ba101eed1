"""``famo``: fast adaptive multitask optimization (Liu et al. 2023)."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from mtlcore import number
from mtlcore.contracts import Aggregation, Aggregator, Needs, State, StepView
from mtlplugins import adam
from mtlplugins.arrays import arrays, log_quotient, losses_of, put, softmax, take, tensors, touched
from mtlplugins.positive import positive, solve_part


@dataclasses.dataclass(frozen=True)
class FAMO(Aggregator):
    """Equal rates of decrease of the log losses, approached over many steps [paper*, official code].

    With logits u and z = softmax(u), the step is gradient descent on sum_i z_i log L_i, scaled so that the weights sum
    to one,
        w_i = (z_i / L_i) / sum_j (z_j / L_j).
    After the step the losses of the same batch are computed again. With delta_i = log L_i(before) - log L_i(after),
        u <- Adam(u, (diag z - z z^T) delta + gamma u),
    where the second argument is Adam's gradient: the task that improved most loses weight. A step costs one backward
    pass and one more forward pass.

    Proved: weights are positive and sum to one; with gamma = 0, equal improvements do not change u; when a loss is
    measured in another unit, all w_i grad L_i change by one common factor, and delta does not change.
    Not promised: descent of every task in a single step. (The problem that FAMO approximates has that property.)
    Differs from the code: 1e-8 is not added to the losses (see mtlplugins.positive). If the minimum of a loss is not
    zero, subtract it from the loss before it is passed in.

    Args:
        lr: Adam's step size of u.
        gamma: its weight decay: 0.001 on NYUv2, CelebA and QM9, 0.01 on Cityscapes [official run scripts].

    Raises:
        LossError: a negative loss; names the task.
    """

    needs = Needs.LOSSES
    paper = "https://arxiv.org/abs/2306.03792"
    claims = frozenset(
        {
            "simplex-weights",
            "conic-combination",
            "permutation-equivariant",
            "loss-unit-invariant",
            "resume-equivalent",
            "one-backward-pass",
            "coefficient-identity",
        }
    )

    lr: float = number(0.025, low=0.0, log=True)
    gamma: float = number(1e-3, low=0.0, log=True)

    def init(self, n_tasks: int) -> State:
        """Logits u, Adam's moments, and the losses before the step (0: the task took no part in it)."""
        return tensors({"logits": np.zeros(n_tasks), "before": np.zeros(n_tasks), **adam.fresh(n_tasks)})

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """Weights (K,) that sum to one. Remembers the losses for :meth:`observe`."""
        losses, forgotten = losses_of(view), {**state, "before": torch.zeros_like(state["before"])}
        keep = positive(view, _WAY_OUT)
        if keep is not None and not any(keep):  # every loss at its minimum: the limit of equal losses that vanish
            z = softmax(take(state["logits"].numpy(), view))
            note = {"z": torch.from_numpy(z), "left_out": "every task: loss is exactly zero"}
            return Aggregation(weights=torch.from_numpy(z), state=forgotten, diagnostics=note)
        if keep is not None:
            return solve_part(view, keep, forgotten, lambda part: self.aggregate(part, state))
        old = arrays(forgotten)
        z = softmax(take(old["logits"], view))
        weights = z / losses
        new = {**forgotten, "before": torch.from_numpy(put(old["before"], view, losses))}
        return Aggregation(
            weights=torch.from_numpy(weights / weights.sum()), state=new, diagnostics={"z": torch.from_numpy(z)}
        )

    def observe(self, view: StepView, state: State) -> State:
        """One step of Adam on the logits of the tasks that had a positive loss before and after."""
        old, after = arrays(state), losses_of(view)
        before = take(old["before"], view)
        positive(view, _WAY_OUT)
        both = (before > 0) & (after > 0)
        if not both.any():
            return state
        if not both.all():
            return self.observe(view.restricted(torch.from_numpy(both)), state)
        u = old["logits"]
        z, delta = softmax(take(u, view)), log_quotient(before, after)
        gradient = put(np.zeros_like(u), view, z * (delta - z @ delta))
        moved, moments = adam.step(
            u, gradient, old[adam.KEY], lr=self.lr, weight_decay=self.gamma, touched=touched(u, view)
        )
        return {**state, **tensors({"logits": moved, adam.KEY: moments})}


_WAY_OUT = "famo takes its logarithm: shift the loss by its lower bound, or use a method without logarithms."
