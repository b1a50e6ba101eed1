"""``conicgrad``: the best common descent direction within a cone around the mean gradient."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import torch

from mtlcore import Aggregation, Aggregator, Needs, StepView, flag, number
from mtlplugins.aggregators import _numpy
from mtlplugins.solvers.certificate import EPS
from mtlplugins.solvers.cone import best_in_cone
from mtlplugins.solvers.safety import without_conflict

State = dict[str, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class ConicGrad(Aggregator):
    """Hassanpour et al. 2025 (2502.00217) [paper: abstract and introduction]: with g_0 the mean gradient,

        d = argmax_d min_i <g_i, d>   subject to   <g_0, d> >= c |g_0| |d| ,   |d| = |g_0| .

    The angle to g_0 is bounded here; in CAGrad it is the distance. The length of d is fixed. The paper updates task
    weights by one gradient step on the dual problem per training step, and has a closed form of d for given weights,
    which could not be read. Here the problem is solved exactly in every step, over |d| <= |g_0|, which makes it convex
    (:mod:`mtlplugins.solvers.cone`) [choice]. There is no state.

    Proved: d = 0 is feasible in the convex problem, so min_i <g_i, d> >= 0: no conflict, for every c. d is 0, or its
    length is |g_0|. A non-zero d is along the min-norm direction if the cone contains that, and on the boundary of the
    cone otherwise; its weights are >= 0. Not promised without ``fallback``: d != 0 wherever a common descent direction
    exists. It may lie outside of the cone; then d = 0 and the diagnostics say "outside". With ``fallback`` the answer
    is then the min-norm direction, scaled to length |g_0|.
    Cost: the Gramian, then a few K x K systems.

    Args:
        c: smallest cosine with g_0; 0.25 [memory].
        fallback: whether to leave the cone if no direction within it serves every task [choice: True].
    """

    needs: ClassVar[Needs] = Needs.GRAMIAN
    paper: ClassVar[str] = "https://arxiv.org/abs/2502.00217"

    c: float = number(0.25, low=0.0, high=1.0, open_low=True, open_high=True)
    fallback: bool = flag(True)

    @property
    def claims(self) -> frozenset[str]:  # type: ignore[override]
        """What is promised; only with the fallback is there a step wherever one exists."""
        always = {
            "non-conflicting",
            "permutation-equivariant",
            "positively-homogeneous",
            "conic-combination",
            "matches-reference",
            "resume-equivalent",
            "parameter-rotation",
            "strongly-stationary-zero",
        }
        return frozenset(always | ({"zero-only-if-stationary"} if self.fallback else set()))

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """|g_0| times the best unit direction."""
        rows = _numpy.read(view)
        uniform = 1.0 / view.n_tasks
        if not len(rows.norms):
            return Aggregation(weights=_numpy.tensor(np.full(view.n_tasks, uniform)), state=state)
        mean = rows.norms * uniform
        square = float(mean @ rows.matrix @ mean)
        if square <= 16.0 * len(mean) * EPS * float(mean.sum()) ** 2:
            zero = _numpy.tensor(np.zeros(view.n_tasks))
            return Aggregation(weights=zero, state=state, diagnostics={"solver": "stationary: the mean is zero"})
        length = square**0.5
        b, level, certificate = best_in_cone(rows.matrix, rows.norms, mean / length, self.c)
        notes = {**certificate.diagnostics(), "smallest_gain": level * length}
        if self.fallback and certificate.status == "outside":
            b, level, inside = best_in_cone(rows.matrix, rows.norms, mean / length, 0.0)
            notes |= {"fallback": "no direction within the cone serves every task", **inside.diagnostics()}
        b, checked = without_conflict(rows.matrix, b * length)
        return Aggregation(
            weights=_numpy.tensor(rows.scatter(b / rows.norms)), state=state, diagnostics={**notes, **checked}
        )
