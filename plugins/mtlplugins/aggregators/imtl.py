"""``imtl``: impartial losses and impartial gradients together."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from mtlcore import number
from mtlcore.contracts import Aggregation, Aggregator, Needs, State, StepView
from mtlplugins import adam
from mtlplugins.aggregators import _numpy
from mtlplugins.arrays import arrays, losses_of, put, take, tensors, touched
from mtlplugins.positive import positive
from mtlplugins.solvers.least_squares import minimum_norm


@dataclasses.dataclass(frozen=True)
class IMTL(Aggregator):
    """Liu et al. 2021 [paper*; lib code]: the gradients of the scaled losses exp(s_i) L_i, combined by IMTL-G.

    s as in ``imtl-l``: min sum_i (exp(s_i) L_i - s_i), one step of Adam beside each step of the network. With
    h_i = exp(s_i) g_i, d = sum_i a_i h_i, sum a = 1 and <d, h_i / |h_i|> equal for all i; the weights returned are
    a_i exp(s_i), and task-specific parameters get exp(s_i) [paper*: IMTL-L is for them, IMTL-G for the trunk].

    Proved (independent rows): equal projections on all task gradients, for every s, because unit gradients do not
    depend on s; s changes only the length of d and the heads. As with IMTL-G, d may conflict with every task (K >= 3).
    Where no such d exists, d is zero and the diagnostics say so. The s of absent tasks, and of losses of exactly zero,
    do not change. With a negative loss s would grow without bound; it is an error.
    Cost: the Gramian and one eigendecomposition.

    Args:
        lr: step size of s [choice, as for ``imtl-l``].
    """

    needs = Needs.GRAMIAN
    paper: ClassVar[str] = "https://openreview.net/forum?id=IMPnRXEWpvr"
    claims = frozenset(
        {
            "permutation-equivariant",
            "positively-homogeneous",
            "equal-projections",
            "resume-equivalent",
            "parameter-rotation",
        }
    )

    lr: float = number(0.025, low=0.0, log=True)

    def init(self, n_tasks: int) -> State:
        """s (K,) and Adam's moments."""
        return tensors({"log_scale": np.zeros(n_tasks), **adam.fresh(n_tasks)})

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """Weights a_i exp(s_i) at the s before its step."""
        keep = positive(view, "imtl learns its logarithm: shift the loss by its lower bound, or use imtl-g alone.")
        old = arrays(state)
        s = old["log_scale"]
        scale = np.exp(take(s, view))
        gradient = put(np.zeros_like(s), view, np.clip(scale * losses_of(view) - 1.0, -adam.LARGEST, adam.LARGEST))
        moving = touched(s, view)
        if keep is not None:  # a loss of exactly zero says nothing about its scale
            moving = put(np.zeros(len(s), dtype=bool), view, np.array(keep))
        moved, moments = adam.step(s, gradient, old[adam.KEY], lr=self.lr, touched=moving)
        new, heads = tensors({"log_scale": moved, adam.KEY: moments}), _numpy.tensor(scale)
        rows = _numpy.read(view)
        if not len(rows.norms):
            weights = _numpy.tensor(scale / len(scale))
            return Aggregation(weights=weights, state=new, head_weights=heads)
        x, rank = minimum_norm(rows.matrix, np.ones(len(rows.norms)))
        norms = rows.norms * rows.gather(scale)
        a = x * (float(norms.min()) / norms)
        total, size = float(a.sum()), float(np.abs(a).sum())
        notes: dict[str, object] = {"rank": rank}
        if abs(total) <= 1e-12 * size or size == 0.0:
            notes["undefined"] = "the weights sum to zero: no combination has equal projections"
            a, total = np.zeros_like(a), 1.0
        weights = _numpy.tensor(rows.scatter(a / total) * scale)
        return Aggregation(weights=weights, state=new, diagnostics=notes, head_weights=heads)
