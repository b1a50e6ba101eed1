"""``pl-nonconvex``: losses that obey the Polyak-Lojasiewicz inequality without being convex."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from mtlcore import integer, number
from mtlverify.problems.hull import HullProblem
from mtlverify.problems.problem import Constants, problem


@problem("pl-nonconvex")
@dataclass(frozen=True)
class PLNonconvex(HullProblem):
    """L_i(x) = |phi(x) - a_i|^2 / 2 with phi(x) = x + b sin(x) in each coordinate, 0 <= b < 1.

    phi is a bijection with derivative in [1 - b, 1 + b], so |g_i|^2 / 2 = |phi'(x) (phi(x) - a_i)|^2 / 2 >=
    (1 - b)^2 L_i: PL, and Pareto-stationary points are exactly the preimage of the hull. The second derivative is
    phi'^2 + (phi - a) phi'': at most (1 + b)^2 + b (R + b + max|a|) for |x| <= R, and negative in places if b > 1/2.

    Args:
        n_tasks: K.
        n_parameters: P.
        ripple: b.
        seed: of the anchors.
    """

    n_tasks: int = integer(3, low=2, high=20)
    n_parameters: int = integer(4, low=1)
    ripple: float = number(0.8, low=0.6, high=1.0, open_high=True)
    seed: int = integer(0, low=0)

    @property
    def shape(self) -> tuple[int, int]:
        """K and P."""
        return self.n_tasks, self.n_parameters

    @functools.cached_property
    def anchors(self) -> Tensor:
        """Standard normal."""
        g = torch.Generator().manual_seed(self.seed)
        out: Tensor = torch.randn(self.shape, dtype=torch.float64, generator=g)
        return out

    def image(self, x: Tensor) -> Tensor:
        """x + b sin(x)."""
        return x + self.ripple * x.sin()

    def pull(self, x: Tensor, cotangents: Tensor) -> Tensor:
        """The derivative is diagonal."""
        return cotangents * (1.0 + self.ripple * x.cos())

    def lift(self, y: Tensor) -> Tensor:
        """The inverse by bisection: |x - y| <= b."""
        low, high = y - self.ripple, y + self.ripple
        for _ in range(60):
            middle = (low + high) / 2
            above = self.image(middle) > y
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return (low + high) / 2

    def start(self, generator: torch.Generator) -> Tensor:
        """On the boundary of a ball around the hull, in a random direction."""
        ray = torch.randn(self.n_parameters, dtype=torch.float64, generator=generator)
        return 4.0 * ray / ray.norm()

    @property
    def radius(self) -> float:
        """Holds the start."""
        return 6.0

    @property
    def smoothness(self) -> Constants:
        """(1 + b)^2 + b (R + b + max|a|)."""
        reach = self.radius + self.ripple + self.anchors.abs().amax(dim=1)
        return tuple(((1.0 + self.ripple) ** 2 + self.ripple * reach).tolist())

    @property
    def pl(self) -> Constants:
        """(1 - b)^2."""
        return ((1.0 - self.ripple) ** 2,) * self.n_tasks
