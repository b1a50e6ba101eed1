"""The shipped check: every declaration of a problem is attacked with points that could contradict it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from mtlverify.problems.problem import Problem
from mtlverify.references.min_norm import min_norm

FINITE_DIFFERENCE = 1e-6
"""Agreement asked of a gradient and central differences with step h = eps^(1/3): the error is about h^2 = 4e-11."""
ROUNDING = 1e-9
"""What rounding may add to an inequality between sums of a few dozen float64 numbers."""
STATIONARY = 1e-5
"""A Pareto point, computed by bisection or an eigenvalue problem, has a min-norm below this, relative to the largest
gradient nearby; a point that is no Pareto point is chosen far enough away to have more."""


@dataclasses.dataclass(frozen=True)
class Declaration:
    """The verdict on one declaration.

    Args:
        name: what was declared.
        holds: no point contradicted it.
        margin: how far the worst point was from contradicting it (negative: it did), relative.
        points: how many were tried.
        detail: the numbers in words.
    """

    name: str
    holds: bool
    margin: float
    points: int
    detail: str


def check_declarations(problem: Problem, points: int = 40, seed: int = 0) -> Iterator[Declaration]:
    """Attack every declaration of ``problem`` with ``points`` random points; one verdict per declaration.

    Sampling cannot prove a bound; it refutes a wrong one with near certainty if the bound is broken on a few percent
    of the ball. Where a constant is declared, the detail says how tight it was.
    """
    attack = _Attack(problem, torch.Generator().manual_seed(seed), points)
    yield attack.gradients()
    if problem.smoothness is not None:
        yield attack.smoothness(problem.smoothness)
    if problem.strong_convexity is not None:
        yield attack.strong_convexity(problem.strong_convexity)
    if problem.pl is not None:
        yield attack.pl(problem.pl)
    yield attack.convexity()
    yield attack.optimal_values()
    yield attack.pareto_points_are_stationary()
    yield attack.pareto_points_are_not_dominated()
    yield attack.other_points_are_dominated()
    yield attack.distance()
    if problem.stationary_is_optimal:
        yield attack.stationary_is_optimal()
    if problem.symmetry(problem.sample(attack.generator), attack.generator) is not None:
        yield attack.symmetry()


class _Attack:
    """The samples, drawn once and shared."""

    def __init__(self, problem: Problem, generator: torch.Generator, points: int) -> None:
        self.problem, self.generator, self.n = problem, generator, points
        self.xs = [problem.start(generator), *(problem.sample(generator) for _ in range(points - 1))]
        self.losses = torch.stack([problem.losses(x) for x in self.xs])
        self.jacobians = torch.stack([problem.jacobian(x) for x in self.xs])
        k = problem.shape[0]
        inside = torch.distributions.Dirichlet(torch.full((k,), 0.7, dtype=torch.float64))
        with torch.random.fork_rng():
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            mixed = [inside.sample() for _ in range(points)]
        self.weights = [*torch.eye(k, dtype=torch.float64), *mixed]
        self.front = [problem.pareto_point(w) for w in self.weights]
        self.front_losses = torch.stack([problem.losses(x) for x in self.front])
        self.spread = self.losses.abs().amax(dim=0).clamp_min(1e-300)

    def _verdict(self, name: str, margins: Tensor | list[float], detail: str) -> Declaration:
        margins = torch.as_tensor(margins, dtype=torch.float64)
        worst = float("nan") if bool(margins.isnan().any()) else float(margins.min())
        return Declaration(name, worst >= 0, worst, len(margins), detail)

    def _pairs(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Each point with a far one and with a near one: a bound on differences can break at either distance."""
        p = self.problem.shape[1]
        for i, x in enumerate(self.xs):
            yield i, x, self.xs[(i + 1) % self.n]
            ray = torch.randn(p, dtype=torch.float64, generator=self.generator)
            near = x + 1e-4 * self.problem.radius * ray / ray.norm()
            yield i, x, near * min(1.0, self.problem.radius / float(near.norm()))

    def gradients(self) -> Declaration:
        """Directional central differences in three random directions per point."""
        p = self.problem.shape[1]
        margins = []
        for x, rows in zip(self.xs, self.jacobians, strict=True):
            for _ in range(3):
                ray = torch.randn(p, dtype=torch.float64, generator=self.generator)
                ray = ray / ray.norm()
                step = torch.finfo(torch.float64).eps ** (1 / 3) * max(1.0, float(x.norm()))
                change = (self.problem.losses(x + step * ray) - self.problem.losses(x - step * ray)) / (2 * step)
                # Relative to the gradient, and to what cancellation leaves of the difference of two losses.
                allowed = FINITE_DIFFERENCE * (1e-3 + rows.norm(dim=1)) + 1e-10 * self.problem.losses(x).abs() / step
                margins.append(float((1.0 - (change - rows @ ray).abs() / allowed).min()))
        # A kink (measure zero) may be straddled once; a wrong formula is wrong everywhere.
        kept = sorted(margins)[len(margins) // 20 :]
        return self._verdict("gradients", kept, "central differences along random directions")

    def smoothness(self, constants: tuple[float, ...]) -> Declaration:
        """|g_i(x) - g_i(y)| <= L_i |x - y|."""
        declared = torch.tensor(constants, dtype=torch.float64)
        ratios = torch.stack(
            [
                (self.problem.jacobian(y) - self.jacobians[i]).norm(dim=1) / (x - y).norm() / declared
                for i, x, y in self._pairs()
                if float((x - y).norm()) > 0
            ]
        )
        tight = float(ratios.max())
        return self._verdict("smoothness", 1.0 + ROUNDING * 1e3 - ratios.amax(dim=1), f"{tight:.0%} of it was seen")

    def strong_convexity(self, constants: tuple[float, ...]) -> Declaration:
        """<g_i(x) - g_i(y), x - y> >= mu_i |x - y|^2."""
        declared = torch.tensor(constants, dtype=torch.float64)
        ratios = torch.stack(
            [
                ((self.problem.jacobian(y) - self.jacobians[i]) @ (y - x)) / (x - y).square().sum() / declared
                for i, x, y in self._pairs()
                if float((x - y).norm()) > 0
            ]
        )
        least = float(ratios.min())
        return self._verdict(
            "strong convexity", ratios.amin(dim=1) - 1.0 + 1e3 * ROUNDING, f"{least:.3g} times it seen"
        )

    def pl(self, constants: tuple[float, ...]) -> Declaration:
        """|g_i|^2 / 2 >= m_i (L_i - inf L_i)."""
        above = self.losses - torch.tensor(self.problem.optimal_values, dtype=torch.float64)
        half_squares = 0.5 * self.jacobians.square().sum(dim=2)
        ratios = half_squares / (torch.tensor(constants, dtype=torch.float64) * above).clamp_min(1e-300)
        return self._verdict("pl", ratios.amin(dim=1) - 1.0 + ROUNDING, f"at least {float(ratios.min()):.3g} times it")

    def convexity(self) -> Declaration:
        """L_i((x + y) / 2) <= (L_i(x) + L_i(y)) / 2; if "not convex" is declared, a witness must turn up."""
        if self.problem.convex:
            slack = [self._midpoint(x, y) for _, x, y in self._pairs()]
            return self._verdict("convex", torch.tensor(slack) + ROUNDING, "midpoints lie below chords")
        # Curvature hides in high dimensions: look along the gradients, and near the origin, where saddles are.
        slack = []
        for x in self.xs:
            for centre in (x, 0.1 * x):
                for row in self.problem.jacobian(centre):
                    ray = 0.1 * self.problem.radius * row / row.norm().clamp_min(1e-300)
                    slack.append(self._midpoint(centre + ray, centre - ray))
        worst = min(slack)
        return self._verdict("not convex", [-worst - 1e3 * ROUNDING], f"a midpoint lies {-worst:.2g} above its chord")

    def _midpoint(self, x: Tensor, y: Tensor) -> float:
        """Smallest (L(x) + L(y)) / 2 - L((x + y) / 2) of a task, relative to the size of its losses."""
        chord = (self.problem.losses(x) + self.problem.losses(y)) / 2
        return float(((chord - self.problem.losses((x + y) / 2)) / self.spread).min())

    def optimal_values(self) -> Declaration:
        """Nothing is below, and the i-th vertex of the Pareto set attains it."""
        best = torch.tensor(self.problem.optimal_values, dtype=torch.float64)
        below = torch.cat([self.losses, self.front_losses]).amin(dim=0) - best
        attained = (self.front_losses[: len(best)].diagonal() - best).abs()
        margins = torch.cat([below / self.spread + ROUNDING, 1e3 * ROUNDING - attained / self.spread])
        return self._verdict("optimal values", margins, "no sample is below; the vertices attain them")

    def pareto_points_are_stationary(self) -> Declaration:
        """The independent min-norm point of their gradients is zero."""
        scale = float(self.jacobians.norm(dim=2).max())
        norms = [
            float(torch.from_numpy(min_norm(self.problem.jacobian(x).numpy()).direction).norm()) / scale
            for x in self.front
        ]
        return self._verdict(
            "pareto points are stationary", STATIONARY - torch.tensor(norms), f"min-norm at most {max(norms):.2g}"
        )

    def pareto_points_are_not_dominated(self) -> Declaration:
        """By no sample, no other Pareto point, and no neighbour."""
        p = self.problem.shape[1]
        near = []
        for x in self.front:
            for size in (1e-3, 1e-1):
                ray = torch.randn(p, dtype=torch.float64, generator=self.generator)
                near.append(self.problem.losses(x + size * self.problem.radius * ray / ray.norm()))
        rivals = torch.cat([self.losses, self.front_losses, torch.stack(near)])
        # Largest loss of a rival against the point's: below 0 means that every task is better off there.
        gains = ((rivals[None] - self.front_losses[:, None]) / self.spread).amax(dim=2).amin(dim=1)
        return self._verdict("pareto points are not dominated", gains + ROUNDING, f"{len(rivals)} rivals each")

    def other_points_are_dominated(self) -> Declaration:
        """``project`` leads to a Pareto point at which no task is worse off: the set is not too small."""
        margins = []
        for x, here in zip(self.xs, self.losses, strict=True):
            there = self.problem.project(x)
            worse = float(((self.problem.losses(there) - here) / self.spread).max())
            off = self.problem.distance(there) / max(1.0, self.problem.radius)
            margins.append(min(1e3 * ROUNDING - worse, STATIONARY - off))
        return self._verdict("other points are dominated", margins, "by their projection onto the Pareto set")

    def distance(self) -> Declaration:
        """0 on the set; positive where a sample is dominated by a margin."""
        on = [self.problem.distance(x) / max(1.0, self.problem.radius) for x in self.front]
        margins = [STATIONARY - d for d in on]
        for x, here in zip(self.xs, self.losses, strict=True):
            gain = float(((here - self.problem.losses(self.problem.project(x))) / self.spread).max())
            if gain > 1e-2:
                margins.append(self.problem.distance(x) / max(1.0, self.problem.radius) - STATIONARY)
        return self._verdict("distance", margins, f"at most {max(on):.2g} on the set, positive off it")

    def stationary_is_optimal(self) -> Declaration:
        """A sample away from the set has no vanishing combination of gradients."""
        scale = float(self.jacobians.norm(dim=2).max())
        norms = [
            float(torch.from_numpy(min_norm(rows.numpy()).direction).norm()) / scale
            for x, rows in zip(self.xs, self.jacobians, strict=True)
            if self.problem.distance(x) > 1e-2 * self.problem.radius
        ]
        return self._verdict(
            "stationary is optimal",
            [norm - STATIONARY for norm in norms] or [-1.0],
            f"min-norm at least {min(norms, default=float('nan')):.2g} at {len(norms)} points off the set",
        )

    def symmetry(self) -> Declaration:
        """The losses do not change; the point does."""
        margins = []
        for x, here in zip(self.xs, self.losses, strict=True):
            moved = self.problem.symmetry(x, self.generator)
            assert moved is not None
            change = float(((self.problem.losses(moved) - here).abs() / self.spread).max())
            travelled = float((moved - x).norm()) / max(float(x.norm()), 1e-300)
            margins.append(min(ROUNDING - change, travelled - 1e-3))
        return self._verdict("symmetry", margins, "the losses are the same at the moved point")
