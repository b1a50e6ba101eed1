"""Two-task problems whose Pareto set is a curve."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from mtlverify.problems.problem import Constants, Problem

GRID = 257
SECTIONS = 45
"""Golden sections: 0.618^45 of a cell is below 1e-11."""


class CurveProblem(Problem):
    """K = 2, Pareto set {point(t): 0 <= t <= 1}; t = 1 is the optimum of the first task, t = 0 of the second."""

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

    @functools.cached_property
    def _grid(self) -> tuple[Tensor, Tensor]:
        """Points of the curve at even t, and their losses."""
        points = torch.stack([self.point(i / (GRID - 1)) for i in range(GRID)])
        return points, torch.stack([self.losses(x) for x in points])

    def project(self, x: Tensor) -> Tensor:
        """The point of the curve that improves the worse-served task most; on the curve: x."""
        here = self.losses(x)
        values = (self._grid[1] - here).amax(dim=1)
        return self.point(_minimise(values, lambda t: float((self.losses(self.point(t)) - here).max())))

    def distance(self, x: Tensor) -> float:
        """Euclidean."""
        values = (self._grid[0] - x).norm(dim=1)
        t = _minimise(values, lambda t: float((self.point(t) - x).norm()))
        return float((self.point(t) - x).norm())


def _minimise(values: Tensor, f: Callable[[float], float]) -> float:
    """The best cell of the grid, then golden sections in it: the curve is smooth, so the cell holds one minimum."""
    best = int(values.argmin())
    low, high = max(best - 1, 0) / (GRID - 1), min(best + 1, GRID - 1) / (GRID - 1)
    ratio = (5**0.5 - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = f(left), f(right)
    for _ in range(SECTIONS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = f(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = f(right)
    return min((0.0, 1.0, 0.5 * (low + high)), key=f)
