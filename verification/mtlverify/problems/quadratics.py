"""``quadratics``: convex quadratics with dials for conflict angle, norm imbalance and conditioning."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mtlcore import integer, number
from mtlcore.errors import ConfigurationError
from mtlverify.problems.hull import HullProblem
from mtlverify.problems.problem import Constants, problem


@problem("quadratics")
@dataclass(frozen=True)
class Quadratics(HullProblem):
    """L_i(x) = s_i / 2 (x - c_i)^T H (x - c_i) with one Hessian shape H: the Pareto set is the hull of the c_i.

    A hull problem with phi(x) = H^(1/2) x. The dials are exact at the start x = 0: the gradients -s_i H c_i all make
    the same angle with each other, and their norms s_i rise geometrically from 1 to ``imbalance``. H has eigenvalues
    from 1 / conditioning to 1 in a random basis.

    Args:
        n_tasks: K.
        n_parameters: P >= K; K + 2 if None.
        angle: between any two gradients at the start, in degrees; K vectors allow at most arccos(-1 / (K - 1)).
        imbalance: largest gradient norm over the smallest at the start.
        conditioning: largest eigenvalue of H over the smallest.
        seed: of the random bases.

    Raises:
        ConfigurationError: fewer parameters than tasks, or an angle that K vectors cannot have.
    """

    convex: ClassVar[bool] = True

    n_tasks: int = integer(2, low=2, high=20)
    n_parameters: int | None = integer(None, low=2)
    angle: float = number(120.0, low=0.0, high=180.0)
    imbalance: float = number(1.0, low=1.0)
    conditioning: float = number(1.0, low=1.0)
    seed: int = integer(0, low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        k, p = self.shape
        if p < k:
            raise ConfigurationError(f"Quadratics(n_parameters={p}) cannot hold {k} tasks: at least {k} are needed.")
        most = math.degrees(math.acos(-1.0 / (k - 1)))
        if self.angle > most + 1e-9:
            raise ConfigurationError(
                f"Quadratics(angle={self.angle:g}): {k} gradients cannot all be {self.angle:g} degrees apart; "
                f"at most {most:.4g}."
            )

    @property
    def shape(self) -> tuple[int, int]:
        """K and P."""
        return self.n_tasks, self.n_tasks + 2 if self.n_parameters is None else self.n_parameters

    @functools.cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues and eigenvectors of H."""
        p = self.shape[1]
        g = torch.Generator().manual_seed(self.seed)
        basis = torch.linalg.qr(torch.randn(p, p, dtype=torch.float64, generator=g))[0]
        return torch.logspace(-math.log10(self.conditioning), 0.0, p, dtype=torch.float64), basis

    def _power(self, exponent: float) -> Tensor:
        values, basis = self._spectrum
        out: Tensor = (basis * values**exponent) @ basis.T
        return out

    @functools.cached_property
    def _root(self) -> Tensor:
        return self._power(0.5)

    @functools.cached_property
    def scales(self) -> Tensor:
        """(K,) s_i."""
        return torch.logspace(0.0, math.log10(self.imbalance), self.n_tasks, dtype=torch.float64)

    @functools.cached_property
    def anchors(self) -> Tensor:
        """H^(1/2) c_i, where -H c_i = -u_i are unit vectors with the Gramian cos(angle) off the diagonal."""
        k, p = self.shape
        cosine = math.cos(math.radians(self.angle))
        values, vectors = torch.linalg.eigh(
            (1.0 - cosine) * torch.eye(k, dtype=torch.float64) + cosine * torch.ones(k, k, dtype=torch.float64)
        )
        g = torch.Generator().manual_seed(self.seed + 1)
        frame = torch.linalg.qr(torch.randn(p, k, dtype=torch.float64, generator=g))[0].T
        units = (vectors * values.clamp_min(0.0).sqrt()) @ vectors.T @ frame
        return units @ self._power(-0.5)

    def image(self, x: Tensor) -> Tensor:
        """H^(1/2) x."""
        return self._root @ x

    def pull(self, x: Tensor, cotangents: Tensor) -> Tensor:
        """Times H^(1/2)."""
        return cotangents @ self._root

    def lift(self, y: Tensor) -> Tensor:
        """H^(-1/2) y."""
        return self._power(-0.5) @ y

    def outer(self, half_squares: Tensor) -> tuple[Tensor, Tensor]:
        """s_i times."""
        return self.scales * half_squares, self.scales

    def start(self, generator: torch.Generator) -> Tensor:
        """The origin, where the dials are exact."""
        return torch.zeros(self.shape[1], dtype=torch.float64)

    @property
    def radius(self) -> float:
        """Any ball will do; this one holds the Pareto set."""
        return 2.0 * self.conditioning

    @property
    def smoothness(self) -> Constants:
        """s_i times the largest eigenvalue, 1."""
        return tuple(self.scales.tolist())

    @property
    def strong_convexity(self) -> Constants:
        """s_i times the smallest eigenvalue."""
        return tuple((self.scales / self.conditioning).tolist())

    @property
    def pl(self) -> Constants:
        """Strong convexity implies it with the same constant."""
        return self.strong_convexity
