"""Nash-MTL: the Nash bargaining solution between tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from mtlcore import Aggregation, Aggregator, Needs, StepView, choice, integer, number
from mtlplugins import outer
from mtlplugins.aggregators import _numpy
from mtlplugins.solvers.bargain import bargain

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class NashMTL(Aggregator):
    """Navon et al. 2022 [paper via note; official code]: d = J^T a with a > 0 solving, entry by entry, G a = 1 / a.

    d maximises sum_i log <g_i, d> over a ball. With unit rows, a_i = b_i / |g_i| and C b = 1 / b, so only cosines
    matter. It is equivalent to min 1/2 a'Ga - sum log a [derived], which is solved here
    (:mod:`mtlplugins.solvers.barrier`). The authors approximate it by a sequence of convex programs that start from the
    previous step's weights, so their answer depends on earlier steps. Here it does not.

    Proved, where a direction has a positive inner product with every gradient: a_i <g_i, d> = 1, so there is no
    conflict and every task gains; |d|^2 is the number of gradients that are not zero; d does not change when a row is
    multiplied by a positive number; for K = 2, d is along the bisector of the two gradients. If there is no such
    direction, the point is Pareto stationary and no solution exists: then d = 0, the diagnostic ``solver`` is
    "stationary", heads get weight 1, and no weights are kept for reuse [choice]. d = 0 also if the unit gradients have
    a convex combination shorter than about 1e-8: a Gramian in float64 cannot distinguish that from stationarity. So d
    is discontinuous there.

    A task with zero gradient is left out. Its head gets the mean weight, also where weights are reused [choice].

    Cost: the Gramian, then about 5 systems of size K; with reused weights only the Gramian.

    Args:
        update_every: compute the weights in every n-th step and reuse them in between [official code: 1].
        max_norm: clip the trunk's d to this length in every step, also with reused weights; heads are not clipped. The
            authors clip to 1 [official code]. None, the default: no clipping, so that d solves the equation.
        heads: factors of the task-specific gradients: "weights", the default: a, as in the authors' code, which weights
            whole losses [official code]; or "ones".
    """

    paper = "https://arxiv.org/abs/2202.01017"
    needs: ClassVar[Needs] = Needs.GRAMIAN
    degree: ClassVar[float] = 0.0
    handles_absent: ClassVar[bool] = False

    update_every: int = integer(1, low=1)
    max_norm: float | None = number(None, low=0.0, open_low=True)
    heads: str = choice("weights", outer.HEADS)

    @property
    def claims(self) -> frozenset[str]:  # type: ignore[override]
        """What is promised; reused weights belong to earlier gradients, so little is promised of them."""
        if self.update_every > 1:
            return frozenset({"conic-combination", "resume-equivalent"})
        out = {
            "non-conflicting",
            "permutation-equivariant",
            "positively-homogeneous",
            "scale-free",
            "conic-combination",
            "resume-equivalent",
            "parameter-rotation",
            "zero-only-if-stationary",
        }
        return frozenset(out | ({"matches-reference"} if self.max_norm is None else set()))

    def init(self, n_tasks: int) -> State:
        """The weights in use and their age, if they are reused."""
        if self.update_every == 1:
            return {}
        return {
            "weights": torch.ones(n_tasks, dtype=torch.float64, device="cpu"),
            "age": torch.zeros((), dtype=torch.int64, device="cpu"),
        }

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """a = b / |g|."""
        index = list(view.task_index)
        if self.update_every > 1 and int(state["age"]) % self.update_every:
            return self._reused(view, state["weights"][index], {**state, "age": state["age"] + 1})
        rows = _numpy.read(view)
        b, diagnostics = bargain(rows.matrix, rows.norms, 1.0) if len(rows.norms) else (None, {})
        if b is None:
            # There is nothing to hold, and the next step tries again.
            zeros, ones = _numpy.tensor(np.zeros(view.n_tasks)), _numpy.tensor(np.ones(view.n_tasks))
            return Aggregation(weights=zeros, state=state, diagnostics=diagnostics, head_weights=ones)
        a = b / rows.norms
        weights = _numpy.tensor(rows.scatter(a * outer.clip(rows.matrix, b, self.max_norm)))
        whole = _numpy.tensor(rows.scatter(a, dead=float(a.mean())))
        if self.update_every > 1:
            held = state["weights"].clone()
            held[index] = whole
            state = {"weights": held, "age": state["age"] + 1}
        return Aggregation(weights, None, state, diagnostics, outer.head_weights(self.heads, whole))

    def _reused(self, view: StepView, held: torch.Tensor, state: State) -> Aggregation:
        """The weights (K,) of an earlier step on the gradients of this one."""
        weights = held
        if self.max_norm is not None:
            rows = _numpy.read(view)
            weights = held * outer.clip(rows.matrix, rows.norms * rows.gather(held.numpy()), self.max_norm)
        return Aggregation(weights, None, state, {"reused": True}, outer.head_weights(self.heads, held))
