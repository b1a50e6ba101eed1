"""``dwa``: dynamic weight averaging (Liu et al. 2019)."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from mtlcore import choice, integer, number
from mtlcore.contracts import Aggregation, Aggregator, Needs, State, StepView
from mtlplugins.arrays import Array, Arrays, arrays, losses_of, put, softmax, take, tensors
from mtlplugins.positive import positive

_LARGEST = 1e150


@dataclasses.dataclass(frozen=True)
class DWA(Aggregator):
    """w_i = K softmax(r_i / T), r_i = mean loss of the last window / mean loss of the one before [paper*].

    A task whose loss falls more slowly than the others' has a larger r_i and gets a larger weight. For every task only
    the windows in which it was present count, also if they are not consecutive [choice].
    Proved: weights are positive and have the given sum; with "fixed" windows they do not depend on the units of the
    losses. Not promised: descent of every task. With short windows and noisy losses r_i is mostly noise.

    Args:
        temperature: T.
        window: steps per window: an epoch in the paper, 25 steps in the Nash-MTL code [code].
        windows: "fixed", the default: consecutive windows; weights change when a window ends, as with the epochs of the
            paper; until a task has two windows, r_i = 1. "sliding": the last ``window`` steps, this one included, and
            the ``window`` steps before them; weights change in every step, as in the Nash-MTL code [code]. That memory
            is filled with ones at first and is used from step ``window`` + 2 on, so that the weights depend on the
            losses' units until it is full.
        total: sum of the weights: "n-tasks", the default, as in the paper; "one", as in the Nash-MTL code, whose loss
            is the mean of the w_i L_i [code].

    Raises:
        LossError: a negative loss; names the task.
    """

    needs = Needs.LOSSES
    paper = "https://arxiv.org/abs/1803.10704"

    temperature: float = number(2.0, low=0.0, open_low=True, log=True)
    window: int = integer(25, low=1)
    windows: str = choice("fixed", ("fixed", "sliding"))
    total: str = choice("n-tasks", ("n-tasks", "one"))

    @property
    def claims(self) -> frozenset[str]:  # type: ignore[override]
        """What is promised; the weights sum to one only with total="one"."""
        return frozenset(
            {"conic-combination", "permutation-equivariant", "resume-equivalent", "one-backward-pass"}
            | ({"simplex-weights"} if self.total == "one" else set())
        )

    def init(self, n_tasks: int) -> State:
        """Fixed windows: sum and count of the current window, each task's last two means (0: none yet), and the number
        of the window. Sliding windows: each task's last losses, the newest last, and how many there were."""
        if self.windows == "sliding":
            return tensors({"history": np.ones((2 * self.window, n_tasks)), "count": np.zeros(n_tasks)})
        zeros = {k: np.zeros(n_tasks) for k in ("sum", "count", "last", "before")}
        return tensors({**zeros, "window": np.array(0)})

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """Weights (K,)."""
        positive(view, "dwa compares ratios of losses: shift the loss, or use another method.")
        ratio, new = (self._sliding if self.windows == "sliding" else self._fixed)(view, arrays(state))
        weights = softmax(ratio / self.temperature)
        if self.total == "n-tasks":
            weights = view.n_tasks * weights
        return Aggregation(
            weights=torch.from_numpy(weights), state=tensors(new), diagnostics={"ratio": torch.from_numpy(ratio)}
        )

    def _sliding(self, view: StepView, old: Arrays) -> tuple[Array, Arrays]:
        """Ratios (K,) of the means of both halves of the memory, which includes this step's losses; and the next
        state."""
        history, count = old["history"].copy(), old["count"].copy()
        index = list(view.task_index)
        history[:-1, index] = history[1:, index]
        history[-1, index] = losses_of(view)
        count[index] += 1.0
        halves = history[:, index].reshape(2, self.window, -1).mean(axis=1)
        ratio = np.where(count[index] > self.window + 1, _ratio(halves[1], halves[0]), 1.0)
        return ratio, {"history": history, "count": count}

    def _fixed(self, view: StepView, old: Arrays) -> tuple[Array, Arrays]:
        """Ratios (K,) of the last two complete windows, and the next state."""
        losses = losses_of(view)
        total, count, last, before = old["sum"], old["count"], old["last"], old["before"]
        number = view.step // self.window
        if number != old["window"]:
            met = count > 0
            before = np.where(met, last, before)
            last = np.divide(total, count, out=last.copy(), where=met)
            total, count = np.zeros_like(total), np.zeros_like(count)
        ratio = _ratio(take(last, view), take(before, view))
        total, count = put(total, view, take(total, view) + losses), put(count, view, take(count, view) + 1.0)
        return ratio, {"sum": total, "count": count, "last": last, "before": before, "window": np.array(number)}


def _ratio(last: Array, before: Array) -> Array:
    """last / before, and 1 where a window is missing or its mean is zero."""
    with np.errstate(over="ignore"):
        quotient = np.divide(last, before, out=np.ones_like(last), where=(last > 0) & (before > 0))
    # The softmax of an infinity is no number.
    return np.minimum(quotient, _LARGEST)
