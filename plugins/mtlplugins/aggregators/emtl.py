"""``emtl``: weights that reduce the variance of the tasks' relative contributions L_i / |g_i|."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from mtlcore import choice, number
from mtlcore.contracts import Aggregation, Aggregator, Needs, State, StepView
from mtlplugins.aggregators import _numpy
from mtlplugins.arrays import Array, losses_of
from mtlplugins.positive import positive


@dataclasses.dataclass(frozen=True)
class EMTL(Aggregator):
    """Yuan and Zhang 2023 (2306.09373) [paper: abstract]: min sum_i L_i + lambda Var(r), r_i = L_i / |g_i|.

    r_i is the distance at which a linear model of L_i reaches zero. The paper argues that equal r_i improve
    generalisation, and adds their variance to the loss "efficiently"; its algorithm could not be read. [choice] Here
    |g_i| is held constant, so that the regulariser changes the weights only, w_i = 1 + lambda dVar/dL_i:

        "plain"     w_i = 1 + (2 lambda / K) (r_i - r) / |g_i| ,    r = mean r_i
        "relative"  the same for S Var(r) / r^2 with S = sum_j L_j held constant, which makes lambda dimensionless.

    The weights are clipped at 0 and normalised to sum K. (To differentiate |g_i|, too, a Hessian-vector product per
    task would be needed, which a view does not offer; both agree if the losses are linear.) A task with zero gradient
    has no r_i, is left out of K, r and S above, and gets weight 1 before the normalisation. Whole losses are weighted,
    heads included.

    Proved: equal r_i, or lambda = 0, give the plain sum; r_i does not change when L_i is measured in another unit; of
    two tasks with equal |g_i| the one with the larger r_i has the larger weight; weights are >= 0 and sum to K. Not
    promised: no conflict.
    Cost: the Gramian (its diagonal).

    Args:
        lamb: lambda [choice: 0.1].
        variance: "relative" or "plain".

    Raises:
        LossError: a negative loss; names the task.
    """

    needs = Needs.GRAMIAN
    paper: ClassVar[str] = "https://arxiv.org/abs/2306.09373"

    lamb: float = number(0.1, low=0.0, log=True)
    variance: str = choice("relative", ("relative", "plain"))

    @property
    def claims(self) -> frozenset[str]:  # type: ignore[override]
        """What is promised; the plain variance has a unit, so the answer depends on scale."""
        always = {"conic-combination", "permutation-equivariant", "resume-equivalent", "parameter-rotation"}
        return frozenset(always | ({"positively-homogeneous"} if self.variance == "relative" else set()))

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """Weights (K,) that sum to K."""
        positive(view, "emtl compares distances to zero loss: shift the loss, or use another method.")
        rows = _numpy.read(view)
        losses = rows.gather(losses_of(view))
        contribution = losses / rows.norms if len(losses) else losses
        extra = np.zeros(len(losses))
        if len(losses) and contribution.max() > 0.0:
            extra = self._slope(losses, rows.norms, contribution)
        weights = rows.scatter(np.maximum(1.0 + self.lamb * np.clip(extra, -1e200, 1e200), 0.0), dead=1.0)
        answer = _numpy.tensor(weights * (len(weights) / weights.sum()))
        notes = {"relative_contribution": _numpy.tensor(rows.scatter(contribution))}
        return Aggregation(weights=answer, state=state, diagnostics=notes, head_weights=answer)

    def _slope(self, losses: Array, norms: Array, r: Array) -> Array:
        """dVar / dL_i (k,)."""
        k = len(r)
        if self.variance == "plain":
            return np.asarray(2.0 / k * (r - r.mean()) / norms)
        share = r / r.sum()
        # (r_i / r - 1) - Var / r^2 = K sum_j s_j (s_i - s_j) for shares s: where one task has nearly all, the left side
        # is what rounding leaves of numbers about K, and 1 / (r |g_i|) makes a weight of it.
        excess = (share[:, None] - share[None, :]) @ share
        # 1 / (r |g_i|) = (r_i / r) / L_i, and S / L_i without a length.
        inverse = losses.sum() / (r.mean() * norms)
        return np.asarray(2.0 * excess * inverse)
