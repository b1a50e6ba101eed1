"""Scalar objectives of ``constant``, ``cosmos`` and ``pbi``, as their papers write them.

Their derivatives, taken by autograd, are what the weights must be.
"""

# ruff: noqa: D102  (the docstring of a class says what its methods compute)

from __future__ import annotations

import torch
from torch import Tensor

from mtlverify.references.objectives import Objective, objective


@objective("constant")
class Given(Objective):
    """sum_i u_i L_i with the numbers as they are (``constant``). [textbook]"""

    positive_only = False

    def value(self, losses: Tensor, number: int) -> Tensor:
        u = torch.tensor(self.plugin.weights or [1.0] * self.n_tasks, dtype=torch.float64)
        return u @ losses


@objective("cosmos")
class Proportional(Objective):
    """r'L - lambda cos(r, L) (``cosmos``). [Ruchte & Grabocka 2021, equation 5, paper*]"""

    def value(self, losses: Tensor, number: int) -> Tensor:
        r = _simplex(self)
        return r @ losses - self.plugin.lamb * (r @ losses) / r.norm() / losses.norm()

    def weights(self, losses: Tensor, number: int) -> Tensor:
        """The cosine is differentiated at the unit losses, and the chain rule brings back their size."""
        r, size = _simplex(self), float(losses.abs().max())
        leaf = (losses / size).detach().requires_grad_()
        cosine = (r @ leaf) / r.norm() / leaf.norm()
        (pull,) = torch.autograd.grad(cosine, leaf)
        return r - self.plugin.lamb * pull / size


@objective("pbi")
class Boundary(Objective):
    """d_1 + theta d_2 (``pbi``). [Zhang & Li 2007, section II, paper*]"""

    positive_only = False

    def value(self, losses: Tensor, number: int) -> Tensor:
        r = _simplex(self)
        ray = r / r.norm()
        x = losses - torch.tensor(self.plugin.ideal or [0.0] * self.n_tasks, dtype=torch.float64)
        along = ray @ x
        size = x.detach().abs().max()
        aside = (x - along * ray) / size if float(size) > 0 else x
        # On the ray itself the distance has no derivative; to within rounding that is where it is.
        if float(aside.detach().norm()) <= 4.0 * self.n_tasks * torch.finfo(torch.float64).eps:
            return along
        return along + self.plugin.theta * aside.norm() * size


def _simplex(objective: Objective) -> Tensor:
    r = torch.tensor(objective.plugin.preferences or [1.0] * objective.n_tasks, dtype=torch.float64)
    return r / r.sum()
