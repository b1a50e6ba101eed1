"""Two-task problems whose Pareto set is a curve."""

from __future__ import annotations

import abc
from collections.abc import Callable

import torch
from torch import Tensor

from mtlverify.problems.problem import Constants, Problem

GRID = 257


class CurveProblem(Problem):
    """K = 2 with the Pareto set {point(t): 0 <= t <= 1}; t = 1 is the optimum of the first task, t = 0 of the second."""

    @abc.abstractmethod
    def point(self, t: float) -> Tensor:
        """[0, 1] -> (P,)."""

    @property
    def optimal_values(self) -> Constants:
        """The losses at the two ends."""
        return float(self.losses(self.point(1.0))[0]), float(self.losses(self.point(0.0))[1])

    def pareto_point(self, weights: Tensor) -> Tensor:
        """point(w_1)."""
        return self.point(float(weights[0]))

    def project(self, x: Tensor) -> Tensor:
        """The point of the curve that improves the worse-served task most; on the curve: x."""
        here = self.losses(x)
        return self.point(_minimise(lambda t: float((self.losses(self.point(t)) - here).max())))

    def distance(self, x: Tensor) -> float:
        """Euclidean."""
        t = _minimise(lambda t: float((self.point(t) - x).norm()))
        return float((self.point(t) - x).norm())


def _minimise(f: Callable[[float], float]) -> float:
    """The best cell of a grid, then golden sections in it: the curve is smooth, so the cell holds one minimum."""
    values = torch.tensor([f(i / (GRID - 1)) for i in range(GRID)])
    best = int(values.argmin())
    low, high = max(best - 1, 0) / (GRID - 1), min(best + 1, GRID - 1) / (GRID - 1)
    ratio = (5**0.5 - 1) / 2
    for _ in range(60):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if f(left) <= f(right):
            high = right
        else:
            low = left
    return min((0.0, 1.0, 0.5 * (low + high)), key=f)
