"""DualProj: the mean gradient projected onto the dual cone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from mtlcore import Aggregation, Aggregator, Needs, StepView
from mtlplugins.aggregators import _numpy
from mtlplugins.solvers.dual_cone import project
from mtlplugins.solvers.safety import without_conflict

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class DualProj(Aggregator):
    """d = argmin |d - g_0|^2 subject to J d >= 0, g_0 the mean gradient (Lopez-Paz and Ranzato 2017, equation 11;
    name and form after Quinton and Rey 2024 [paper*]).

    Weights: argmin v'Gv over v >= 1/K. Proved: the closest direction to the mean gradient that conflicts with no task;
    without conflicts it is the mean; d = 0 only at Pareto stationary points (then -g_0 is in the cone of the rows).
    Cost: the Gramian, then a few systems of size K.
    """

    needs: ClassVar[Needs] = Needs.GRAMIAN
    claims: ClassVar[frozenset[str]] = frozenset(
        {
            "non-conflicting",
            "permutation-equivariant",
            "positively-homogeneous",
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
        """One projection."""
        rows = _numpy.read(view)
        uniform = 1.0 / view.n_tasks
        if not len(rows.norms):
            return Aggregation(weights=_numpy.tensor(np.full(view.n_tasks, uniform)), state=state)
        b, certificate = project(rows.matrix, rows.norms * uniform)
        b, checked = without_conflict(rows.matrix, b)
        weights = rows.scatter(b / rows.norms, dead=uniform)
        diagnostics = {**certificate.diagnostics(), **checked}
        return Aggregation(weights=_numpy.tensor(weights), state=state, diagnostics=diagnostics)
