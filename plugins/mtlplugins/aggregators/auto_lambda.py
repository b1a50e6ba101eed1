"""``auto-lambda``: loss weights that follow what a step on each task does for the validation losses."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import torch

from mtlcore import choice, number
from mtlcore.contracts import Aggregation, Aggregator, Needs, State, StepView
from mtlplugins import adam, rows
from mtlplugins.arrays import Array, arrays, put, take, tensors, touched
from mtlplugins.solvers.cosines import cosines
from mtlplugins.solvers.min_norm import min_norm


@dataclasses.dataclass(frozen=True)
class AutoLambda(Aggregator):
    """Liu et al. 2022 [paper*]: w minimises the losses F_j of a second batch after one step on sum_i w_i L_i of the
    first.

    With x' = x - eta sum_i w_i g_i the hypergradient is dF_j(x')/dw_i = -eta <g_i, grad F_j(x')>. grad F_j is taken at
    x instead of x' here, an error of order eta [choice: a view offers no gradients at x'; the authors' finite
    difference errs, too]. So the step on w, by Adam and for the sum of the F_j ("sum", Auto-lambda), is along

        a_i = -sum_j m_j <g_i, grad F_j> ,     m = 1 .

    "min-norm" takes for m the min-norm weights of the hypergradients, as MOML does (Ye et al. 2021 [paper*]): w then
    moves so that, to first order, no F_j rises. Weights are kept >= ``floor`` and not normalised [paper*].
    Adam sees directions only, so neither eta nor the gradients' common size matters (its eps is 0 [choice]).

    Proved: weights are >= 0 and start at ``start``; a task whose gradient agrees with all validation gradients gains
    weight. Not promised: no conflict. A task missing from the second batch counts as m_j = 0. Whole losses are
    weighted, heads included. Cost: two passes, rows of two batches.

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
        """w (K,) and Adam's moments."""
        return tensors({"weights": np.full(n_tasks, max(self.start, self.floor)), **adam.fresh(n_tasks)})

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """The weights before their step."""
        old = arrays(state)
        validation, there = rows.other(view, 0)
        cross = rows.cross(view.jacobian, validation)
        size = float(np.abs(cross).max())
        hyper = -cross / size if size > 0.0 else cross  # hyper[i, j] = dF_j / dw_i up to a common factor
        mixture = there.astype(float)
        if self.upper == "min-norm" and there.any():
            mixture = _mixture(hyper, there)
        gradient = hyper @ mixture
        # What cancels to rounding is no gradient; Adam would make a whole step of it.
        gradient[np.abs(gradient) <= 64.0 * len(gradient) * np.finfo(float).eps * (np.abs(hyper) @ mixture)] = 0.0
        full = put(np.zeros_like(old["weights"]), view, gradient)
        moved, moments = adam.step(
            old["weights"], full, old[adam.KEY], lr=self.lr, eps=0.0, touched=touched(old["weights"], view)
        )
        new = tensors({"weights": np.maximum(moved, self.floor), adam.KEY: moments})
        weights = torch.from_numpy(take(old["weights"], view).copy())
        notes = {"mixture": torch.from_numpy(mixture), "hypergradient": torch.from_numpy(gradient)}
        return Aggregation(weights=weights, state=new, diagnostics=notes, head_weights=weights)


def _mixture(hyper: Array, there: Array) -> Array:
    """m (K,): the min-norm weights of the columns, the hypergradients of the upper losses that are there."""
    index = there.nonzero()[0]
    out = np.zeros(len(there))
    found = cosines(hyper[:, index].T @ hyper[:, index])
    if found.live is not None:
        zero = np.setdiff1d(np.arange(len(index)), found.live)
        out[index[zero]] = 1.0 / len(zero)
        return out
    b, _, _ = min_norm(found.matrix, 1.0 / found.norms)
    out[index] = b / found.norms
    return np.asarray(out / out.sum())
