"""What a synthetic problem is, and what it declares."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from mtlcore.hyperparameters import Validated

Constants = tuple[float, ...]
P = TypeVar("P", bound=type)


def problem(name: str) -> Callable[[P], P]:
    """The name under which a class is registered: ``@problem("quadratics")``, read from the source
    (:mod:`mtlverify.declared`)."""

    def declare(cls: P) -> P:
        cls.registered_name = name  # type: ignore[attr-defined]
        return cls

    return declare


class Problem(Validated, abc.ABC):
    """K losses of one vector x (P,), float64, with a known Pareto set.

    Everything below is a declaration: :func:`mtlverify.problems.check_declarations` looks for a point that contradicts
    it. Constants are one per task and hold in the ball ``|x| <= radius``; None means that none is declared.
    """

    convex: ClassVar[bool] = False
    """Every loss is convex. False declares that one is not."""
    stationary_is_optimal: ClassVar[bool] = True
    """Every Pareto-stationary point is Pareto-optimal. False declares nothing."""

    # --- the losses -------------------------------------------------------------------------------------------

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, int]:
        """K and P."""

    @abc.abstractmethod
    def losses(self, x: Tensor) -> Tensor:
        """(P,) -> (K,)."""

    def jacobian(self, x: Tensor) -> Tensor:
        """(P,) -> (K, P): the gradients; by autograd unless a problem knows better."""
        with torch.enable_grad():  # a method may ask in the middle of its own, gradient-free, step
            x = x.detach().requires_grad_(True)
            losses = self.losses(x)
            return torch.stack([torch.autograd.grad(loss, x, retain_graph=True)[0] for loss in losses])

    @abc.abstractmethod
    def start(self, generator: torch.Generator) -> Tensor:
        """(P,) where a run begins."""

    # --- what is declared -------------------------------------------------------------------------------------

    @property
    @abc.abstractmethod
    def radius(self) -> float:
        """Radius of the ball in which the constants hold."""

    @property
    def smoothness(self) -> Constants | None:
        """L_i with |g_i(x) - g_i(y)| <= L_i |x - y|."""
        return None

    @property
    def strong_convexity(self) -> Constants | None:
        """mu_i with <g_i(x) - g_i(y), x - y> >= mu_i |x - y|^2."""
        return None

    @property
    def pl(self) -> Constants | None:
        """m_i with |g_i(x)|^2 / 2 >= m_i (L_i(x) - inf L_i), the Polyak-Lojasiewicz inequality."""
        return None

    @property
    @abc.abstractmethod
    def optimal_values(self) -> Constants:
        """inf L_i over all of R^P, attained at ``pareto_point`` of the i-th unit vector."""

    @abc.abstractmethod
    def pareto_point(self, weights: Tensor) -> Tensor:
        """A parametrisation of the Pareto set: (K,) in the simplex -> (P,)."""

    @abc.abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """A Pareto-optimal point at which no task is worse off than at x; x itself if x is optimal."""

    @abc.abstractmethod
    def distance(self, x: Tensor) -> float:
        """0 exactly on the Pareto set. Euclidean, unless the problem says in which coordinates."""

    def symmetry(self, x: Tensor, generator: torch.Generator) -> Tensor | None:
        """Another point with exactly the same losses, by a random element of the symmetry group; None without one."""
        return None

    def sample(self, generator: torch.Generator) -> Tensor:
        """(P,) uniformly in the ball of the constants."""
        p = self.shape[1]
        ray = torch.randn(p, dtype=torch.float64, generator=generator)
        share = torch.rand((), dtype=torch.float64, generator=generator) ** (1.0 / p)
        out: Tensor = self.radius * share * ray / ray.norm()
        return out
