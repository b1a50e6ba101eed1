"""One run of a method on a problem."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mtlcore import Aggregation, Aggregator, StepView
from mtlcore.hosting import ask as call
from mtlcore.hosting import step_seed
from mtlcore.linalg import combine
from mtlverify.problems import Problem
from mtlverify.references.min_norm import min_norm


@dataclasses.dataclass(frozen=True)
class Trace:
    """What was measured on the way.

    Args:
        steps: checkpoints: 0, then geometrically spaced, then the last.
        stationarity: |min-norm point of the exact gradients| there, by the independent reference.
        distance: to the Pareto set at the first and the last checkpoint.
        losses: first and last, minus the infimum of each task.
    """

    steps: tuple[int, ...]
    stationarity: tuple[float, ...]
    distance: tuple[float, float]
    losses: tuple[tuple[float, ...], tuple[float, ...]]


def run(
    method: Aggregator, problem: Problem, *, steps: int, curvature: float, noise: float = 0.0, seed: int = 0
) -> Trace:
    """x <- x - eta d / s with eta = 1 / curvature and s = |w_1| + ... + |w_K|.

    With s, a method that returns weights moves along an affine combination of the gradients, whatever the length of its
    d: for Nash-MTL and FairGrad, whose d does not shrink near the Pareto set, this is the step size under which their
    convergence is stated (proportional to 1 / w); for the others it is a constant. [choice] A method that returns
    a direction is never lengthened, and shortened to the longest gradient. With ``noise``, independent Gaussian noise
    of that relative size is added to every gradient the method sees, and eta decays like 1 / sqrt(t).

    The method sees L_i - inf L_i + 1: positive, as loss-level methods require; a shift changes no gradient.
    """
    source = torch.Generator().manual_seed(seed)
    x = problem.start(source)
    batches = _Batches(problem, noise * problem.jacobian(x).norm(dim=1, keepdim=True), source, seed)
    state = method.init(problem.shape[0])
    marks = {0, steps, *(round(steps ** (i / 14)) for i in range(1, 15))}
    seen: list[float] = []
    first = (problem.distance(x), batches.above_infimum(x))
    for t in range(steps + 1):
        if t in marks:
            seen.append(stationarity(problem, x))
        if t == steps:
            break
        now = batches.view(x, t, others=method.batches - 1)
        answer = call(method, now, state, problem.shape[1])
        direction, size = _move(answer, now.jacobian)
        eta = 1.0 / curvature / ((1.0 + t) ** 0.5 if noise else 1.0)
        if size > 0:
            x = x - eta / size * direction
        state = dict(answer.state)
        if method.looks_twice():
            state = method.observe(batches.view(x, t).limited_to(method.needs), state)
    last = (problem.distance(x), batches.above_infimum(x))
    return Trace(
        steps=tuple(sorted(marks)),
        stationarity=tuple(seen),
        distance=(first[0], last[0]),
        losses=(tuple(first[1].tolist()), tuple(last[1].tolist())),
    )


@dataclasses.dataclass(frozen=True)
class _Batches:
    """What a method sees of a problem.

    Args:
        spread: (K, 1) length of the noise that is added to each gradient; zero for exact gradients.
        source: of the noise, in the order in which views are made.
        seed: of the generators that the views carry.
    """

    problem: Problem
    spread: Tensor
    source: torch.Generator
    seed: int

    def above_infimum(self, x: Tensor) -> Tensor:
        """(K,) L_i(x) - inf L_i."""
        return self.problem.losses(x) - torch.tensor(self.problem.optimal_values, dtype=torch.float64)

    def view(self, x: Tensor, t: int, others: int = 0) -> StepView:
        """The view of step t at x, with so many independent batches beside it, which are drawn first."""
        beside = tuple(self.view(x, t) for _ in range(others))
        return StepView(
            losses=self.above_infimum(x) + 1.0,
            jacobian=self._rows(x),
            step=t,
            generator=step_seed(self.seed, t),
            others=beside,
            inner=_inner(self.problem, x, lambda point: self.view(point, t)),
            curvature=_curvature(self.problem, x),
        )

    def _rows(self, x: Tensor) -> Tensor:
        exact = self.problem.jacobian(x)
        if not bool(self.spread.any()):
            return exact
        sigma = self.spread / self.problem.shape[1] ** 0.5
        return exact + sigma * torch.randn(exact.shape, dtype=exact.dtype, generator=self.source)


def _move(answer: Aggregation, gradients: Tensor) -> tuple[Tensor, float]:
    """The direction d, and the s that it is divided by."""
    if answer.weights is not None:
        return combine(gradients, answer.weights), float(answer.weights.abs().sum())
    assert answer.direction is not None
    longest = gradients.norm(dim=1).max().clamp_min(1e-300)
    return answer.direction.double(), max(1.0, float(answer.direction.double().norm() / longest))


def stationarity(problem: Problem, x: Tensor) -> float:
    """Length of the shortest convex combination of the exact gradients: 0 exactly at Pareto-stationary points."""
    return float(torch.from_numpy(min_norm(problem.jacobian(x).numpy()).direction).norm())


def _curvature(problem: Problem, x: Tensor) -> Callable[[StepView, Tensor], Tensor]:
    """``view.curvature``: products with the exact Hessians at x."""

    def products(_: StepView, vectors: Tensor) -> Tensor:
        with torch.enable_grad():
            point = x.detach().requires_grad_(True)
            along = torch.zeros((), dtype=x.dtype)
            for loss, vector in zip(problem.losses(point), vectors):
                (gradient,) = torch.autograd.grad(loss, point, create_graph=True)
                along = along + gradient @ vector.to(gradient)
            if not along.requires_grad:  # every loss is linear
                return torch.zeros_like(x)
            (product,) = torch.autograd.grad(along, point, allow_unused=True, materialize_grads=True)
            return product

    return products


def _inner(problem: Problem, x: Tensor, view: Callable[..., StepView]) -> Callable[..., StepView]:
    """``view.inner``: gradient steps from x that leave x alone."""

    def descend(start: StepView, weigh: Callable[[StepView], Tensor], steps: int, lr: float, **_: Any) -> StepView:
        point, here = x, start
        for _step in range(steps):
            point = point - lr * combine(problem.jacobian(point), weigh(here))
            here = view(point)
        return here

    return descend
