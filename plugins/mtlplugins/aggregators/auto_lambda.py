"""``auto-lambda``: loss weights learned from the effect of each task's gradient step on the validation losses."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import torch

from mtlcore import choice, number
from mtlcore.contracts import Aggregation, Aggregator, Needs, State, StepView
from mtlplugins import adam, rows
from mtlplugins.arrays import Array, arrays, put, take, tensors, touched
from mtlplugins.solvers.certificate import EPS
from mtlplugins.solvers.cosines import Mask

_LARGEST = 1e140
"""Growth of an inner product since the first step beyond which it is cut, so that the sum of K is one that Adam can
take."""


@dataclasses.dataclass(frozen=True)
class AutoLambda(Aggregator):
    """Liu et al. 2022 [paper*]: the weights w minimise the losses F_j of a second (validation) batch, after one
    gradient step on the weighted loss sum_i w_i L_i of the first batch.

    With x' = x - eta sum_i w_i g_i the hypergradient is dF_j(x')/dw_i = -eta <g_i, grad F_j(x')>. Here grad F_j is
    taken at x, not at x'; the error is of order eta [choice: a view has no gradients at x'; the authors' finite
    difference is an approximation, too]. For the sum of the F_j ("sum", Auto-lambda) the gradient that Adam gets for w
    is, up to the factor eta,

        a_i = -sum_j m_j <g_i, grad F_j> ,     m_j = 1 .

    With "min-norm", m are the min-norm weights of the hypergradients, as in MOML (Ye et al. 2021 [paper*]): to first
    order, the step on w then raises no F_j. Weights are kept >= ``floor`` and are not normalised [paper*].
    Adam's step does not depend on the scale of its gradient, so neither eta nor the common scale of the gradients
    matters (Adam's eps is 0 [choice]). The unit of a is the largest inner product of the first step, in the whole run.

    Proved: weights are >= 0 and start at ``start``; a task whose gradient has positive inner products with all
    validation gradients gains weight. Not promised: no conflict. A task that is missing from the second batch has
    m_j = 0. Whole losses are weighted, heads included. Cost: two passes, and the rows of two batches.

    Args:
        lr: Adam's step size [paper*: 1e-4].
        start: first value of every weight [paper*: 0.1].
        floor: smallest weight.
        upper: "sum" or "min-norm".
    """

    needs = Needs.JACOBIAN
    batches: ClassVar[int] = 2
    paper: ClassVar[str] = "https://arxiv.org/abs/2202.03091"
    claims = frozenset(
        {
            "conic-combination",
            "permutation-equivariant",
            "positively-homogeneous",
            "resume-equivalent",
            "parameter-rotation",
        }
    )

    lr: float = number(1e-4, low=0.0, log=True)
    start: float = number(0.1, low=0.0)
    floor: float = number(0.0, low=0.0)
    upper: str = choice("sum", ("sum", "min-norm"))

    def init(self, n_tasks: int) -> State:
        """w (K,), the unit of the inner products (0: none yet) and Adam's moments."""
        start = np.full(n_tasks, max(self.start, self.floor))
        return tensors({"weights": start, "unit": np.zeros(()), **adam.fresh(n_tasks)})

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """The weights before their step."""
        old = arrays(state)
        validation, there = rows.other(view, 0)
        cross = rows.cross(view.jacobian, validation)
        unit = float(old["unit"]) or float(np.abs(cross).max())
        # hyper[i, j] = dF_j / dw_i, up to a factor that is the same in all steps, as Adam compares them.
        with np.errstate(over="ignore"):
            hyper = -np.clip(cross / unit, -_LARGEST, _LARGEST) if unit > 0.0 else cross
        mixture = there.astype(float)
        if self.upper == "min-norm" and there.any():
            mixture = _mixture(hyper, there)
        gradient = hyper @ mixture
        # What cancels to rounding is no gradient; Adam would make a whole step of it. The entries of a min-norm point
        # are as exact as the largest of them, and must be known to half of their digits.
        summed, eps = np.abs(hyper) @ mixture, np.finfo(float).eps
        known = (
            64.0 * len(summed) * eps * summed if self.upper == "sum" else np.full_like(summed, eps**0.5 * summed.max())
        )
        gradient[np.abs(gradient) <= known] = 0.0
        full = put(np.zeros_like(old["weights"]), view, gradient)
        moved, moments = adam.step(
            old["weights"], full, old[adam.KEY], lr=self.lr, eps=0.0, touched=touched(old["weights"], view)
        )
        new = tensors({"weights": np.maximum(moved, self.floor), "unit": np.array(unit), adam.KEY: moments})
        weights = torch.from_numpy(take(old["weights"], view).copy())
        notes = {"mixture": torch.from_numpy(mixture), "hypergradient": torch.from_numpy(gradient)}
        return Aggregation(weights=weights, state=new, diagnostics=notes, head_weights=weights)


def _mixture(hyper: Array, there: Array) -> Array:
    """m (K,): the min-norm weights of the columns, the hypergradients of the upper losses that are there."""
    index = there.nonzero()[0]
    columns, out = hyper[:, index], np.zeros(len(there))
    lengths = np.linalg.norm(columns, axis=0)
    if not lengths.all():
        zero = lengths == 0.0
        out[index[zero]] = 1.0 / np.count_nonzero(zero)
        return out
    out[index] = _shortest(columns, lengths)
    return out


def _shortest(columns: Array, lengths: Array) -> Array:
    """Weights (k,) of the shortest convex combination, by Wolfe's method (1976 [memory]).

    Least squares work on the columns themselves, not on their inner products: those give the sum only to the square
    root of the rounding error. Where columns of very different length nearly cancel, Adam would turn that error into
    full steps."""
    w = np.zeros(len(lengths))
    w[lengths.argmin()] = 1.0
    point = columns @ w
    for _ in range(4 * len(w)):
        length = float(np.linalg.norm(point))
        behind = (length * length - point @ columns) / lengths
        entering = int(np.where(w > 0.0, -np.inf, behind).argmax())
        if w[entering] > 0.0 or behind[entering] <= 64.0 * len(w) * EPS * length:
            break
        found = _with(columns, w, entering)
        point = columns @ found
        if not float(np.linalg.norm(point)) < length:
            break
        w = found
    return w


def _with(columns: Array, w: Array, entering: int) -> Array:
    """Move w (k,) to the shortest combination of its support and one more column; weights that would become negative
    leave the support."""
    support = w > 0.0
    support[entering] = True
    while True:
        target = _of_support(columns, support)
        blocking = (support & (target < 0.0)).nonzero()[0]
        if not len(blocking):
            return target
        step = w[blocking] / (w[blocking] - target[blocking])
        w = w + float(step.min()) * (target - w)
        leaving = blocking[step <= step.min()]
        w[leaving], support[leaving] = 0.0, False


def _of_support(columns: Array, positive: Mask) -> Array:
    """Weights (k,) of the shortest combination: their sum is one, and they are zero outside of ``positive``."""
    index = positive.nonzero()[0]
    # From the shortest column: rounding is then relative to it and not to the longest.
    base = index[np.linalg.norm(columns[:, index], axis=0).argmin()]
    rest = index[index != base]
    ways = columns[:, rest] - columns[:, [base]]
    lengths = np.linalg.norm(ways, axis=0)
    lengths = np.where(lengths > 0.0, lengths, 1.0)
    share = np.linalg.lstsq(ways / lengths, -columns[:, base], rcond=None)[0] / lengths
    out = np.zeros(len(positive))
    out[rest] = share
    out[base] = 1.0 - float(share.sum())
    return out
