"""``matrix-factorisation``: tasks pull a product of two matrices, which a change of basis in between leaves alone."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mtlcore import integer
from mtlverify.problems.hull import HullProblem
from mtlverify.problems.problem import Constants, problem


@problem("matrix-factorisation")
@dataclass(frozen=True)
class MatrixFactorisation(HullProblem):
    """L_i(U, V) = |U V - M_i|^2 / 2 with square U, V: a hull problem with phi(U, V) = U V, which is onto.

    Exact symmetries: (U A, A^-1 V) for every invertible A. U = V = 0 is Pareto-stationary and not optimal. With
    |U|^2 + |V|^2 <= R^2, the second derivative along (E, F) is |E V + U F|^2 + 2 <U V - M, E F> <=
    (R^2 + R^2 / 2 + |M|) (|E|^2 + |F|^2).

    Args:
        n_tasks: K.
        size: rows of each matrix.
        seed: of the targets M_i.
    """

    stationary_is_optimal: ClassVar[bool] = False

    n_tasks: int = integer(2, low=2, high=20)
    size: int = integer(3, low=2)
    seed: int = integer(0, low=0)

    @property
    def shape(self) -> tuple[int, int]:
        """K and P."""
        return self.n_tasks, 2 * self.size**2

    def _factors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        u, v = x.view(2, self.size, self.size)
        return u, v

    @functools.cached_property
    def anchors(self) -> Tensor:
        """The targets, flattened."""
        g = torch.Generator().manual_seed(self.seed)
        return torch.randn(self.n_tasks, self.size**2, dtype=torch.float64, generator=g)

    def image(self, x: Tensor) -> Tensor:
        """U V."""
        u, v = self._factors(x)
        return (u @ v).flatten()

    def pull(self, x: Tensor, cotangents: Tensor) -> Tensor:
        """(E V^T, U^T E)."""
        u, v = self._factors(x)
        e = cotangents.view(-1, self.size, self.size)
        return torch.cat([(e @ v.T).flatten(1), (u.T @ e).flatten(1)], dim=1)

    def lift(self, y: Tensor) -> Tensor:
        """Balanced: both factors have the square roots of the singular values."""
        left, values, right = torch.linalg.svd(y.view(self.size, self.size))
        return torch.cat([(left * values.sqrt()).flatten(), (values.sqrt()[:, None] * right).flatten()])

    def symmetry(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """(U A, A^-1 V) with A near the identity."""
        u, v = self._factors(x)
        noise = torch.randn(self.size, self.size, dtype=torch.float64, generator=generator)
        a = torch.matrix_exp(0.3 * noise)
        return torch.cat([(u @ a).flatten(), torch.linalg.solve(a, v).flatten()])

    def start(self, generator: torch.Generator) -> Tensor:
        """Small and random."""
        return 0.5 * torch.randn(self.shape[1], dtype=torch.float64, generator=generator)

    @property
    def radius(self) -> float:
        """Holds the balanced optima."""
        return 5.0

    @property
    def smoothness(self) -> Constants:
        """3 R^2 / 2 + |M_i|."""
        return tuple((1.5 * self.radius**2 + self.anchors.norm(dim=1)).tolist())
