"""``curved-quadratics``: two quadratics of different shape, so that the Pareto set bends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mtlcore import number
from mtlverify.problems.curve import CurveProblem
from mtlverify.problems.problem import Constants, problem


@problem("curved-quadratics")
@dataclass(frozen=True)
class CurvedQuadratics(CurveProblem):
    """L_i(x) = (x - c_i)^T H_i (x - c_i) / 2 in two parameters, c = (-1, 0), (1, 0).

    H_1 = diag(1, e), H_2 has the same eigenvalues with axes turned by 60 degrees. Both are strongly convex, so every
    Pareto-optimal point minimises t L_1 + (1 - t) L_2 for some t, which gives the curve in closed form.

    Args:
        eccentricity: 1 / e.
    """

    convex: ClassVar[bool] = True

    eccentricity: float = number(8.0, low=1.0)

    @property
    def shape(self) -> tuple[int, int]:
        """K and P."""
        return 2, 2

    def _pieces(self) -> tuple[Tensor, Tensor]:
        half, root = 0.5, 0.75**0.5
        flat = torch.diag(torch.tensor([1.0, 1.0 / self.eccentricity], dtype=torch.float64))
        turn = torch.tensor([[half, -root], [root, half]], dtype=torch.float64)
        centres = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
        return torch.stack([flat, turn @ flat @ turn.T]), centres

    def losses(self, x: Tensor) -> Tensor:
        """The two quadratic forms."""
        hessians, centres = self._pieces()
        gaps = x - centres
        return 0.5 * torch.einsum("ki,kij,kj->k", gaps, hessians, gaps)

    def jacobian(self, x: Tensor) -> Tensor:
        """H_i (x - c_i)."""
        hessians, centres = self._pieces()
        return torch.einsum("kij,kj->ki", hessians, x - centres)

    def point(self, t: float) -> Tensor:
        """(t H_1 + (1 - t) H_2)^-1 (t H_1 c_1 + (1 - t) H_2 c_2)."""
        hessians, centres = self._pieces()
        weights = torch.tensor([t, 1.0 - t], dtype=torch.float64)
        mixed = torch.einsum("k,kij->ij", weights, hessians)
        out: Tensor = torch.linalg.solve(mixed, torch.einsum("k,kij,kj->i", weights, hessians, centres))
        return out

    def start(self, generator: torch.Generator) -> Tensor:
        """Away from the curve."""
        return torch.tensor([0.5, 3.0], dtype=torch.float64)

    @property
    def radius(self) -> float:
        """Any."""
        return 4.0

    @property
    def smoothness(self) -> Constants:
        """The largest eigenvalue."""
        return 1.0, 1.0

    @property
    def strong_convexity(self) -> Constants:
        """The smallest."""
        return 1.0 / self.eccentricity, 1.0 / self.eccentricity

    @property
    def pl(self) -> Constants:
        """Follows from strong convexity."""
        return self.strong_convexity
