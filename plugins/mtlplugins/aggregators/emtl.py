"""``emtl``: weights that reduce the variance of the tasks' relative contributions L_i / |g_i|."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from mtlcore import choice, linalg, number
from mtlcore.contracts import Aggregation, Aggregator, Needs, State, StepView
from mtlcore.errors import ConfigurationError, NonFiniteError
from mtlplugins.aggregators import _numpy
from mtlplugins.arrays import Array, losses_of
from mtlplugins.positive import positive
from mtlplugins.solvers.cosines import Cosines


@dataclasses.dataclass(frozen=True)
class EMTL(Aggregator):
    """Yuan and Zhang 2023 (2306.09373) [paper: abstract]: min F = sum_i L_i + lambda V(r), r_i = L_i / |g_i|.

    r_i is the distance at which a linear model of L_i reaches zero. The paper argues that equal r_i improve
    generalisation, and adds their variance to the loss "efficiently"; its algorithm could not be read. [choice]

        "plain"     V = (1 / K) sum_i (r_i - r)^2 ,    r = mean r_i
        "relative"  the same times S / r^2 with S = sum_j L_j held constant, which makes lambda dimensionless.

    With u_i = g_i / |g_i| and the Hessian H_i of L_i, the chain rule gives the gradient of the objective for the trunk:

        grad r_i = u_i - (r_i / |g_i|) H_i u_i ,    w_i = 1 + lambda (dV/dr_i) / |g_i| ,
        "fast"      d = sum_i max(w_i, 0) g_i , normalised to weights with sum K: |g_i| is held constant [choice]
        "exact"     d = c grad F ,    grad F = sum_i w_i g_i - lambda sum_i (dV/dr_i) (r_i / |g_i|) H_i u_i ,
                    c = K / sum_i |w_i| .

    The exact form clips no weight, for a clipped gradient is the gradient of nothing. c is a positive number, so that d
    has the direction of grad F, while a learning rate means the same in both forms [choice]; c is in the diagnostics as
    "scale". The products H_i u_i come from ``view.curvature``, which only ``MultiTask.step(closure)`` offers. In both
    forms heads take the weights of the fast form: second derivatives that mix trunk and heads are left out [choice]. A
    task with zero gradient has no r_i, is left out of V and S, and has w_i = 1.

    Proved: equal r_i, or lambda = 0, give the plain sum; r_i does not change when L_i is measured in another unit; the
    fast form's weights are >= 0 and sum to K, and of two tasks with equal |g_i| the one with the larger r_i has the
    larger weight; if H_i = 0 for all i (linear losses) and no w_i < 0, both forms give the same. Not promised: no
    conflict; for the exact form, that d is in the cone of the gradients.
    Cost: the Gramian (its diagonal). The exact form: the rows, one more forward pass, and about three more backward
    passes per task.

    Args:
        lamb: lambda [choice: 0.1].
        variance: "relative" or "plain".
        form: "fast" or "exact".

    Raises:
        LossError: a negative loss; names the task. Exact form: a loss without a second derivative.
        ConfigurationError: the exact form where the batch cannot be evaluated again.
        NonFiniteError: the exact form's direction overflows.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2306.09373"

    lamb: float = number(0.1, low=0.0, log=True)
    variance: str = choice("relative", ("relative", "plain"))
    form: str = choice("fast", ("fast", "exact"))

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        """Second derivatives are taken along the gradients themselves."""
        return Needs.JACOBIAN if self.form == "exact" else Needs.GRAMIAN

    @property
    def claims(self) -> frozenset[str]:  # type: ignore[override]
        """What is promised; the plain variance has a unit, so the answer depends on scale."""
        out = {"permutation-equivariant", "resume-equivalent", "parameter-rotation"}
        if self.variance == "relative":
            out.add("positively-homogeneous")
        if self.form == "fast":
            out.add("conic-combination")
        return frozenset(out)

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """Weights (K,) that sum to K; a direction (P,) in the exact form."""
        if self.form == "exact" and view.curvature is None:
            raise ConfigurationError(
                "emtl with form='exact' differentiates the lengths of the gradients, for which the batch is evaluated "
                "again: use MultiTask(...).step(closure), or form='fast'."
            )
        positive(view, "emtl compares distances to zero loss: shift the loss, or use another method.")
        rows = _numpy.read(view)
        losses = rows.gather(losses_of(view))
        contribution = losses / rows.norms if len(losses) else losses
        extra = np.zeros(len(losses))
        if len(losses) and contribution.max() > 0.0:
            extra = self.lamb * np.clip(self._slope(losses, rows.norms, contribution), -1e200, 1e200)
        weights = rows.scatter(np.maximum(1.0 + extra, 0.0), dead=1.0)
        heads = _numpy.tensor(weights * (len(weights) / weights.sum()))
        notes: dict[str, object] = {"relative_contribution": _numpy.tensor(rows.scatter(contribution))}
        if self.form == "fast":
            return Aggregation(weights=heads, state=state, diagnostics=notes, head_weights=heads)
        signed = rows.scatter(1.0 + extra, dead=1.0)
        notes["scale"] = scale = len(signed) / float(np.abs(signed).sum())
        direction = linalg.combine(view.jacobian, _numpy.tensor(scale * signed)).double()
        direction -= self._bend(view, rows, scale * extra * contribution)
        if not bool(torch.isfinite(direction).all()):
            raise NonFiniteError("emtl: the gradient of the variance overflows. Measure the losses in a larger unit.")
        return Aggregation(direction=direction.to(view.jacobian), state=state, diagnostics=notes, head_weights=heads)

    def _slope(self, losses: Array, norms: Array, r: Array) -> Array:
        """dV / dL_i = (dV / dr_i) / |g_i|, (k,)."""
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

    @staticmethod
    def _bend(view: StepView, rows: Cosines, factors: Array) -> Tensor:
        """sum_i f_i H_i u_i, (P,) float64, of the factors f (k,)."""
        jacobian, largest = view.jacobian, float(np.abs(factors).max(initial=0.0))
        if largest == 0.0:
            return jacobian.new_zeros(jacobian.shape[1], dtype=torch.float64)
        assert view.curvature is not None
        norms = _numpy.tensor(rows.scatter(rows.norms, dead=1.0)).to(jacobian.device)
        along = _numpy.tensor(rows.scatter(factors / largest)).to(jacobian.device)
        # The factors may be beyond the numbers of the rows, which units times numbers up to 1 are not.
        vectors = (jacobian.double() / norms[:, None] * along[:, None]).to(jacobian.dtype)
        return view.curvature(vectors).double() * largest
