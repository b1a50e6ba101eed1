"""``gradnorm``: loss weights learned so that slower tasks have longer weighted gradients."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from mtlcore import choice, number
from mtlcore.contracts import Aggregation, Aggregator, Needs, State, StepView
from mtlplugins import adam
from mtlplugins.aggregators import _numpy
from mtlplugins.arrays import Array, arrays, losses_of, put, softmax, take, tensors, touched
from mtlplugins.positive import positive


@dataclasses.dataclass(frozen=True)
class GradNorm(Aggregator):
    """Chen et al. 2018 [paper*; lib code]: with G_i = w_i |g_i|, r_i = (L_i / L_i(0)) / mean_j (L_j / L_j(0)),

        min_w sum_i |G_i - T_i| ,   T_i = mean_j G_j  r_i^alpha  held constant ,   then sum w = K .

    Adam makes one step on w in each step of the network. The parameters are v with w = K softmax(v) [lib code], or w
    itself, kept positive and renormalised [paper*]. |g_i| is the length of the trunk's gradient; the paper uses the
    trunk's last layer only. (With ``gradients="features"`` it is the gradient at the features.) Whole losses are
    weighted, heads included.

    Adam's eps is 0, because another value would be an absolute scale of gradients [choice]; so neither the common scale
    of the gradients nor the unit of any loss matters. Proved: weights are positive and sum to K; where G_i = T_i the
    gradient of w is zero; with alpha = 0 all T_i are equal. Not promised: no conflict, or that T is reached in a
    number of steps (Adam's steps have a fixed size). A loss of zero counts as r_i = 0. Absent tasks keep their weight;
    L_i(0) is the first positive loss of the task.
    Cost: the Gramian (its diagonal).

    Args:
        alpha: exponent of r_i: the larger, the more weight for slow tasks; 1.5 [lib code, one of the paper's values].
        lr: Adam's step size; 0.025 is the paper's for w [paper*].
        form: the parameters: v ("softmax" [lib code]) or w itself ("plain" [paper*]).

    Raises:
        LossError: a negative loss; names the task.
    """

    needs = Needs.GRAMIAN
    paper: ClassVar[str] = "https://arxiv.org/abs/1711.02257"
    claims = frozenset(
        {
            "conic-combination",
            "permutation-equivariant",
            "positively-homogeneous",
            "resume-equivalent",
            "parameter-rotation",
        }
    )

    alpha: float = number(1.5, low=0.0)
    lr: float = number(0.025, low=0.0, log=True)
    form: str = choice("softmax", ("softmax", "plain"))

    def init(self, n_tasks: int) -> State:
        """v, or w - 1 (K,); the first losses (0: none yet) and Adam's moments."""
        return tensors({"scores": np.zeros(n_tasks), "first": np.zeros(n_tasks), **adam.fresh(n_tasks)})

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """Weights (K,) before their step, which sum to K."""
        positive(view, "gradnorm compares it with its first value: shift the loss, or use another method.")
        old, losses = arrays(state), losses_of(view)
        scores, first = take(old["scores"], view), take(old["first"], view)
        first = np.where(first == 0.0, losses, first)
        weights = self._weights(scores)
        norms = np.sqrt(np.maximum(view.gramian.diagonal().numpy(), 0.0))
        gradient = self._gradient(weights, norms, np.minimum(_paces(losses, first) ** self.alpha, 1e100))
        full = put(np.zeros_like(old["scores"]), view, gradient)
        moved, moments = adam.step(
            old["scores"], full, old[adam.KEY], lr=self.lr, eps=0.0, touched=touched(old["scores"], view)
        )
        if self.form == "plain":
            moved = put(moved, view, self._weights(take(moved, view)) - 1.0)
        new = tensors({"scores": moved, "first": put(old["first"], view, first), adam.KEY: moments})
        answer, notes = _numpy.tensor(weights), {"lengths": _numpy.tensor(weights * norms)}
        return Aggregation(weights=answer, state=new, diagnostics=notes, head_weights=answer)

    def _weights(self, scores: Array) -> Array:
        if self.form == "softmax":
            return len(scores) * softmax(scores)
        w = np.maximum(1.0 + scores, 1e-3)  # the smallest share that a task keeps [choice]
        return np.asarray(w * (len(w) / w.sum()))

    def _gradient(self, weights: Array, norms: Array, pace: Array) -> Array:
        """Of sum_i |w_i |g_i| - T_i| with respect to the scores (K,)."""
        lengths = weights * norms
        gap = lengths - lengths.mean() * pace
        gap[np.abs(gap) <= 16.0 * np.finfo(float).eps * len(gap) * (lengths + lengths.mean() * pace)] = 0.0
        slope = np.sign(gap) * np.minimum(norms, adam.LARGEST)
        if self.form == "plain":
            return np.asarray(slope)
        out: Array = weights * (slope - float(weights @ slope) / len(slope))
        return out


def _paces(losses: Array, first: Array) -> Array:
    """r (K,): each task's loss divided by its first loss, divided by the mean of these quotients; ones if all are
    zero."""
    with np.errstate(over="ignore"):
        left = np.divide(losses, first, out=np.zeros_like(losses), where=first > 0.0)
    left = np.minimum(left, 1e100)
    mean = float(left.mean())
    return np.minimum(left / mean, 1e50) if mean > 0.0 else np.ones_like(left)
