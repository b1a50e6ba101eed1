"""UPGrad: every gradient projected onto the dual cone, then averaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from mtlcore import Aggregation, Aggregator, Needs, StepView
from mtlplugins.aggregators import _numpy
from mtlplugins.solvers.dual_cone import project_rows
from mtlplugins.solvers.safety import without_conflict

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class UPGrad(Aggregator):
    """Quinton and Rey 2024 [paper*]: d = (1/K) sum_i P(g_i), P the projection onto {x : J x >= 0}.

    P(g_i) = J^T v, v = argmin v'Gv over v >= e_i. The K projections share one row-normalised Gramian and are solved
    together; a projection commutes with positive scaling, so no norm enters.

    Proved: P(g_i) is in the dual cone, a convex cone, hence so is d: no conflict. d is linear under positive scaling of
    the rows, because the cone does not change. Without conflicts d is the mean. If d = 0 then every P(g_i) = 0 and
    the point is Pareto stationary. Cost: the Gramian, then a few batches of K systems of size K.
    """

    needs: ClassVar[Needs] = Needs.GRAMIAN
    claims: ClassVar[frozenset[str]] = frozenset(
        {
            "non-conflicting",
            "permutation-equivariant",
            "positively-homogeneous",
            "linear-under-scaling",
            "conic-combination",
            "no-conflict-identity",
            "matches-reference",
            "resume-equivalent",
            "parameter-rotation",
            "strongly-stationary-zero",
            "zero-only-if-stationary",
        }
    )

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """Row j of V projects unit row j; its contribution is |g_j| / K times that."""
        rows = _numpy.read(view)
        uniform = 1.0 / view.n_tasks
        if not len(rows.norms):
            return Aggregation(weights=_numpy.tensor(np.full(view.n_tasks, uniform)), state=state)
        v, certificate = project_rows(rows.matrix)
        b, checked = without_conflict(rows.matrix, (rows.norms * uniform) @ v)
        weights = rows.scatter(b / rows.norms, dead=uniform)
        diagnostics = {**certificate.diagnostics(), **checked}
        return Aggregation(weights=_numpy.tensor(weights), state=state, diagnostics=diagnostics)
