"""``deep-linear``: a linear network of three layers with one target map per task."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mtlcore import integer
from mtlverify.problems.hull import HullProblem
from mtlverify.problems.problem import Constants, problem


@problem("deep-linear")
@dataclass(frozen=True)
class DeepLinear(HullProblem):
    """L_i(W) = |W_3 W_2 W_1 - M_i|^2 / 2 with square layers: a hull problem, because the product is onto.

    Exact symmetries: (W_3 B^-1, B W_2 A^-1, A W_1) for invertible A, B. W = 0 is Pareto-stationary and not optimal.
    For |W|^2 <= R^2 the second derivative is at most R^4 / 3 + 2 R ((R / sqrt 3)^3 + |M|): the first term bounds
    sum_l prod_{j != l} |W_j|^2, the second the curvature of the product times the residual.

    Args:
        n_tasks: K.
        size: width.
        seed: of the targets M_i.
    """

    stationary_is_optimal: ClassVar[bool] = False

    n_tasks: int = integer(2, low=2, high=20)
    size: int = integer(2, low=2)
    seed: int = integer(0, low=0)

    @property
    def shape(self) -> tuple[int, int]:
        """K and P."""
        return self.n_tasks, 3 * self.size**2

    def _layers(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first, second, third = x.view(3, self.size, self.size)
        return first, second, third

    @functools.cached_property
    def anchors(self) -> Tensor:
        """The targets, flattened."""
        g = torch.Generator().manual_seed(self.seed)
        return torch.randn(self.n_tasks, self.size**2, dtype=torch.float64, generator=g)

    def image(self, x: Tensor) -> Tensor:
        """W_3 W_2 W_1."""
        first, second, third = self._layers(x)
        return (third @ second @ first).flatten()

    def pull(self, x: Tensor, cotangents: Tensor) -> Tensor:
        """Backpropagation, written out."""
        first, second, third = self._layers(x)
        e = cotangents.view(-1, self.size, self.size)
        by_first = (third @ second).T @ e
        by_second = third.T @ e @ first.T
        by_third = e @ (second @ first).T
        return torch.cat([by_first.flatten(1), by_second.flatten(1), by_third.flatten(1)], dim=1)

    def lift(self, y: Tensor) -> Tensor:
        """Balanced: each layer has the cube roots of the singular values."""
        left, values, right = torch.linalg.svd(y.view(self.size, self.size))
        root = values ** (1.0 / 3.0)
        return torch.cat([(root[:, None] * right).flatten(), root.diag().flatten(), (left * root).flatten()])

    def symmetry(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Two changes of basis near the identity."""
        first, second, third = self._layers(x)
        a, b = (
            torch.matrix_exp(0.3 * torch.randn(self.size, self.size, dtype=torch.float64, generator=generator))
            for _ in range(2)
        )
        moved = (a @ first, b @ second @ torch.linalg.inv(a), third @ torch.linalg.inv(b))
        return torch.cat([m.flatten() for m in moved])

    def start(self, generator: torch.Generator) -> Tensor:
        """Near the identity: a start at 0 would be a saddle."""
        noise = torch.randn(3, self.size, self.size, dtype=torch.float64, generator=generator)
        return (torch.eye(self.size, dtype=torch.float64) + 0.3 * noise).flatten()

    @property
    def radius(self) -> float:
        """Holds the balanced optima."""
        return 4.0

    @property
    def smoothness(self) -> Constants:
        """R^4 / 3 + 2 R ((R / sqrt 3)^3 + |M_i|)."""
        r = self.radius
        return tuple((r**4 / 3 + 2 * r * ((r / 3**0.5) ** 3 + self.anchors.norm(dim=1))).tolist())
