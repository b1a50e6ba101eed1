"""``forum`` against a transcription of its update, and on gradients so long that its multiplier leaves no digits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import mtlcore
from mtlcore import StepView
from mtlverify.example import Example
from mtlverify.runner import chosen


def test_long_gradients_leave_a_mixture():
    (law,) = chosen("aggregator", ["finite"])
    for size in (2500.0, 5e120):
        example = Example(torch.tensor([[size]], dtype=torch.float64), torch.ones(1, dtype=torch.float64))
        assert law.measure(mtlcore.create("aggregator", "forum"), example) > 0


class Quadratics:
    """K training losses |A x - b|^2 / 2 and K validation losses, at a point that the run moves."""

    def __init__(self, seed: int, k: int, p: int, scale: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.a = torch.randn(2, k, 3, p, generator=generator, dtype=torch.float64)
        self.b = torch.randn(2, k, 3, generator=generator, dtype=torch.float64)
        self.x, self.scale = torch.randn(p, generator=generator, dtype=torch.float64), scale

    def losses(self, x, which):
        return 0.5 * self.scale * (self.a[which] @ x - self.b[which]).square().sum(1)

    def rows(self, x, which):
        return self.scale * torch.einsum("kij,ki->kj", self.a[which], self.a[which] @ x - self.b[which])

    def view(self, x, which, **further):
        return StepView(losses=self.losses(x, which), jacobian=self.rows(x, which), **further)

    def inner(self, view, weigh, steps, lr):
        x = self.x.clone()
        for _ in range(steps):
            x = x - lr * weigh(self.view(x, 0)) @ self.rows(x, 0)
        return self.view(x, 0)


def objective(units, pull, rho):
    """Of l alone, with the best multiplier v >= max(0, l'p) inserted [Ye et al. 2024, problem 8]."""
    square = pull @ pull

    def value(mixture):
        constraint = rho - units @ pull / square
        v = max(0.0, mixture @ constraint, 0.5 * rho - mixture @ units @ pull / square)
        return float(((mixture @ units + v * pull) ** 2).sum() - v * rho * square)

    return value


@pytest.mark.parametrize(("k", "p", "scale"), [(1, 4, 1.0), (2, 5, 1e-8), (3, 7, 1.0), (3, 7, 1e4), (6, 3, 1.0)])
def test_a_run_is_the_published_update(k, p, scale):
    """Step by step: the mixture solves its program, and all else follows from it by the formulas of the paper."""
    problem, rho = Quadratics(k, k, p, scale), 0.1
    method = mtlcore.create("aggregator", "forum", rho=rho, inner_lr=0.02, lr=0.05)
    state, scores = method.init(k), torch.zeros(k, dtype=torch.float64, requires_grad=True)
    adam, mixture = torch.optim.Adam([scores], lr=0.05, eps=1e-300), torch.zeros(k, dtype=torch.float64)
    for t in range(1, 9):
        x, upper = problem.x, problem.view(problem.x, 1)
        answer = method.aggregate(problem.view(x, 0, others=(upper,), inner=problem.inner), state)
        state, before = answer.state, state
        s, there = scores.softmax(0).detach(), x.clone()
        for _ in range(5):
            there = there - 0.02 * s @ problem.rows(there, 0)
        gained = scores.softmax(0) @ (problem.losses(x, 0) - problem.losses(there, 0))
        (by_score,) = torch.autograd.grad(gained, scores)
        pull = torch.cat([s @ problem.rows(x, 0), by_score])
        units = torch.nn.functional.pad(torch.nn.functional.normalize(upper.jacobian, eps=0.0), (0, k))
        best = (state["mixture"] - before["mixture"]) * t**0.75 + before["mixture"]
        value = objective(units.numpy(), pull.numpy(), rho)
        size = 1.0 + rho**2 * float(pull @ pull)
        for start in np.eye(k):
            found = minimize(
                value, start, bounds=[(0, 1)] * k, constraints={"type": "eq", "fun": lambda w: w.sum() - 1}, tol=1e-14
            )
            assert value(best.numpy()) <= found.fun + 1e-8 * size
        mixture = mixture + t**-0.75 * (best - mixture)
        v = max(0.0, float(mixture @ (rho - units @ pull / (pull @ pull))))
        expected = mixture @ units[:, :p] + v * s @ problem.rows(x, 0)
        torch.testing.assert_close(answer.direction, expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(answer.head_weights, v * s, rtol=1e-9, atol=1e-12)
        scores.grad = v * by_score
        adam.step()
        torch.testing.assert_close(state["scores"], scores.detach(), rtol=1e-9, atol=1e-12)
        problem.x = x - 0.05 * answer.direction / answer.direction.norm()
