"""``ls-sweep``: linear scalarisation, once per preference."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor

from mtlcore import Aggregator, create
from mtlplugins.explorers.sweep import Sweep


@dataclasses.dataclass(frozen=True)
class LSSweep(Sweep):
    """min sum_i p_i L_i for every preference p of a grid: the baseline that others must beat at equal cost. [textbook]

    Proved: at an exact minimum, a larger p_i never comes with a larger L_i, and a point with all p_i > 0 is
    Pareto-optimal. Known: where the front is not convex its middle is never reached.

    Args:
        points: how many models; at least one per task.
    """

    claims: ClassVar[frozenset[str]] = frozenset({"recovers-single-task", "monotone-edge", "no-dominated-pair"})

    def method(self, preferences: Tensor, index: int, steps: int) -> Aggregator:
        """``ls`` with the preference as weights."""
        return create("aggregator", "ls", weights=tuple(preferences[index].tolist()))
