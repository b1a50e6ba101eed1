"""Aligned-MTL: gradients made orthogonal and equally long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from mtlcore import Aggregation, Aggregator, Needs, StepView, choice
from mtlplugins.aggregators import _numpy
from mtlplugins.solvers.certificate import EPS

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class AlignedMTL(Aggregator):
    """Senushkin et al. 2023 [paper]: G = V diag(l) V^T, B = sigma V diag(l^-1/2) V^T, d = J^T B u.

    B J is the nearest matrix with orthogonal rows of equal length sigma (Procrustes); u are the task weights.
    Proved (full rank): the aligned rows have condition number 1 and |d| = sigma |u|; if the rows are orthogonal
    and equally long already, d = J^T u. It may conflict with the original gradients.

    Eigenvalues below 8K eps max(l) are dropped (the paper: K eps max(l)): with dependent rows d jumps there. The
    Gramian is not row-normalised, because the method's answer depends on the scale of the rows.
    Cost: the Gramian and one eigendecomposition.

    Args:
        scale: sigma: "min" singular value (paper), their "median", or "rmse", the root of the mean eigenvalue [code].
        reduction: u = 1/K ("mean") or 1 ("sum", the authors' code).
    """

    needs: ClassVar[Needs] = Needs.GRAMIAN
    claims: ClassVar[frozenset[str]] = frozenset(
        {
            "permutation-equivariant",
            "positively-homogeneous",
            "matches-reference",
            "resume-equivalent",
            "parameter-rotation",
        }
    )

    scale: str = choice("min", ("min", "median", "rmse"))
    reduction: str = choice("mean", ("mean", "sum"))

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """weights = B u."""
        gramian = view.gramian.cpu().numpy()
        k = view.n_tasks
        u = np.full(k, 1.0 / k if self.reduction == "mean" else 1.0)
        largest = float(gramian.diagonal().max())
        if largest == 0.0:
            return Aggregation(weights=_numpy.tensor(u, view), state=state, diagnostics={"rank": 0})
        values, vectors = np.linalg.eigh(gramian / largest)
        keep = values > 8.0 * k * EPS * values[-1]
        values, vectors = values[keep], vectors[:, keep]
        sigma = {
            "min": float(values[0]) ** 0.5,
            "median": float(np.median(values)) ** 0.5,
            "rmse": float(values.mean()) ** 0.5,
        }[self.scale]
        weights = vectors @ ((sigma / np.sqrt(values)) * (vectors.T @ u))
        diagnostics = {"rank": int(keep.sum()), "condition": float(values[-1] / values[0]) ** 0.5}
        return Aggregation(weights=_numpy.tensor(weights, view), state=state, diagnostics=diagnostics)
