"""``pcd``: the primary task's gradient, changed as little as gives every other task a share of its own progress."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np

from mtlcore import integer, number, vector
from mtlcore.contracts import Aggregation, Aggregator, Needs, State, StepView
from mtlplugins.aggregators import _numpy
from mtlplugins.arrays import Array, arrays, put, take, tensors
from mtlplugins.one_task import chosen, place
from mtlplugins.per_task import check_length
from mtlplugins.solvers import nonnegative
from mtlplugins.solvers.certificate import EPS
from mtlplugins.solvers.cosines import noise


@dataclasses.dataclass(frozen=True)
class PCD(Aggregator):
    """Priority-constrained descent (TMLR 2026, 2606.29521) [lib code: TorchJD; the paper was not read]. With h_i =
    g_i / v_i^(1/2), v_i the moving average of |g_i|^2, and p the primary task,

        d' = argmin |d - h_p|^2   subject to   <h_j, d> >= tau_j |h_j|^2   for j != p ;     d = |g_p| d' / |d'| .

    A step along its own h_j would gain task j |h_j|^2 to first order; each is guaranteed the fraction tau_j of that. v
    is bias-corrected, as Adam's second moment.

    Proved, where the constraints are feasible: <g_j, d> >= 0 for all j != p, and > 0 if tau_j > 0; |d| = |g_p|; weights
    are >= 0. The unit of a loss other than the primary one does not matter. Not promised: that the primary task gains;
    if another one opposes it, d goes against it. If no direction satisfies all constraints they are dropped: d = g_p.
    d = 0 if g_p is zero or the primary task is absent [choice]. A zero gradient is no constraint. Unlike in the code,
    1e-8 is not added to v. Cost: the Gramian, then a few K x K systems.

    Args:
        primary: position of the primary task among all tasks, when the run begins.
        tau: tau_j of all tasks [lib code: 0.02].
        taus: one number per task instead; that of the primary task is not read.
        beta: weight of earlier squared lengths in v [lib code: 0.999].

    Raises:
        ConfigurationError: there is not one of ``taus`` per task, or no task ``primary``; or that task was removed.
    """

    needs = Needs.GRAMIAN
    paper: ClassVar[str] = "https://arxiv.org/abs/2606.29521"
    claims = frozenset({"conic-combination", "parameter-rotation", "positively-homogeneous", "resume-equivalent"})
    primary: int = integer(0, low=0)
    tau: float = number(0.02, low=0.0, high=1.0)
    taus: tuple[float, ...] | None = vector(None, low=0.0, high=1.0)
    beta: float = number(0.999, low=0.0, high=1.0, open_high=True)

    def init(self, n_tasks: int) -> State:
        """Averages of |g|^2 without the correction (K,), the number of steps of each task (K,), and 1 for the primary
        task (K,), which stays the same one where tasks come, go or change their order."""
        check_length("pcd", "taus", self.taus, n_tasks)
        marked = chosen("pcd", "primary", self.primary, n_tasks)
        return {**tensors({"square": np.zeros(n_tasks), "count": np.zeros(n_tasks)}), **marked}

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """Weights (K,)."""
        old, rows = arrays(state), _numpy.read(view)
        square = self.beta * take(old["square"], view) + (1.0 - self.beta) * view.gramian.diagonal().numpy()
        count = take(old["count"], view) + 1.0
        new = tensors({**old, "square": put(old["square"], view, square), "count": put(old["count"], view, count)})
        first = place("pcd", "primary", state, view)
        live = range(view.n_tasks) if rows.live is None else rows.live.tolist()
        at = [position for position, i in enumerate(live) if i == first]
        if not at:
            notes: dict[str, object] = {"pcd": "the primary task has no gradient"}
            return Aggregation(weights=_numpy.tensor(np.zeros(view.n_tasks)), state=new, diagnostics=notes)
        mean = np.sqrt(rows.gather(square / (1.0 - self.beta**count)))
        taus = np.full(view.n_tasks, self.tau) if self.taus is None else take(np.array(self.taus), view)
        b, notes = _constrained(rows.matrix, rows.norms / mean, rows.gather(taus), at[0])
        length = math.sqrt(max(float(b @ rows.matrix @ b), 0.0))
        if length <= noise(rows.matrix, b) ** 0.5 * float(b.sum()) ** 0.5:
            b, length, notes = np.zeros_like(b), 1.0, {**notes, "pcd": "the direction is zero to within rounding"}
        weights = rows.scatter(b / length * rows.norms[at[0]] / rows.norms)
        return Aggregation(weights=_numpy.tensor(weights), state=new, diagnostics=notes)


def _constrained(matrix: Array, lengths: Array, taus: Array, primary: int) -> tuple[Array, dict[str, object]]:
    """b (k,), the weights of the unit rows in d' = n_p u_p + sum_j y_j u_j.

    With unit rows the constraint of j is <u_j, d'> >= tau_j n_j, and y minimises 1/2 y'Cy + q'y over y >= 0, where
    q_j = C_jp n_p - tau_j n_j is what the constraint has to spare without y.
    """
    others = np.arange(len(lengths)) != primary
    c, spare = matrix[np.ix_(others, others)], (matrix[primary] * lengths[primary] - taus * lengths)[others]
    b = np.zeros_like(lengths)
    b[primary] = lengths[primary]
    if not others.any() or float(spare.min()) >= 0.0:
        return b, {"solver": "trivial"}
    y, count = nonnegative.solve(c, spare)
    left = c @ y + spare
    size = float(np.abs(spare).max())
    # Without a solution the minimum has no bound but for the ridge of the solver, and a constraint stays unmet.
    if float(left.min()) < -1e-6 * size:
        return b, {"solver": "infeasible: constraints dropped", "solver_iterations": count}
    b[others] = y
    gap = np.where(y > 0.0, np.abs(left), np.maximum(-left, 0.0)).max() / (size + float(y.sum()))
    status = "optimal" if gap <= 64.0 * len(lengths) * EPS else "inexact"
    return b, {"solver": status, "kkt_residual": float(gap), "solver_iterations": count}
