"""DualProj: the mean gradient projected onto the dual cone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from mtlcore import Aggregation, Aggregator, Needs, StepView, vector
from mtlplugins.aggregators import _numpy
from mtlplugins.per_task import check_length, preferences_present
from mtlplugins.solvers.dual_cone import project
from mtlplugins.solvers.safety import without_conflict

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class DualProj(Aggregator):
    """d = argmin |d - J^T u|^2 subject to J d >= 0, J^T u the mean gradient, u_i = 1/K (Lopez-Paz and Ranzato 2017,
    equation 11; name and form after Quinton and Rey 2024 [paper*]).

    The weights are argmin v'Gv over v >= u. Proved: d is the direction closest to J^T u that conflicts with no task;
    without conflicts d = J^T u. If all u_i > 0, d = 0 only at Pareto stationary points (then -J^T u is in the cone of
    the rows), and d equals the answer with equal preferences for the losses K u_i L_i. With one preference of 1 and
    zeros otherwise it is GEM: the projection of that task's gradient.
    Cost: the Gramian, then a few systems of size K.

    Limit: if rows cancel with weights of very different size, d is zero only to within the resolution of the Gramian
    (mtlplugins.solvers.dual_cone.resolution).

    Args:
        preferences: u, one number >= 0 per task, of which only the ratios matter; None: equal, the paper's mean.
            (TorchJD's ``pref_vector``, which is not normalised [lib code].)

    Raises:
        ConfigurationError: the preferences of the tasks present are all zero, or there is not one per task.
    """

    paper = ("https://arxiv.org/abs/1706.08840", "https://arxiv.org/abs/2406.16232")
    needs: ClassVar[Needs] = Needs.GRAMIAN

    preferences: tuple[float, ...] | None = vector(None, low=0.0)

    @property
    def claims(self) -> frozenset[str]:  # type: ignore[override]
        """What is promised; preferences depend on the order of the tasks, and a task of preference 0 does not pull."""
        out = {
            "non-conflicting",
            "positively-homogeneous",
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
        check_length("dualproj", "preferences", self.preferences, n_tasks)
        return {}

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """One projection."""
        rows = _numpy.read(view)
        share = np.array(preferences_present("dualproj", self.preferences, view))
        if not len(rows.norms):
            return Aggregation(weights=_numpy.tensor(share), state=state)
        plain = rows.norms * rows.gather(share)
        b, certificate = project(rows.matrix, plain)
        b, checked = without_conflict(rows.matrix, b, float(plain.sum()))
        weights = rows.scatter(b / rows.norms, dead=share)
        diagnostics = {**certificate.diagnostics(), **checked}
        return Aggregation(weights=_numpy.tensor(weights), state=state, diagnostics=diagnostics)
