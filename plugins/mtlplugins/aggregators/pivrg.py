"""``pivrg``: FairGrad with larger weights for tasks whose performance is worse."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np

from mtlcore import integer, number, vector
from mtlcore.contracts import Aggregation, Aggregator, Needs, State, StepView
from mtlplugins.aggregators import _numpy
from mtlplugins.arrays import Array, arrays, losses_of, put, softmax, take, tensors
from mtlplugins.per_task import check_length
from mtlplugins.positive import positive
from mtlplugins.solvers.bargain import bargain


@dataclasses.dataclass(frozen=True)
class PIVRG(Aggregator):
    """Qin et al., CVPR 2025 ("Revisiting Fairness in Multitask Learning") [official code]: with scores s_i in percent,

        p = K softmax(s / T) ,   T = max((max s - min s) / log bound, least_temperature) ,
        G w = (p / w)^(1/2) entry by entry, w > 0 ;     d = J'w .

    For p = 1 this is FairGrad with alpha = 2. For every p it is FairGrad with alpha = 2 for the rows g_i / p_i
    [derived], and is solved exactly in that form. In the code s_i is the relative excess of the task's validation loss
    in the last epoch over that of a single-task network. A view has no validation losses: here
    s_i = 100 (mean loss of the last window / baseline_i - 1), with the mean of the task's first window as baseline if
    none is given [choice]; s = 0 until there is one. Heads keep their own gradients. Unlike in the code, d is not
    multiplied by K and not clipped (see ``clipped``).

    Proved: <g_i, d> = (p_i / w_i)^(1/2) > 0, so there is no conflict; max p / min p <= bound. |d| is proportional to
    the common scale of the gradients to the power -1/3: it does not shrink near stationarity. Where there is no common
    descent direction, d is zero to within rounding. Absent tasks keep their windows. Cost: the Gramian, then 5 to 12
    systems of size K.

    Args:
        baselines: losses of single-task networks, one number > 0 per task.
        bound: largest ratio of two p_i; 2 on NYUv2, 1.8 elsewhere [official scripts].
        least_temperature: smallest T; 10 on NYUv2, 20 to 100 elsewhere [official scripts].
        window: steps per window; an epoch in the code [official code].

    Raises:
        ConfigurationError: there is not one baseline per task.
        LossError: a negative loss; names the task.
    """

    needs = Needs.GRAMIAN
    degree: ClassVar[float] = -1.0 / 3.0
    paper: ClassVar[str] = "https://github.com/jianke0604/MTLlib"
    claims = frozenset(
        {
            "non-conflicting",
            "permutation-equivariant",
            "positively-homogeneous",
            "conic-combination",
            "matches-reference",
            "resume-equivalent",
            "parameter-rotation",
            "zero-only-if-stationary",
        }
    )

    baselines: tuple[float, ...] | None = vector(None, low=0.0, open_low=True)
    bound: float = number(2.0, low=1.0, open_low=True)
    least_temperature: float = number(10.0, low=0.0, open_low=True)
    window: int = integer(100, low=1)

    def init(self, n_tasks: int) -> State:
        """Sum and count of the current window, the means of the first and the last one (0: none yet), its number."""
        check_length("pivrg", "baselines", self.baselines, n_tasks)
        zeros = {name: np.zeros(n_tasks) for name in ("sum", "count", "first", "last")}
        return tensors({**zeros, "window": np.array(0)})

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """w = b / |g|, where b is the solver's answer for rows of length |g_i| / p_i."""
        positive(view, "pivrg compares it with its baseline: shift the loss, or use another method.")
        scores, new = self._scores(view, state)
        priority = self._priority(scores)
        rows = _numpy.read(view)
        if not len(rows.norms):
            ones = _numpy.tensor(np.ones(view.n_tasks))
            return Aggregation(weights=0.0 * ones, state=new, head_weights=ones)
        b, found = bargain(rows.matrix, rows.norms / rows.gather(priority), 2.0)
        b = np.zeros_like(rows.norms) if b is None else b
        notes = {"priority": _numpy.tensor(priority), **found}
        return Aggregation(weights=_numpy.tensor(rows.scatter(b / rows.norms)), state=new, diagnostics=notes)

    def _priority(self, scores: Array) -> Array:
        """p (K,)."""
        spread = float(scores.max() - scores.min())
        temperature = max(spread / math.log(self.bound), self.least_temperature)
        return np.asarray(len(scores) * softmax(scores / temperature))

    def _scores(self, view: StepView, state: State) -> tuple[Array, State]:
        """s (K,) in percent, and the next state."""
        old = arrays(state)
        total, count, first, last = old["sum"], old["count"], old["first"], old["last"]
        number = view.step // self.window
        if number != old["window"]:
            met = count > 0.0
            last = np.divide(total, count, out=last.copy(), where=met)
            first = np.where(met & (first == 0.0), last, first)
            total, count = np.zeros_like(total), np.zeros_like(count)
        base = first if self.baselines is None else np.array(self.baselines)
        known = (base > 0.0) & (last > 0.0)
        with np.errstate(over="ignore"):
            ratio = np.divide(last, base, out=np.ones_like(last), where=known)
        scores = np.clip(100.0 * (ratio - 1.0), -100.0, 1e100)
        total = put(total, view, take(total, view) + losses_of(view))
        count = put(count, view, take(count, view) + 1.0)
        new = {"sum": total, "count": count, "first": first, "last": last, "window": np.array(number)}
        return take(scores, view), tensors(new)
