"""``forum``: first-order bilevel multi-objective optimisation of loss weights for validation losses."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from mtlcore import integer, linalg, number
from mtlcore.contracts import Aggregation, Aggregator, Needs, State, StepView
from mtlplugins import adam, rows
from mtlplugins.arrays import Array, arrays, losses_of, put, softmax, take, tensors, touched
from mtlplugins.solvers.simplex_quadratic import minimise, minimise_above


@dataclasses.dataclass(frozen=True)
class FORUM(Aggregator):
    """Ye et al. 2024 [official code]: the upper level are the losses F_i of a second (validation) batch; the lower
    level is the weighted loss f = sum_i s_i L_i of the first batch, s = softmax(alpha).

    Let q = f(alpha, x) - f(alpha, x_T), where x_T is reached from x by T gradient steps on f. The gradient g_q of q is
    sum_i s_i g_i for the network and s_i (D_i - sum_j s_j D_j), D_i = L_i(x) - L_i(x_T), for alpha. With the unit
    gradients h_i = grad F_i / |grad F_i|,

        min |sum_i l_i h_i + v g_q|^2 - v rho |g_q|^2    over l on the simplex, v >= max(0, sum_i l_i p_i) ,
        p_i = rho - <g_q, h_i> / |g_q|^2 ;   l <- l + t^(-3/4) (l* - l) ;   v = max(0, sum_i l_i p_i) ;
        d = sum_i l_i h_i + v g_q ,     and Adam's gradient for alpha is v times alpha's part of g_q.

    The minimum is found exactly (:mod:`mtlplugins.solvers.simplex_quadratic`). A step takes two closures: training
    batch, validation batch. The inner steps come from ``view.inner``, which only ``MultiTask.step`` offers; elsewhere
    alpha does not change, and the diagnostics say so.

    Differs from the code: lengths are those of the trunk's gradients (in the code: of all parameters'); heads take
    v s_i times their gradients on the training batch [choice]; t counts steps, not epochs; 1e-8 is not added. |g_q|
    includes alpha's part. Proved: <g_q, d> >= rho |g_q|^2 for the current l; the units of the F_i do not matter. Not
    promised: no conflict. A task missing from either batch does not take part. Cost: T + 2 forward passes, and the rows
    of two batches.

    Args:
        rho: the factor rho of the constraint [official code: 0.1].
        inner_steps: T, the number of inner steps [official code: 5].
        inner_lr: step size of the inner steps [official code: 0.1].
        lr: Adam's step size for alpha [official code: 1e-3].
    """

    needs = Needs.JACOBIAN
    batches: ClassVar[int] = 2
    paper: ClassVar[str] = "https://arxiv.org/abs/2401.09257"
    claims = frozenset({"permutation-equivariant", "resume-equivalent", "parameter-rotation"})

    rho: float = number(0.1, low=0.0, open_low=True)
    inner_steps: int = integer(5, low=1)
    inner_lr: float = number(0.1, low=0.0, open_low=True, log=True)
    lr: float = number(1e-3, low=0.0, log=True)

    def init(self, n_tasks: int) -> State:
        """alpha and l (K,), the number of steps of each task, and Adam's moments."""
        zeros = {name: np.zeros(n_tasks) for name in ("scores", "mixture", "count")}
        return tensors({**zeros, **adam.fresh(n_tasks)})

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """A direction (P,)."""
        old, (upper, there) = arrays(state), rows.other(view, 0)
        s = softmax(take(old["scores"], view))
        by_score, notes = self._score_gradient(view, s)
        units = _units(upper)
        mine = linalg.combine(view.jacobian, torch.from_numpy(s))
        gram = linalg.gramian(torch.cat([units, mine[None].to(units)])).cpu().numpy()
        k = view.n_tasks
        square = float(gram[k, k] + by_score @ by_score)
        mixture, count = take(old["mixture"], view), take(old["count"], view) + there
        reach = np.full(k, self.rho)
        if square > 0.0:
            reach = self.rho - gram[k, :k] / square
        if there.any():
            best = self._best(gram[:k, :k], gram[k, :k], square, there)
            rate = np.where(there, np.maximum(count, 1.0) ** -0.75, 0.0)
            mixture = mixture + rate * (best - mixture)
        pull = max(0.0, float(mixture @ reach)) if square > 0.0 else 0.0
        direction = linalg.combine(units, torch.from_numpy(mixture)).double() + pull * mine.double()
        full = put(np.zeros_like(old["scores"]), view, pull * by_score)
        moved, moments = adam.step(
            old["scores"], full, old[adam.KEY], lr=self.lr, eps=0.0, touched=touched(old["scores"], view)
        )
        new = {"scores": moved, "mixture": put(old["mixture"], view, mixture), "count": put(old["count"], view, count)}
        out = tensors({**new, adam.KEY: moments})
        notes |= {"pull": pull, "mixture": torch.from_numpy(mixture), "lower_weights": torch.from_numpy(s)}
        heads = torch.from_numpy(pull * s)
        return Aggregation(direction=direction.to(view.jacobian), state=out, diagnostics=notes, head_weights=heads)

    def _score_gradient(self, view: StepView, s: Array) -> tuple[Array, dict[str, object]]:
        """alpha's part of g_q (K,), and diagnostics."""
        if view.inner is None:
            return np.zeros(view.n_tasks), {"inner": "not available: alpha stays; use MultiTask.step(closures)"}
        weights = torch.from_numpy(s)
        there = view.inner(lambda point: weights, self.inner_steps, self.inner_lr)
        gain = losses_of(view) - losses_of(there)
        return np.asarray(s * (gain - s @ gain)), {"inner_gain": torch.from_numpy(gain)}

    def _best(self, gram: Array, cross: Array, square: float, there: Array) -> Array:
        """l* (K,), zero for tasks that are not in the upper batch.

        With c_i the cosine of h_i and g_q, and a = rho |g_q|: the constraint on v is v |g_q| >= a - c'l. The
        unconstrained minimum in v is at v |g_q| = a / 2 - c'l, which is less; so v |g_q| = max(0, a - c'l). Inserted,
        the objective is l'(G - cc')l + a c'l where c'l <= a, and l'Gl where c'l >= a. That function is convex: its
        minimum is that of the first part if it lies where c'l <= a, and that of the second part otherwise.
        """
        index = there.nonzero()[0]
        out, length = np.zeros(len(there)), square**0.5
        g = gram[np.ix_(index, index)]
        c, a = (cross[index] / length, self.rho * length) if length > 0.0 else (np.zeros(len(index)), 0.0)
        found = minimise(g - np.outer(c, c), 0.5 * a * c)
        out[index] = found if float(found @ c) <= a else minimise_above(g, c, a)
        return out


def _units(gradients: Tensor) -> Tensor:
    """Rows of length 1, or of zeros."""
    largest = gradients.abs().amax(dim=1, keepdim=True)
    part = torch.where(largest > 0.0, gradients / torch.where(largest > 0.0, largest, 1.0), 0.0).double()
    length = part.norm(dim=1, keepdim=True)
    return (part / torch.where(length > 0.0, length, 1.0)).to(gradients)
