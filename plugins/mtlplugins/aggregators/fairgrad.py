"""FairGrad: alpha-fair allocation of the first-order loss decreases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from mtlcore import Aggregation, Aggregator, Needs, StepView, choice, number
from mtlplugins import outer
from mtlplugins.aggregators import _numpy
from mtlplugins.solvers.bargain import bargain

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class FairGrad(Aggregator):
    """Ban and Ji 2024 [official code; note on section 4]: d = J^T w with w > 0 solving, entry by entry,

        G w = w^(-1/alpha) ,

    the optimality condition of maximising sum_i <g_i, d>^(1-alpha) / (1-alpha) over a ball. alpha = 1 is Nash-MTL,
    alpha = 2 the minimal potential delay, alpha -> inf max-min fairness.

    It is solved as a convex problem on cosines (:mod:`mtlplugins.solvers.bargain`); the authors minimise the squared
    residual under bounds, which is not convex.

    Proved, where a direction has a positive inner product with every gradient: J d = w^(-1/alpha) > 0, so no conflict,
    and every task gains. A(tJ) = t^p A(J), p = (1-alpha)/(1+alpha): the length of d does not shrink with the gradients
    for alpha >= 1, so near a Pareto stationary point clip d (``max_norm``) or lower the step size. At such a point no
    solution exists: then d = 0, the diagnostic ``solver`` is "stationary", and heads get weight 1 [choice]. d = 0 also
    if the unit gradients have a convex combination shorter than about 1e-8: a Gramian in float64 cannot distinguish
    that from stationarity.

    A task with zero gradient is left out (its equation has no finite solution).

    Cost: the Gramian, then 4 to 12 systems of size K; about a hundred more on some rows if alpha is near 0.1 or 10.

    Args:
        alpha: fairness; the authors run alpha = 2 on every data set, their default is 1 [official code]. The solver
            was tested from 0.1 to 10: on rows with a common descent direction it always converged, also with more
            tasks than parameters and on ill-conditioned rows. The diagnostic ``solver`` says if it did not.
        heads: factors of the task-specific gradients: "ones", the default, as the authors leave them [official code];
            "weights": times w, as LibMTL, which weights whole losses [lib code] (a task with zero gradient then gets
            the mean weight [choice]).
        outer_scale: "n-tasks": d times K, as the authors do "to match the sum of the losses" [official code]; "one",
            the default: d = J^T w.
        max_norm: clip d to this length after ``outer_scale``; the authors clip to 1 [official code]. None, the default:
            no clipping. The authors' trunk is outer_scale="n-tasks", max_norm=1.
    """

    paper = "https://arxiv.org/abs/2402.15638"
    needs: ClassVar[Needs] = Needs.GRAMIAN

    alpha: float = number(1.0, low=0.1, high=10.0, log=True)
    heads: str = choice("ones", outer.HEADS)
    outer_scale: str = choice("one", outer.SCALES)
    max_norm: float | None = number(None, low=0.0, open_low=True)

    @property
    def claims(self) -> frozenset[str]:  # type: ignore[override]
        """What is promised; only with alpha = 1 the lengths of the gradients do not matter."""
        out = {
            "non-conflicting",
            "permutation-equivariant",
            "conic-combination",
            "resume-equivalent",
            "parameter-rotation",
            "zero-only-if-stationary",
        }
        if self.alpha == 1.0:
            out.add("scale-free")
        if self.alpha == 1.0 or self.max_norm is None:
            out.add("positively-homogeneous")
        if self.outer_scale == "one" and self.max_norm is None:
            out.add("matches-reference")
        return frozenset(out)

    @property
    def degree(self) -> float:  # type: ignore[override]
        """p in A(tJ) = t^p A(J)."""
        return (1.0 - self.alpha) / (1.0 + self.alpha)

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """w = b / |g|."""
        rows = _numpy.read(view)
        b, diagnostics = bargain(rows.matrix, rows.norms, self.alpha) if len(rows.norms) else (None, {})
        if b is None:
            zeros, ones = _numpy.tensor(np.zeros(view.n_tasks)), _numpy.tensor(np.ones(view.n_tasks))
            return Aggregation(weights=zeros, state=state, diagnostics=diagnostics, head_weights=ones)
        b = b * outer.scale(self.outer_scale, view.n_tasks)
        w = b / rows.norms
        weights = _numpy.tensor(rows.scatter(w * outer.clip(rows.matrix, b, self.max_norm)))
        heads = outer.head_weights(self.heads, _numpy.tensor(rows.scatter(w, dead=float(w.mean()))))
        return Aggregation(weights=weights, state=state, diagnostics=diagnostics, head_weights=heads)
