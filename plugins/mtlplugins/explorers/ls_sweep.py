"""``ls-sweep``: linear scalarisation, once per preference."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor

from mtlcore import Aggregator, create
from mtlplugins.explorers.sweep import Sweep


@dataclasses.dataclass(frozen=True)
class LSSweep(Sweep):
    """min sum_i p_i L_i for every preference p of a grid: the baseline for other explorers at equal cost. [textbook]

    Proved for exact minima: a larger p_i never gives a larger L_i, and a minimum with all p_i > 0 is Pareto-optimal.
    Known: points of a part of the front that is not convex are never found.

    Args:
        points: number of models; at least one per task.
    """

    claims: ClassVar[frozenset[str]] = frozenset({"recovers-single-task", "monotone-edge", "no-dominated-pair"})

    def method(self, preferences: Tensor, index: int, steps: int) -> Aggregator:
        """``ls`` with the preference as weights."""
        return create("aggregator", "ls", weights=tuple(preferences[index].tolist()))
