"""The problems of the convergence table, from easy to hard."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import torch

from mtlcore import create
from mtlverify.problems import Problem

STEPS = 150
NOISE = 0.1
"""Standard deviation of the noise in a gradient, relative to the length of that task's gradient at the start."""
SAFETY = 1.25
"""The curvature on the way may be a little larger than between the points where it was measured."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A registered problem with hyper-parameters.

    Args:
        label: what the table calls it.
        problem: registered name.
        options: its dials.
    """

    label: str
    problem: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def make(self) -> Problem:
        """The problem."""
        problem: Problem = create("problem", self.problem, **self.options)
        return problem


CASES: tuple[Case, ...] = (
    Case("quadratics, 2 tasks at 150 degrees", "quadratics", {"angle": 150.0}),
    Case(
        "quadratics, 5 tasks, norms 1:10, condition 10", "quadratics",
        {"n_tasks": 5, "angle": 95.0, "imbalance": 10.0, "conditioning": 10.0},
    ),
    Case("quadratics, 20 tasks", "quadratics", {"n_tasks": 20, "angle": 92.0, "conditioning": 3.0}),
    Case("curved-quadratics", "curved-quadratics"),
    Case("pl-nonconvex", "pl-nonconvex"),
    Case("pareto-mtl-toy", "pareto-mtl-toy"),
    Case("matrix-factorisation", "matrix-factorisation"),
    Case("deep-linear", "deep-linear"),
    Case("cagrad-toy", "cagrad-toy"),
)  # fmt: skip


def curvature(problem: Problem) -> float:
    """The largest |g_i(x) - g_i(y)| / |x - y| between the start, the optima, the middle of the front and the points
    half-way: the constant of the declaration, where it is tight, and less where that is a worst case far away."""
    k = problem.shape[0]
    weights = [*torch.eye(k, dtype=torch.float64), torch.full((k,), 1.0 / k, dtype=torch.float64)]
    points = [problem.start(torch.Generator().manual_seed(0)), *(problem.pareto_point(w) for w in weights)]
    points += [(points[0] + x) / 2 for x in points[1:]]
    rows = [problem.jacobian(x) for x in points]
    seen = [
        float((rows[i] - rows[j]).norm(dim=1).max() / (points[i] - points[j]).norm())
        for i, j in itertools.combinations(range(len(points)), 2)
        if not torch.equal(points[i], points[j])
    ]
    return SAFETY * max(seen)
