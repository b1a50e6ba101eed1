"""``krum``: the mean of the gradients that are closest to the others; robust against some broken tasks."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np

from mtlcore import choice, integer
from mtlcore.contracts import Aggregation, Aggregator, Needs, State, StepView
from mtlplugins.aggregators import _numpy
from mtlplugins.arrays import Array


@dataclasses.dataclass(frozen=True)
class Krum(Aggregator):
    """Blanchard et al. 2017 [paper*; lib code: TorchJD]: if f gradients may be arbitrary,

        score_i = sum of |g_i - g_j|^2 over the K - f - 2 nearest j != i ;
        d = mean of the ``selected`` gradients with the smallest scores  (1: Krum, more: Multi-Krum).

    TorchJD sums distances instead of their squares (option ``distance``). The method is made for federated learning,
    where all g_i estimate one vector. It ignores some tasks on purpose; here it is a robust baseline. Gradients that
    tie for the last place share it equally [choice], so that the order of the tasks does not matter. With fewer than
    f + 3 tasks one neighbour counts; with fewer than ``selected`` tasks all are selected [choice; TorchJD refuses].

    Proved: weights are on the simplex, so d is in the convex hull. Not promised: no conflict, or continuity.
    Cost: the Gramian and a sort.

    Args:
        broken: f, the number of gradients that may be arbitrary.
        selected: the number of gradients that are averaged.
        distance: "squared" [paper*] or "plain" [lib code].
    """

    needs = Needs.GRAMIAN
    paper: ClassVar[str] = "https://arxiv.org/abs/1703.02757"
    claims = frozenset(
        {
            "permutation-equivariant",
            "positively-homogeneous",
            "conic-combination",
            "simplex-weights",
            "resume-equivalent",
            "parameter-rotation",
        }
    )

    broken: int = integer(1, low=0)
    selected: int = integer(1, low=1)
    distance: str = choice("squared", ("squared", "plain"))

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """Weights (K,): 1 / selected for the selected tasks."""
        gram, k = view.gramian.numpy(), view.n_tasks
        size = float(gram.diagonal().max())
        scores = np.zeros(k)
        if k > 1 and size > 0.0:
            gram = gram / size
            squares = gram.diagonal()[:, None] + gram.diagonal()[None, :] - 2.0 * gram
            apart = np.maximum(squares, 0.0) if self.distance == "squared" else np.sqrt(np.maximum(squares, 0.0))
            np.fill_diagonal(apart, np.inf)
            neighbours = min(max(k - self.broken - 2, 1), k - 1)
            scores = np.sort(apart, axis=1)[:, :neighbours].sum(axis=1)
        weights = _smallest(scores, min(self.selected, k))
        notes = {"scores": _numpy.tensor(scores * (size if self.distance == "squared" else math.sqrt(size)))}
        return Aggregation(weights=_numpy.tensor(weights), state=state, diagnostics=notes)


def _smallest(scores: Array, count: int) -> Array:
    """(K,) on the simplex: equal weights for the ``count`` smallest scores; scores that tie with the last of these
    share the rest. Scores tie if they differ by no more than the rounding error of the Gramian."""
    last = np.sort(scores)[count - 1]
    noise = 64.0 * np.finfo(float).eps * len(scores) * max(float(scores.max()), 1.0)
    below, tied = scores < last - noise, np.abs(scores - last) <= noise
    out = below / count + tied * ((count - int(below.sum())) / count / int(tied.sum()))
    return np.asarray(out)
