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

    The rows of B J are the aligned gradients: B J is the nearest matrix whose rows are orthogonal and have the same
    length sigma (the Procrustes problem). u are the task weights; d is linear in u.
    Proved (full rank): B J has condition number 1, and |d| = sigma |u|. If the rows of J are already orthogonal and of
    equal length, d = J^T u. Not promised: no conflict with the original gradients.

    Small eigenvalues are dropped. Therefore d is discontinuous where rows become linearly dependent, and where one row
    becomes so short beside another that its eigenvalue is dropped.
    Cost: the Gramian and one eigendecomposition.

    Args:
        scale: what sigma is: "min", the smallest singular value [paper]; "median" of the singular values (the lower of
            the two middle ones if their number is even) [code]; or "rmse", the root of the mean eigenvalue [code].
        reduction: u = 1/K ("mean", the default: d is on the scale of a mean gradient) or u = 1 ("sum", as in the
            authors' code [code]).
        preferences: u up to a factor, one number >= 0 per task, of which only the ratios matter; None: equal.
            (TorchJD's ``pref_vector``, which is not normalised [lib code].)
        rank_cut: which eigenvalues are dropped: those below this number times K max(l). "float64" is 8 eps of float64,
            the rounding error of the Gramian here; a row about 1e7 times shorter than another is then dropped.
            "float32" is eps of float32, as in the authors' code [code]; there a row about 2,000 times shorter is
            dropped. The default keeps more tasks.

    Raises:
        ConfigurationError: the preferences of the tasks present are all zero, or there is not one per task.
    """

    paper = "https://arxiv.org/abs/2305.19000"
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
