"""``stch-sweep``: smooth Tchebycheff scalarisation, once per preference (Lin et al. 2024)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor

from mtlcore import Aggregator, create, number
from mtlplugins.explorers.sweep import Sweep


@dataclasses.dataclass(frozen=True)
class STCHSweep(Sweep):
    """min mu log sum_i exp(p_i L_i / mu) for every preference p of a grid. [paper]

    Known: if mu is small enough, every Pareto-optimal point is the minimum for some preference, also if the front is
    not convex [paper*]. The ideal point is zero [choice].

    Args:
        points: number of models; at least one per task.
        mu: width of the smoothing, in the unit of the losses. A smaller value is nearer to the maximum, and training is
            slower; 0.1 [choice].
        floor: smallest preference of a task, because the method needs positive ones [choice].
    """

    paper = "https://arxiv.org/abs/2402.19078"

    claims: ClassVar[frozenset[str]] = frozenset({"recovers-single-task", "monotone-edge", "no-dominated-pair"})

    mu: float = number(0.1, low=0.0, open_low=True, log=True)
    floor: float = number(1e-3, low=0.0, high=0.5, open_low=True)

    def method(self, preferences: Tensor, index: int, steps: int) -> Aggregator:
        """``stch`` in its plain form."""
        row = preferences[index].clamp_min(self.floor)
        return create("aggregator", "stch", form="plain", mu=self.mu, preferences=tuple((row / row.sum()).tolist()))
