"""``krum``: the gradients that lie closest to the others, for tasks some of which may be broken."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from mtlcore import choice, integer
from mtlcore.contracts import Aggregation, Aggregator, Needs, State, StepView
from mtlplugins.aggregators import _numpy
from mtlplugins.arrays import Array


@dataclasses.dataclass(frozen=True)
class Krum(Aggregator):
    """Blanchard et al. 2017 [paper*; lib code: TorchJD]: with f gradients that may be anything,

        score_i = sum of |g_i - g_j|^2 over the K - f - 2 nearest j != i ;
        d = mean of the ``selected`` gradients with the smallest scores  (1: Krum, more: Multi-Krum).

    TorchJD sums distances instead of their squares; an option. Made for federated learning, where the g_i estimate one
    vector; it ignores tasks on purpose, and is here as a robust baseline. Gradients that tie at the last place share it
    equally [choice], so that no task is special by its position. With fewer than f + 3 tasks one neighbour counts, and
    all are selected if there are not more [choice; TorchJD refuses].

    Proved: weights are on the simplex; d is in the convex hull. Not promised: no conflict, or continuity.
    Cost: the Gramian and a sort.

    Args:
        broken: f.
        selected: how many are averaged.
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
        """1 / selected for those chosen, (K,)."""
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
        notes = {"scores": _numpy.tensor(scores * size)}
        return Aggregation(weights=_numpy.tensor(weights), state=state, diagnostics=notes)


def _smallest(scores: Array, count: int) -> Array:
    """(K,) on the simplex: equal shares for the ``count`` smallest; those that tie with the last of them share what is
    left. A tie is a difference that the rounding of the Gramian explains."""
    last = np.sort(scores)[count - 1]
    noise = 64.0 * np.finfo(float).eps * len(scores) * max(float(scores.max()), 1.0)
    below, tied = scores < last - noise, np.abs(scores - last) <= noise
    out = below / count + tied * ((count - int(below.sum())) / count / int(tied.sum()))
    return np.asarray(out)
