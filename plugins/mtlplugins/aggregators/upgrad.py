"""UPGrad: every gradient is projected onto the dual cone; the projections are averaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from mtlcore import Aggregation, Aggregator, Needs, StepView, vector
from mtlplugins.aggregators import _numpy
from mtlplugins.per_task import check_length, preferences_present
from mtlplugins.solvers.dual_cone import project_rows
from mtlplugins.solvers.safety import without_conflict

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class UPGrad(Aggregator):
    """Quinton and Rey 2024 [paper*]: d = sum_i u_i P(g_i), P the projection onto {x : J x >= 0}, u_i = 1/K.

    P(g_i) = J^T v, v = argmin v'Gv over v >= e_i. The K projections have one row-normalised Gramian and are
    solved together. A projection onto a cone commutes with positive scaling, so the lengths of the rows do not matter.

    Proved: P(g_i) is in the dual cone, which is convex, hence d is, too: no conflict. d is linear under scaling of
    the rows, because the cone does not change. Without conflicts d is J^T u. If d = 0 and all u_i > 0, then every
    P(g_i) = 0 and the point is Pareto stationary. With preferences u > 0, d is what equal ones give for the losses
    K u_i L_i. Cost: the Gramian, then a few batches of K systems of size K.

    Limit: if rows cancel with weights of very different size, d is zero only to within the resolution of the Gramian
    (mtlplugins.solvers.dual_cone.resolution).

    Args:
        preferences: u, one number >= 0 per task, of which only the ratios matter; None: equal, the paper's mean.
            (TorchJD's ``pref_vector``, which is not normalised [lib code].)

    Raises:
        ConfigurationError: the preferences of the tasks present are all zero, or there is not one per task.
    """

    paper = "https://arxiv.org/abs/2406.16232"
    needs: ClassVar[Needs] = Needs.GRAMIAN

    preferences: tuple[float, ...] | None = vector(None, low=0.0)

    @property
    def claims(self) -> frozenset[str]:  # type: ignore[override]
        """What is promised; preferences depend on the order of the tasks, and a task of preference 0 does not pull."""
        out = {
            "non-conflicting",
            "positively-homogeneous",
            "linear-under-scaling",
            "conic-combination",
            "resume-equivalent",
            "parameter-rotation",
            "strongly-stationary-zero",
            "preferences-belong-to-tasks",
            "preferences-weigh-losses",
        }
        if self.preferences is None:
            out |= {"permutation-equivariant", "no-conflict-identity", "matches-reference"}
        if self.preferences is None or all(self.preferences):
            out.add("zero-only-if-stationary")
        return frozenset(out)

    def init(self, n_tasks: int) -> State:
        """No state."""
        check_length("upgrad", "preferences", self.preferences, n_tasks)
        return {}

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """Row j of V is the projection of unit row j, and contributes with the factor u_j |g_j|."""
        rows = _numpy.read(view)
        share = np.array(preferences_present("upgrad", self.preferences, view))
        if not len(rows.norms):
            return Aggregation(weights=_numpy.tensor(share), state=state)
        v, certificate = project_rows(rows.matrix)
        plain = rows.norms * rows.gather(share)
        b, checked = without_conflict(rows.matrix, plain @ v, float(plain.sum()))
        weights = rows.scatter(b / rows.norms, dead=share)
        diagnostics = {**certificate.diagnostics(), **checked}
        return Aggregation(weights=_numpy.tensor(weights), state=state, diagnostics=diagnostics)
