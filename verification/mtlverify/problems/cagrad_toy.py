"""``cagrad-toy``: the two-task landscape with plateaus, ravines and a kink of the CAGrad, Nash-MTL and FAMO papers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mtlcore import integer
from mtlverify.problems.curve import CurveProblem
from mtlverify.problems.problem import problem

FLOOR = 5e-6
"""Inside the logarithm [official code]."""
STARTS = ((-8.5, 7.5), (-8.5, 5.0), (0.0, 0.0), (9.0, 9.0), (10.0, -8.0))
"""The five initial points of the papers' experiment [memory]."""


@problem("cagrad-toy")
@dataclass(frozen=True)
class CAGradToy(CurveProblem):
    """L_i = f_i c_1 + q_i c_2 [official code of FAMO]: logarithmic ravines f above, quadratics q below.

    The Pareto set, exactly. Below (x_2 < 0) L_i = q_i t with t = tanh(-x_2 / 2), and t_1 g_1 + t_2 g_2 = 0 with
    t_1 - t_2 = s gives x_1 = 7 s from the first coordinate and, from the second,

        0.02 (x_2 + 8) t(x_2) + m(x_2) t'(x_2) = 0,   m = (49 (1 - s^2) + 0.1 (x_2 + 8)^2) / 10 - 20,

    whose only root lies below -8: there, dividing by |t'|, an increasing function of -x_2 meets a decreasing one; above
    -8 both terms are positive. So the curve is near, but not on, x_2 = -8. Above (x_2 >= 0) both losses are at least
    log(5e-6) + 6 > -6.3, while s = 0 has both below -15 and every point of the curve has one below -15: nothing above
    is optimal or dominates. Other Pareto-stationary points exist above, which is what makes the toy hard; the losses
    are not smooth (log of a modulus, and a kink on x_2 = 0), so no constants are declared.

    Args:
        at: which of the five starting points.
    """

    stationary_is_optimal: ClassVar[bool] = False

    at: int = integer(4, low=0, high=4)

    @property
    def shape(self) -> tuple[int, int]:
        """K and P."""
        return 2, 2

    def losses(self, x: Tensor) -> Tensor:
        """[official code]."""
        x1, x2 = x[0], x[1]
        f1 = (0.5 * (-x1 - 7) - torch.tanh(-x2)).abs().clamp_min(FLOOR).log() + 6
        f2 = (0.5 * (-x1 + 3) + torch.tanh(-x2) + 2).abs().clamp_min(FLOOR).log() + 6
        up, down = torch.tanh(0.5 * x2).clamp_min(0.0), torch.tanh(-0.5 * x2).clamp_min(0.0)
        q1 = ((-x1 + 7) ** 2 + 0.1 * (-x2 - 8) ** 2) / 10 - 20
        q2 = ((-x1 - 7) ** 2 + 0.1 * (-x2 - 8) ** 2) / 10 - 20
        return torch.stack([f1 * up + q1 * down, f2 * up + q2 * down])

    def point(self, t: float) -> Tensor:
        """s = 2 t - 1; the root by bisection."""
        s = 2.0 * t - 1.0

        def slope(x2: float) -> float:
            mixed = (49.0 * (1.0 - s * s) + 0.1 * (x2 + 8.0) ** 2) / 10.0 - 20.0
            return 0.02 * (x2 + 8.0) * math.tanh(-x2 / 2) - 0.5 * mixed / math.cosh(x2 / 2) ** 2

        low, high = -20.0, -8.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if slope(middle) > 0 else (middle, high)
        return torch.tensor([7.0 * s, high], dtype=torch.float64)

    def start(self, generator: torch.Generator) -> Tensor:
        """A fixed point."""
        return torch.tensor(STARTS[self.at], dtype=torch.float64)

    @property
    def radius(self) -> float:
        """The papers' window."""
        return 12.0
