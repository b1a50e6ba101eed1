"""IMTL-G: equal projections onto every task's gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from mtlcore import Aggregation, Aggregator, Needs, StepView, choice
from mtlplugins import outer
from mtlplugins.aggregators import _numpy
from mtlplugins.solvers.cosines import Array, Cosines
from mtlplugins.solvers.least_squares import minimum_norm, of_gramian

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class IMTLG(Aggregator):
    """Liu et al. 2021 [paper*; lib code]: d = sum_i a_i g_i, sum a = 1, with <d, g_i / |g_i|> equal for all i.

    Gramian form: a = v / sum v with G v = |g|, that is v = D^-1 C^-1 1 with D = diag(|g_i|) and C the cosines.

    Proved (independent rows with sum v not zero): equal projections; up to its sign, the direction does not depend on
    positive scaling of a row. For K = 2 there is no conflict. For K >= 3 d may conflict with *every* task: if
    sum v < 0, the common projection is negative. Near sum v = 0 the length of d has no bound. If sum v is zero to
    within rounding, no such d exists; the answer is 0, and the diagnostics say so.
    Cost: the Gramian and one eigendecomposition.

    Args:
        dependent: the solution for linearly dependent rows, for which the definition has none or many. "cosines", the
            default: v = D^-1 C^+ 1, whose direction does not depend on the lengths of the rows [choice]. "gramian":
            v = G^+ |g|, as in TorchJD [lib code]; longer rows then count more. (The authors' formula is undefined for
            such rows; the Nash-MTL code adds 1e-8 to a diagonal [code].)
        heads: factors of the task-specific gradients: "ones", the default, because a negative weight would make a head
            ascend; "weights", as in the Nash-MTL code, which weights whole losses [code].
    """

    paper = "https://openreview.net/forum?id=IMPnRXEWpvr"
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

    dependent: str = choice("cosines", ("cosines", "gramian"))
    heads: str = choice("ones", outer.HEADS)

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """a = v / sum v."""
        rows = _numpy.read(view)
        if not len(rows.norms):
            return Aggregation(weights=_numpy.tensor(np.full(view.n_tasks, 1.0 / view.n_tasks)), state=state)
        v, rank = self._solution(rows)
        total, size = float(v.sum()), float(np.abs(v).sum())
        diagnostics: dict[str, object] = {"rank": rank}
        if abs(total) <= 1e-12 * size or size == 0.0:
            diagnostics["undefined"] = "the weights sum to zero: no combination has equal projections"
            v, total = np.zeros_like(v), 1.0
        # Independent rows have C D v = 1, and then the sign of the sum decides alone.
        gains = rows.matrix @ (v * (rows.norms / rows.norms.max()))
        diagnostics["conflicts_with_all"] = bool((gains * np.sign(total) < 0.0).all())
        weights = _numpy.tensor(rows.scatter(v / total))
        heads = outer.head_weights(self.heads, weights)
        return Aggregation(weights=weights, state=state, diagnostics=diagnostics, head_weights=heads)

    def _solution(self, rows: Cosines) -> tuple[Array, int]:
        """v up to a positive factor, and the rank."""
        if self.dependent == "gramian":
            return of_gramian(rows.matrix, rows.norms)
        x, rank = minimum_norm(rows.matrix, np.ones(len(rows.norms)))
        # Relative to the shortest, so that v of rows of size 1e-200 stays finite.
        return x * (float(rows.norms.min()) / rows.norms), rank
