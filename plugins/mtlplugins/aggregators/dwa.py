"""``dwa``: dynamic weight averaging (Liu et al. 2019)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from mtlcore import integer, number
from mtlcore.contracts import Aggregation, Aggregator, Needs, State, StepView
from mtlplugins.positive import positive
from mtlplugins.subproblem import put, take


@dataclasses.dataclass(frozen=True)
class DWA(Aggregator):
    """w_i = K softmax(r_i / T), r_i = mean loss of the last window / mean loss of the one before [paper*].

    A task whose loss falls slower than the others' has the larger r_i and gets the larger weight. Windows are epochs
    in the paper, 25 steps in the Nash-MTL code; during the first two, and for a task that was absent from one of
    them, r_i = 1.
    Proved: weights are positive and sum to K; the losses' units do not change them.
    Not promised: that r_i says anything when windows are short and losses noisy, or descent of every task.

    Args:
        temperature: T.
        window: steps per window.

    Raises:
        LossError: a negative loss; names the task.
    """

    needs = Needs.LOSSES
    claims = frozenset({"conic-combination", "permutation-equivariant", "resume-equivalent"})

    temperature: float = number(2.0, low=0.0, open_low=True, log=True)
    window: int = integer(25, low=1)

    def init(self, n_tasks: int) -> State:
        """Sum and count of the running window, means of the last two (0: none yet), and the window's number."""
        zeros = {k: torch.zeros(n_tasks, dtype=torch.float64) for k in ("sum", "count", "last", "before")}
        return {**zeros, "window": torch.zeros((), dtype=torch.int64)}

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """Weights (K,) that sum to K."""
        losses = view.losses
        positive(view, losses, "dwa compares ratios of losses: shift the loss, or use another method.")
        total, count, last, before = (state[k].to(losses.device) for k in ("sum", "count", "last", "before"))
        number = view.step // self.window
        if number != int(state["window"]):
            met = count > 0
            before = torch.where(met, last, before)
            last = torch.where(met, total / count, last)
            total, count = torch.zeros_like(total), torch.zeros_like(count)
        ratio = _ratio(take(last, view), take(before, view))
        weights = view.n_tasks * torch.softmax(ratio / self.temperature, 0)
        total, count = put(total, view, take(total, view) + losses), put(count, view, take(count, view) + 1.0)
        new = {"sum": total, "count": count, "last": last, "before": before, "window": torch.tensor(number)}
        return Aggregation(weights=weights, state=new, diagnostics={"ratio": ratio})


def _ratio(last: Tensor, before: Tensor) -> Tensor:
    """last / before, and 1 where a window is missing or its mean is zero."""
    return torch.where((last > 0) & (before > 0), last / before, torch.ones_like(last))
