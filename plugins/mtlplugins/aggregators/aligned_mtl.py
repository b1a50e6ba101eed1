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

    Eigenvalues below 8K eps max(l) are dropped (the paper: K eps max(l)): d jumps where rows become dependent, and
    where one becomes some 1e7 times shorter than another and no longer counts.
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
        rows = _numpy.read(view)
        k = len(rows.norms)
        one = 1.0 / view.n_tasks if self.reduction == "mean" else 1.0
        if not k:
            return Aggregation(weights=_numpy.tensor(np.full(view.n_tasks, one)), state=state)
        # A factor F with F^T F = G, from the cosines: its singular values keep the digits that those of G, whose
        # entries spread twice as far as the norms, would lose.
        values, vectors = np.linalg.eigh(rows.matrix)
        keep = values > 8.0 * k * EPS * values[-1]
        factor = (np.sqrt(values[keep]) * vectors[:, keep]).T * rows.norms
        _, values, basis = np.linalg.svd(factor, full_matrices=False)
        keep = values**2 > 8.0 * k * EPS * values[0] ** 2
        values, basis = values[keep], basis[keep]
        sigma = {"min": values[-1], "median": np.median(values**2) ** 0.5, "rmse": (values**2).mean() ** 0.5}[
            self.scale
        ]
        weights = ((sigma / values) * (basis @ np.full(k, one))) @ basis
        diagnostics = {"rank": int(keep.sum()), "condition": float(values[0] / values[-1])}
        return Aggregation(weights=_numpy.tensor(rows.scatter(weights)), state=state, diagnostics=diagnostics)
