"""Every declaration of every problem survives the shipped check, and the check catches a false one of each sort."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import mtlcore
from mtlcore.errors import ConfigurationError
from mtlverify.problems import check_declarations
from mtlverify.problems.cagrad_toy import CAGradToy
from mtlverify.problems.curved_quadratics import CurvedQuadratics
from mtlverify.problems.matrix_factorisation import MatrixFactorisation
from mtlverify.problems.pareto_mtl_toy import ParetoMTLToy
from mtlverify.problems.pl_nonconvex import PLNonconvex
from mtlverify.problems.quadratics import Quadratics

POINTS = 15


@pytest.mark.parametrize("name", mtlcore.available("problem"))
def test_every_registered_problem_keeps_its_declarations(name):
    verdicts = list(check_declarations(mtlcore.create("problem", name), points=POINTS))
    assert len(verdicts) >= 7
    assert not [v for v in verdicts if not v.holds]


@pytest.mark.parametrize("k", [3, 20])
def test_dials_of_the_quadratics(k):
    most = math.degrees(math.acos(-1 / (k - 1)))
    problem = Quadratics(n_tasks=k, angle=0.95 * most, imbalance=100.0, conditioning=30.0)
    assert not [v for v in check_declarations(problem, points=POINTS) if not v.holds]
    rows = problem.jacobian(problem.start(torch.Generator()))
    norms = rows.norm(dim=1)
    cosines = (rows @ rows.T) / norms[:, None] / norms[None, :]
    off = cosines[~torch.eye(k, dtype=torch.bool)]
    assert torch.allclose(off, torch.full_like(off, math.cos(math.radians(0.95 * most))), atol=1e-10)
    assert float(norms.max() / norms.min()) == pytest.approx(100.0)


def test_an_angle_that_does_not_exist_is_refused():
    with pytest.raises(ConfigurationError, match=r"20 gradients cannot all be 120 degrees apart; at most 93"):
        Quadratics(n_tasks=20, angle=120.0)
    with pytest.raises(ConfigurationError, match="at least 5 are needed"):
        Quadratics(n_tasks=5, n_parameters=4, angle=90.0)


def test_the_toys_front_is_what_scalarisation_finds():
    """Independent of the derivation: minimise weighted sums with scipy from the nearest corner."""
    toy = CAGradToy()
    for t in (0.1, 0.5, 0.8):
        weights = torch.tensor([t, 1 - t], dtype=torch.float64)

        def scalarised(x, weights=weights):
            return float(weights @ toy.losses(torch.from_numpy(x)))

        found = minimize(scalarised, np.array([7 * (2 * t - 1), -8.0]), method="Nelder-Mead", tol=1e-12)
        assert np.allclose(found.x, toy.pareto_point(weights).numpy(), atol=1e-4)


def test_a_concave_front_is_invisible_to_weighted_sums():
    toy = ParetoMTLToy()
    middle = toy.pareto_point(torch.tensor([0.5, 0.5], dtype=torch.float64))
    ends = [toy.pareto_point(w) for w in torch.eye(2, dtype=torch.float64)]
    assert min(float(toy.losses(x).sum()) for x in ends) < float(toy.losses(middle).sum()) - 0.1


# --- broken twins: one false declaration each -------------------------------------------------------------------


class WrongGradient(Quadratics):
    def jacobian(self, x):
        return super().jacobian(x) * 1.001


class TooSmooth(PLNonconvex):
    @property
    def smoothness(self):
        return (0.5,) * self.n_tasks


class TooStronglyConvex(Quadratics):
    @property
    def strong_convexity(self):
        return (1.01,) * self.n_tasks


class TooPL(PLNonconvex):
    @property
    def pl(self):
        return (3.0,) * self.n_tasks


@dataclass(frozen=True)
class CalledConvex(ParetoMTLToy):
    convex = True


@dataclass(frozen=True)
class CalledNotConvex(Quadratics):
    convex = False


class TooHighOptimum(CurvedQuadratics):
    @property
    def optimal_values(self):
        return 0.1, 0.0


class TooLowOptimum(CurvedQuadratics):
    @property
    def optimal_values(self):
        return 0.0, -0.1


class TooLargeASet(CurvedQuadratics):
    """Claims the straight segment between the optima, which is not optimal when the shapes differ."""

    def point(self, t):
        centres = self._pieces()[1]
        return t * centres[0] + (1 - t) * centres[1]


class TooSmallASet(ParetoMTLToy):
    """Forgets one half of the segment."""

    def project(self, x):
        return super().project(x).clamp_min(0.0)


class BlindDistance(Quadratics):
    def distance(self, x):
        return 0.0


class DistanceOffTheFront(Quadratics):
    def distance(self, x):
        return super().distance(x) + 0.5


@dataclass(frozen=True)
class NoSaddle(MatrixFactorisation):
    """Claims that stationary means optimal, and is shown the saddle."""

    stationary_is_optimal = True

    def start(self, generator):
        return torch.zeros(self.shape[1], dtype=torch.float64)


class BrokenSymmetry(MatrixFactorisation):
    def symmetry(self, x, generator):
        return x * 1.01


@pytest.mark.parametrize(
    ("twin", "caught"),
    [
        (WrongGradient(), "gradients"),
        (TooSmooth(), "smoothness"),
        (TooStronglyConvex(), "strong convexity"),
        (TooPL(), "pl"),
        (CalledConvex(n_parameters=3), "convex"),
        (CalledNotConvex(), "not convex"),
        (TooHighOptimum(), "optimal values"),
        (TooLowOptimum(), "optimal values"),
        (TooLargeASet(), "pareto points are stationary"),
        (TooLargeASet(), "pareto points are not dominated"),
        (TooSmallASet(n_parameters=2), "other points are dominated"),
        (BlindDistance(), "distance"),
        (DistanceOffTheFront(), "distance"),
        (NoSaddle(), "stationary is optimal"),
        (BrokenSymmetry(), "symmetry"),
    ],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)
def test_a_false_declaration_is_caught(twin, caught):
    verdicts = {v.name: v for v in check_declarations(twin, points=POINTS)}
    assert not verdicts[caught].holds
    assert verdicts[caught].margin < 0
