"""``bilb4mtl``: BiLB4MTL in its single-loop, O(1) form, the method that is meant for training."""

from __future__ import annotations

import dataclasses

from mtlcore.contracts import Aggregation, State, StepView
from mtlplugins.aggregators.bilb4mtl.balancer import Balancer


@dataclasses.dataclass(frozen=True, init=False)
class BiLB4MTL(Balancer):
    """Bilevel loss balancing with one backward pass [paper: arXiv 2502.08585; code: OptMN-Lab/LDC-MTL].

    Upper level: router weights W that make the tasks' normalised losses equal. Lower level: network parameters x
    that minimise their weighted sum. The penalty form of both, without the term grad_W g(W, z_N) of the inner
    solution, is joint gradient descent on

        TOTAL = sum_i sigma_i(W) l~_i(x) / S + lambda sum_i |tau_i l~_i - tau_{i+1} l~_{i+1}|.

    The returned weights are dTOTAL/dl_i (see :mod:`.balancer`); the router makes its own step.

    Proved (S = 1; in general lambda -> lambda S): all coefficients are non-negative if lambda tau_i |k_i| <=
    sigma_i, for instance lambda <= 1/2 with tau = sigma. Then a point with ||grad_x TOTAL|| <= eps is
    Pareto stationary with accuracy eps / sum c: the weights c / sum c are its certificate. With ``pareto_safe``
    negative coefficients are clipped, so that this holds for every lambda.
    Not promised: descent of every task, or stationarity of TOTAL at every Pareto stationary point.

    Options: see :class:`~mtlplugins.aggregators.bilb4mtl.balancer.Balancer`.

    Raises:
        LossError: a loss without a logarithm ("log"), a first loss by which "rescaled" cannot divide, or a loss too
            large compared with it; names the task.
        FeaturesError: a router that reads features got none, or not those of the first step.
    """

    paper = "https://arxiv.org/abs/2502.08585"

    @property
    def claims(self) -> frozenset[str]:  # type: ignore[override]
        """What is promised; without the inner loop one backward pass, too."""
        return super().claims | {"one-backward-pass"}

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """Weights dTOTAL/dl_i; the next state has the router after its step."""
        return self._step(view, state)
