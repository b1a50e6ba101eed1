"""``graddrop``: every coordinate keeps the gradients of one sign, drawn in proportion to the sums of both signs."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from mtlcore import choice, vector
from mtlcore.contracts import Aggregation, Aggregator, Needs, State, StepView
from mtlplugins.per_task import check_length


@dataclasses.dataclass(frozen=True)
class GradDrop(Aggregator):
    """Chen et al. 2020 [lib code; paper*]: per coordinate p, with the positive sign purity P in [0, 1],

        P_p = (1 + sum_i g_ip / sum_i |g_ip|) / 2 ,   u_p ~ U(0, 1) ,   keep sign + if u_p < P_p, else sign - ;
        d_p = sum_i (l_i + (1 - l_i) [g_ip has the kept sign]) g_ip .

    It is applied to the trunk's gradients, as in the code of FAMO and TorchJD [code]; the paper applies it to the
    gradient at the shared activation, multiplied by the activation's sign. u comes from the view's generator (on the
    processor).

    Proved: where all tasks agree in sign, d_p is the plain sum; without leak, all terms of d_p have one sign;
    E[d] = P (sum of positive parts) + (1 - P) (sum of negative parts). Not promised: no conflict, a combination of the
    gradients with one weight per task, or invariance under a rotation of the parameters. Cost: the rows.

    Args:
        leak: l_i in [0, 1] per task, the part of its gradient that is always kept; None: zeros [paper*].
        reduction: "sum" of what is kept, or "mean" (the sum over K).

    Raises:
        ConfigurationError: there is not one leak per task.
    """

    needs = Needs.JACOBIAN
    paper: ClassVar[str] = "https://arxiv.org/abs/2010.06808"

    leak: tuple[float, ...] | None = vector(None, low=0.0, high=1.0)
    reduction: str = choice("sum", ("sum", "mean"))

    @property
    def claims(self) -> frozenset[str]:  # type: ignore[override]
        """What is promised; given leaks treat tasks differently."""
        always = {"positively-homogeneous", "resume-equivalent"}
        return frozenset(always | ({"equivariant-in-distribution"} if self.leak is None else set()))

    def init(self, n_tasks: int) -> State:
        """No state."""
        check_length("graddrop", "leak", self.leak, n_tasks)
        return {}

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """A direction (P,)."""
        rows = view.jacobian
        # Divided by its largest entry first, so that no sum of a column overflows or has no digits.
        size = rows.abs().amax(dim=0)
        scaled = rows.double() / torch.where(size > 0.0, size, 1.0).double()
        purity = 0.5 * (1.0 + scaled.sum(0) / scaled.abs().sum(0).clamp_min(1.0))
        draw = torch.rand(rows.shape[1], generator=view.generator, dtype=torch.float64, device="cpu").to(rows.device)
        kept = torch.where(draw < purity, scaled > 0.0, scaled < 0.0).double()
        if self.leak is not None:
            leak = torch.tensor([self.leak[i] for i in view.task_index], dtype=torch.float64, device=rows.device)
            kept = leak[:, None] + (1.0 - leak[:, None]) * kept
        total = (kept * rows.double()).sum(0)
        if self.reduction == "mean":
            total = total / view.n_tasks
        return Aggregation(direction=total.to(rows.dtype), state=state)
