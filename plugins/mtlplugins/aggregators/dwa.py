"""``dwa``: dynamic weight averaging (Liu et al. 2019)."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from mtlcore import integer, number
from mtlcore.contracts import Aggregation, Aggregator, Needs, State, StepView
from mtlplugins.arrays import Array, arrays, losses_of, put, softmax, take, tensors
from mtlplugins.positive import positive

_LARGEST = 1e150


@dataclasses.dataclass(frozen=True)
class DWA(Aggregator):
    """w_i = K softmax(r_i / T), r_i = mean loss of the last window / mean loss of the one before [paper*].

    A task whose loss falls slower than the others' has the larger r_i and gets the larger weight. Windows are epochs
    in the paper, 25 steps in the Nash-MTL code. A task's windows are those in which it was met, also when others lie
    between; until it has two, r_i = 1. [choice]
    Proved: weights are positive and sum to K; the losses' units do not change them.
    Not promised: that r_i says anything when windows are short and losses noisy, or descent of every task.

    Args:
        temperature: T.
        window: steps per window.

    Raises:
        LossError: a negative loss; names the task.
    """

    needs = Needs.LOSSES
    claims = frozenset({"conic-combination", "permutation-equivariant", "resume-equivalent", "one-backward-pass"})

    temperature: float = number(2.0, low=0.0, open_low=True, log=True)
    window: int = integer(25, low=1)

    def init(self, n_tasks: int) -> State:
        """Sum and count of the running window, each task's last two means (0: none yet), and the window's number."""
        zeros = {k: np.zeros(n_tasks) for k in ("sum", "count", "last", "before")}
        return tensors({**zeros, "window": np.array(0)})

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """Weights (K,) that sum to K."""
        losses = losses_of(view)
        positive(view, "dwa compares ratios of losses: shift the loss, or use another method.")
        old = arrays(state)
        total, count, last, before = old["sum"], old["count"], old["last"], old["before"]
        number = view.step // self.window
        if number != old["window"]:
            met = count > 0
            before = np.where(met, last, before)
            last = np.divide(total, count, out=last.copy(), where=met)
            total, count = np.zeros_like(total), np.zeros_like(count)
        ratio = _ratio(take(last, view), take(before, view))
        weights = view.n_tasks * softmax(ratio / self.temperature)
        total, count = put(total, view, take(total, view) + losses), put(count, view, take(count, view) + 1.0)
        new = {"sum": total, "count": count, "last": last, "before": before, "window": np.array(number)}
        return Aggregation(
            weights=torch.from_numpy(weights), state=tensors(new), diagnostics={"ratio": torch.from_numpy(ratio)}
        )


def _ratio(last: Array, before: Array) -> Array:
    """last / before, and 1 where a window is missing or its mean is zero."""
    with np.errstate(over="ignore"):
        quotient = np.divide(last, before, out=np.ones_like(last), where=(last > 0) & (before > 0))
    # The softmax of an infinity is no number.
    return np.minimum(quotient, _LARGEST)
