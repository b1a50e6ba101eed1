"""``bilb4mtl-double-loop``: the penalty form with its inner loop, to measure the term that ``bilb4mtl`` leaves out."""

from __future__ import annotations

import dataclasses

from mtlcore import integer, number
from mtlcore.contracts import Aggregation, State, StepView
from mtlplugins.aggregators.bilb4mtl.balancer import Balancer, Weigh


@dataclasses.dataclass(frozen=True, init=False)
class BiLB4MTLDoubleLoop(Balancer):
    """BiLB4MTL with N inner gradient steps [paper, structure from the reviews; starting point and indices: choice].

        z_0 = x,  z_{n+1} = z_n - beta grad_z g(W, z_n)
        x <- x - alpha grad_x (g + lambda f)
        W <- W - alpha (grad_W (g + lambda f)(W, x) - grad_W g(W, z_N))

    The last term is the one that ``bilb4mtl`` leaves out. Diagnostics: ``dropped_norm`` = ||grad_W g(W, z_N)||,
    ``kept_norm`` = ||grad_W g(W, x)||, their quotient ``dropped_ratio``, and the losses at z_N, ``inner_losses``.

    Cost: N + 1 more forward and N more backward passes per step, and one copy of the network. The inner steps are made
    by ``view.inner``, which only ``MultiTask.step(closure)`` offers. In a view without it (``backward``, or
    ``mtlcore.aggregate``) the step is that of ``bilb4mtl``, and the diagnostic ``inner`` says so.

    Args:
        inner_steps: N, the number of inner steps.
        inner_lr: beta, their step size.

    Raises:
        LossError: as ``bilb4mtl``; also where an inner step makes a loss negative that "log" cannot take.
        NonFiniteError: the inner steps diverged; names the task.
    """

    paper = "https://arxiv.org/abs/2502.08585"

    inner_steps: int = integer(10, low=1)
    inner_lr: float = number(1e-2, low=0.0, open_low=True, log=True)

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """Weights dTOTAL/dl_i; the next state has the router after its step."""
        if view.inner is None:
            answer = self._step(view, state)
            note = {"inner": "not available: grad_W g(W, z_N) was dropped; use MultiTask.step(closure)"}
            return dataclasses.replace(answer, diagnostics={**answer.diagnostics, **note})
        return self._step(view, state, self._solve)

    def _solve(self, view: StepView, weigh: Weigh) -> StepView:
        assert view.inner is not None
        return view.inner(weigh, self.inner_steps, self.inner_lr)
