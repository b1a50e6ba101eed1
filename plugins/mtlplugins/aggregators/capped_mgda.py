"""``capped-mgda``: the min-norm point under an upper bound on every task's weight."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from mtlcore import number
from mtlcore.contracts import Aggregation, Aggregator, Needs, State, StepView
from mtlplugins.aggregators import _numpy
from mtlplugins.solvers.capped import capped_min_norm


@dataclasses.dataclass(frozen=True)
class CappedMGDA(Aggregator):
    """Hu, Ho and Yu 2026 (2605.30452) [paper: abstract, "derived from a CVaR-based formulation"; formula: derived]:

        d = J'a ,   a = argmin |J'a|^2   over   a >= 0 , sum a = 1 , a_i <= 1 / (share K) .

    By duality d points along the unit vector u that maximises the mean gain of the worst ``share`` of the tasks, their
    conditional value at risk: u is argmax over |u| <= 1 of the minimum over such a of a'J u. share <= 1/K is MGDA (one
    task can decide), share = 1 is the mean. In between, fewer than share K hostile or broken tasks cannot decide the
    step alone.

    The problem is solved exactly, by an active-set method (:mod:`mtlplugins.solvers.capped`). Proved: <g_i, d> >= |d|^2
    for every task whose weight is below the cap; d = 0 only if the convex hull contains 0. Not promised: no conflict
    with a task at the cap. A task with zero gradient takes the full cap. K in the cap counts the tasks present.
    Cost: the Gramian, then about K systems of size up to K.

    Args:
        share: fraction of the tasks whose mean gain is maximised; 0.5 [choice].
    """

    needs = Needs.GRAMIAN
    paper: ClassVar[str] = "https://arxiv.org/abs/2605.30452"

    share: float = number(0.5, low=0.0, high=1.0, open_low=True)
    claims = frozenset(
        {
            "permutation-equivariant",
            "positively-homogeneous",
            "conic-combination",
            "simplex-weights",
            "matches-reference",
            "resume-equivalent",
            "parameter-rotation",
            "zero-only-if-stationary",
        }
    )

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """a (K,)."""
        rows, k = _numpy.read(view), view.n_tasks
        cap = min(1.0, max(1.0 / (self.share * k), 1.0 / k))
        live = len(rows.norms)
        dead = (k - live) * cap
        if dead >= 1.0 or not live:
            weights = rows.scatter(np.zeros(live), dead=1.0 / max(k - live, 1))
            why = {"solver": "stationary: zero gradients take all the weight"}
            return Aggregation(weights=_numpy.tensor(weights), state=state, diagnostics=why)
        left = 1.0 - dead
        b, certificate = capped_min_norm(rows.matrix, 1.0 / rows.norms, max(cap / left, 1.0 / live))
        weights = rows.scatter(left * b / rows.norms, dead=cap)
        notes = {**certificate.diagnostics(), "cap": cap}
        return Aggregation(weights=_numpy.tensor(weights), state=state, diagnostics=notes)
