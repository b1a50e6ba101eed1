"""ConFIG: the direction with the same cosine to every task's gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from mtlcore import Aggregation, Aggregator, Needs, StepView
from mtlplugins.aggregators import _numpy
from mtlplugins.solvers.certificate import EPS
from mtlplugins.solvers.least_squares import minimum_norm

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class ConFIG(Aggregator):
    """Liu et al. 2024 [official code]: with U the unit rows, x = U^+ 1, u = x / |x|, d = (sum_i <g_i, u>) u.

    In Gramian form x = U^T y, y = C^+ 1. Proved: d is linear under positive scaling of the rows (u does not change,
    the length is linear); |d| <= sum |g_i|. For independent rows cos(d, g_i) is the same positive number for all i
    (U x = 1), so no conflict. For dependent rows the cosines are equal only in the least-squares sense, and a
    conflict is possible: that is why non-conflict is not claimed. Opposite gradients give d = 0.
    Cost: the Gramian and one eigendecomposition.
    """

    needs: ClassVar[Needs] = Needs.GRAMIAN
    claims: ClassVar[frozenset[str]] = frozenset(
        {
            "permutation-equivariant",
            "positively-homogeneous",
            "linear-under-scaling",
            "matches-reference",
            "resume-equivalent",
            "equal-projections",
            "parameter-rotation",
        }
    )

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """weights = (sum_i |g_i| (C y)_i / y'Cy) y / |g|."""
        rows = _numpy.read(view)
        if not len(rows.norms):
            return Aggregation(weights=_numpy.tensor(np.zeros(view.n_tasks)), state=state)
        y, rank = minimum_norm(rows.matrix, np.ones(len(rows.norms)))
        cosines = rows.matrix @ y
        square = float(y @ cosines)
        diagnostics: dict[str, object] = {"rank": rank}
        if square <= 16.0 * len(y) * EPS * float(np.abs(y).sum()) ** 2:
            diagnostics["undefined"] = "no direction has a positive cosine with the gradients"
            return Aggregation(weights=_numpy.tensor(np.zeros(view.n_tasks)), state=state, diagnostics=diagnostics)
        length = float(rows.norms @ cosines)
        # d points against u where the projections sum to less than zero, which dependent rows allow.
        diagnostics["min_cosine"] = float((cosines if length >= 0.0 else -cosines).min()) / square**0.5
        weights = (length / square) * y / rows.norms
        return Aggregation(weights=_numpy.tensor(rows.scatter(weights)), state=state, diagnostics=diagnostics)
