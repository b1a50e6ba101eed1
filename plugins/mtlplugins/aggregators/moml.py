"""``moml``: loss weights whose update raises no validation loss, to first order."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from mtlcore import Aggregation, Aggregator, Needs, StepView, number
from mtlcore.contracts import State
from mtlplugins.aggregators.auto_lambda import AutoLambda


@dataclasses.dataclass(frozen=True)
class MOML(Aggregator):
    """Ye et al. 2021, multi-objective meta learning [paper*]: here the loss weights are learned, with one inner step.

    The hypergradients of the upper losses F_j with respect to w are combined by their min-norm point, so that the step
    on w raises no F_j, to first order. It is ``auto-lambda`` with ``upper="min-norm"`` and weights that start at 1; see
    there for the equations, for what is proved, and for the approximation. [choice: in FORUM's comparison MOML learns
    loss weights, too, with T = 1]

    Args:
        lr: Adam's step size of w [choice].
        start: first value of every weight.
    """

    needs = Needs.JACOBIAN
    batches: ClassVar[int] = 2
    paper: ClassVar[str] = "https://arxiv.org/abs/2102.07121"
    claims = AutoLambda.claims

    lr: float = number(1e-3, low=0.0, log=True)
    start: float = number(1.0, low=0.0)

    def init(self, n_tasks: int) -> State:
        """As ``auto-lambda``."""
        return self._core().init(n_tasks)

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """The weights before their step."""
        return self._core().aggregate(view, state)

    def _core(self) -> AutoLambda:
        return AutoLambda(lr=self.lr, start=self.start, upper="min-norm")
