"""What is compared, on what, and for how long."""

from __future__ import annotations

import dataclasses
from typing import Any

NAME = "fronts"
TITLE = "Fronts: models for preferences, eight explorers at equal total cost"
REFERENCE = "ls-sweep"
SEEDS = 5
METHODS = ("ls-sweep", "stch-sweep", "gradops-sweep", "pareto-mtl", "epo", "pamal", "cosmos", "phn")
SWEEPS = ("ls-sweep", "stch-sweep", "pareto-mtl", "epo")
"""Methods whose number of models is an option."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """A task or a declared problem.

    Args:
        name: registered name.
        kind: "task" (real data) or "problem" (a declared Pareto set).
        n_tasks: K.
        passes: the whole cost of a search; the single-task networks get ``passes / points`` steps each, which is what a
            model of the sweep gets.
        points: models of a sweep, and preferences at which every front is judged.
        dense: preferences of the second judgement, which a method with a continuous front has for nothing.
        rate: Adam's learning rate on a problem; a task has its own.
    """

    name: str
    kind: str
    n_tasks: int
    passes: int
    points: int
    dense: int
    rate: float = 0.05

    def options(self, method: str) -> dict[str, Any]:
        """Of the explorer, where the subject decides."""
        return {"points": self.points} if method in SWEEPS else {}


SUBJECTS = (
    Subject("curved-quadratics", "problem", 2, passes=400, points=5, dense=9),
    Subject("pareto-mtl-toy", "problem", 2, passes=400, points=5, dense=9),
    Subject("rf1", "task", 8, passes=900, points=9, dense=12),
    Subject("adult", "task", 3, passes=600, points=6, dense=9),
    Subject("multifashion-mnist", "task", 2, passes=500, points=5, dense=9),
)


def costs() -> str:
    """How many searches, and how many passes they are together."""
    runs = SEEDS * len(METHODS)
    return f"{runs * len(SUBJECTS):,} runs, {runs * sum(s.passes for s in SUBJECTS):,} passes"
