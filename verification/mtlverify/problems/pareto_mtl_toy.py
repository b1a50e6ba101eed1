"""``pareto-mtl-toy``: two inverted Gaussians with a concave front, on which no weighted sum reaches the middle."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mtlcore import integer
from mtlverify.problems.hull import HullProblem
from mtlverify.problems.problem import Constants, problem


@problem("pareto-mtl-toy")
@dataclass(frozen=True)
class ParetoMTLToy(HullProblem):
    """L_1 = 1 - exp(-|x - a|^2), L_2 = 1 - exp(-|x + a|^2), a = (1, ..., 1) / sqrt(P)  [official code of Pareto MTL].

    A hull problem with phi the identity: the Pareto set is the segment from -a to a. The second derivative of
    1 - exp(-r^2) along the radius is 2 exp(-r^2) (1 - 2 r^2), between -4 exp(-3/2) and 2, and 2 exp(-r^2) across it:
    smooth with constant 2, not convex.

    Args:
        n_parameters: P; 20 in the paper.
    """

    n_parameters: int = integer(20, low=1)

    @property
    def shape(self) -> tuple[int, int]:
        """K and P."""
        return 2, self.n_parameters

    @property
    def anchors(self) -> Tensor:
        """a and -a."""
        a = torch.full((self.n_parameters,), self.n_parameters**-0.5, dtype=torch.float64)
        return torch.stack([a, -a])

    def image(self, x: Tensor) -> Tensor:
        """x."""
        return x

    def pull(self, x: Tensor, cotangents: Tensor) -> Tensor:
        """Unchanged."""
        return cotangents

    def lift(self, y: Tensor) -> Tensor:
        """y."""
        return y

    def outer(self, half_squares: Tensor) -> tuple[Tensor, Tensor]:
        """1 - exp(-2 u), u half the squared distance."""
        fading = torch.exp(-2.0 * half_squares)
        return 1.0 - fading, 2.0 * fading

    def start(self, generator: torch.Generator) -> Tensor:
        """Uniform in (-1/2, 1/2)^P [official code]."""
        return torch.rand(self.n_parameters, dtype=torch.float64, generator=generator) - 0.5

    @property
    def radius(self) -> float:
        """Beyond it the gradients fade out."""
        return 2.0

    @property
    def smoothness(self) -> Constants:
        """2."""
        return 2.0, 2.0
