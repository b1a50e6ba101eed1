"""IMTL-G: equal projections onto every task's gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from mtlcore import Aggregation, Aggregator, Needs, StepView
from mtlplugins.aggregators import _numpy
from mtlplugins.solvers.least_squares import minimum_norm

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class IMTLG(Aggregator):
    """Liu et al. 2021 [paper*; lib code]: d = sum_i a_i g_i, sum a = 1, with <d, g_i / |g_i|> equal for all i.

    Gramian form: v = G^+ |g|, a = v / sum v. With unit rows a_i |g_i| is proportional to x = C^+ 1; dependent rows get
    the least-squares solution of minimal norm.

    Proved (independent rows, sum v != 0): equal projections; the direction does not depend on positive scaling of a row, up to
    its sign. For K = 2 no conflict. For K >= 3 it may conflict with *every* task: if sum v < 0 the common projection
    is negative. Where sum v vanishes to within rounding no such d exists and the answer is 0, said in diagnostics.
    Cost: the Gramian and one eigendecomposition.
    """

    needs: ClassVar[Needs] = Needs.GRAMIAN
    claims: ClassVar[frozenset[str]] = frozenset(
        {
            "permutation-equivariant",
            "positively-homogeneous",
            "equal-projections",
            "matches-reference",
            "resume-equivalent",
            "parameter-rotation",
        }
    )

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """a = v / sum v."""
        rows = _numpy.read(view)
        if not len(rows.norms):
            return Aggregation(weights=_numpy.tensor(np.full(view.n_tasks, 1.0 / view.n_tasks)), state=state)
        x, rank = minimum_norm(rows.matrix, np.ones(len(rows.norms)))
        # Relative to the largest, so that v of rows of size 1e-200 stays finite.
        v = x * (float(rows.norms.min()) / rows.norms)
        total, size = float(v.sum()), float(np.abs(v).sum())
        diagnostics: dict[str, object] = {"rank": rank}
        if abs(total) <= 1e-12 * size or size == 0.0:
            diagnostics["undefined"] = "the weights sum to zero: no combination has equal projections"
            x, v, total = np.zeros_like(x), np.zeros_like(v), 1.0
        # Independent rows have C x = 1, and then the sign of the sum decides alone.
        diagnostics["conflicts_with_all"] = bool(((rows.matrix @ x) * np.sign(total) < 0.0).all())
        return Aggregation(weights=_numpy.tensor(rows.scatter(v / total)), state=state, diagnostics=diagnostics)
