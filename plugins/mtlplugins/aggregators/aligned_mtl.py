"""Aligned-MTL: gradients made orthogonal and equally long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from mtlcore import Aggregation, Aggregator, Needs, StepView, choice, vector
from mtlplugins.aggregators import _numpy
from mtlplugins.per_task import check_length, preferences_present
from mtlplugins.solvers.spectrum import CUTS, singular

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class AlignedMTL(Aggregator):
    """Senushkin et al. 2023 [paper]: G = V diag(l) V^T, B = sigma V diag(l^-1/2) V^T, d = J^T B u.

    B J is the nearest matrix with orthogonal rows of equal length sigma (Procrustes); u are the task weights, of which
    d is a linear function.
    Proved (full rank): the aligned rows have condition number 1 and |d| = sigma |u|; if the rows are orthogonal
    and equally long already, d = J^T u. It may conflict with the original gradients.

    Small eigenvalues are dropped, so that d jumps where rows become dependent, and where one becomes so much shorter
    than another that it no longer counts.
    Cost: the Gramian and one eigendecomposition.

    Args:
        scale: sigma: "min" singular value (paper), their "median", the lower of the two middle ones where their number
            is even [code], or "rmse", the root of the mean eigenvalue [code].
        reduction: u = 1/K ("mean", default, so that d is no longer than a mean gradient) or 1 ("sum", the authors'
            code).
        preferences: u up to a factor, one number >= 0 per task, of which only the ratios matter; None: equal.
            (TorchJD's ``pref_vector``, which is not normalised [lib code].)
        rank_cut: eigenvalues below this times K max(l) are dropped: "float64", 8 eps of float64, the rounding of the
            Gramian kept here; a row some 1e7 times shorter than another no longer counts. "float32", eps of float32, is
            what the authors' code does [code]; there a row some 2,000 times shorter does not count. The default keeps
            more tasks.

    Raises:
        ConfigurationError: the preferences of the tasks present are all zero, or there is not one per task.
    """

    needs: ClassVar[Needs] = Needs.GRAMIAN

    scale: str = choice("min", ("min", "median", "rmse"))
    reduction: str = choice("mean", ("mean", "sum"))
    preferences: tuple[float, ...] | None = vector(None, low=0.0)
    rank_cut: str = choice("float64", tuple(CUTS))

    @property
    def claims(self) -> frozenset[str]:  # type: ignore[override]
        """What is promised; preferences belong to tasks in their order."""
        out = {"positively-homogeneous", "resume-equivalent", "parameter-rotation", "preferences-belong-to-tasks"}
        if self.preferences is None:
            out.add("permutation-equivariant")
            if self.rank_cut == "float64":
                out.add("matches-reference")
        return frozenset(out)

    def init(self, n_tasks: int) -> State:
        """No state."""
        check_length("aligned-mtl", "preferences", self.preferences, n_tasks)
        return {}

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """weights = B u."""
        rows = _numpy.read(view)
        share = np.array(preferences_present("aligned-mtl", self.preferences, view))
        if self.reduction == "sum":
            share = share * view.n_tasks
        if not len(rows.norms):
            return Aggregation(weights=_numpy.tensor(share), state=state)
        values, basis = singular(rows.matrix, rows.norms, self.rank_cut)
        # Sorted from the largest: position n // 2 is the middle, or the lower of the two.
        middle = values[len(values) // 2]
        sigma = {"min": values[-1], "median": middle, "rmse": (values**2).mean() ** 0.5}[self.scale]
        weights = ((sigma / values) * (basis @ rows.gather(share))) @ basis
        diagnostics = {"rank": len(values), "condition": float(values[0] / values[-1])}
        return Aggregation(weights=_numpy.tensor(rows.scatter(weights)), state=state, diagnostics=diagnostics)
