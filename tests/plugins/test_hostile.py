"""Ill-conditioned Jacobians that do have a common descent direction: nobody may be harmed beyond rounding."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

import mtlcore
from mtlbench.speed import solvers
from mtlbench.speed.hostile import Example, examples
from mtlcore import StepView, linalg

EPS = torch.finfo(torch.float64).eps

METHODS = [
    ("upgrad", {}),
    ("dualproj", {}),
    ("mgda", {}),
    ("mgda", {"normalize": "l2"}),
    ("nash-mtl", {}),
    ("fairgrad", {"alpha": 0.1}),
    ("fairgrad", {"alpha": 0.5}),
    ("fairgrad", {"alpha": 1.0}),
    ("fairgrad", {"alpha": 2.0}),
    ("fairgrad", {"alpha": 10.0}),
    ("cagrad", {"c": 1.0}),
    ("gradops", {}),
    ("gradops", {"project": "always"}),
    ("gradops", {"alpha": -2.0}),
    ("gradops", {"rescale": True}),
]


@functools.cache
def hostile() -> tuple[Example, ...]:
    return tuple(examples())


def noise(rows: Tensor, weights: Tensor, direction: Tensor) -> float:
    """How far below zero a cosine may be by rounding.

    An inner product <g_i, d> with d = sum_j w_j g_j is known from float64 arithmetic to (P + number of operations on
    K terms) eps sum_j |w_j| |g_i| |g_j|: P for the Gramian, and 64 for a solver that is backward stable to a few eps
    per row. Storing d in float32 adds half a unit of its last place.
    """
    size = float((weights.abs() * rows.double().norm(dim=1)).sum())
    stored = torch.finfo(rows.dtype).eps if rows.dtype == torch.float32 else 0.0
    return stored + (rows.shape[1] + 64) * EPS * size / float(direction.norm())


def test_there_are_enough_of_them():
    assert len(hostile()) >= 264
    assert {len(e.rows) for e in hostile()} == {2, 3, 5, 11, 40}
    norms = torch.stack(
        [torch.stack([e.rows.double().norm(dim=1).min(), e.rows.double().norm(dim=1).max()]) for e in hostile()]
    )
    assert norms.min() <= 1.1e-10
    assert norms.max() >= 0.9e10
    assert (norms[:, 1] / norms[:, 0]).max() >= 0.9e8


@pytest.mark.parametrize(("name", "options"), METHODS, ids=lambda v: str(v))
def test_no_conflict_with_any_task(name, options):
    method = mtlcore.create("aggregator", name, **options)
    for example in hostile():
        rows = example.rows
        view = StepView(losses=torch.ones(len(rows)), jacobian=rows)
        answer = method.aggregate(view, method.init(len(rows)))
        assert answer.weights.isfinite().all(), example
        direction = linalg.combine(rows, answer.weights).double()
        assert direction.norm() > 0, example
        cosines = (rows.double() @ direction) / rows.double().norm(dim=1) / direction.norm()
        assert cosines.min() >= -noise(rows, answer.weights, direction), (example, answer.diagnostics)


@pytest.mark.parametrize(("name", "options"), [m for m in METHODS if m[0] != "gradops"], ids=lambda v: str(v))
def test_the_solvers_certify_their_answers(name, options):
    method = mtlcore.create("aggregator", name, **options)
    for example in hostile():
        view = StepView(losses=torch.ones(len(example.rows)), jacobian=example.rows)
        diagnostics = method.aggregate(view, {}).diagnostics
        assert diagnostics["solver"] in ("optimal", "trivial", "stationary"), example
        assert diagnostics["kkt_residual"] <= 1e-11, example
        assert "polished" not in diagnostics, example


def test_a_method_without_the_promise_is_caught():
    """The measurement itself can fail: PCGrad conflicts on many of these."""
    method = mtlcore.create("aggregator", "pcgrad")
    caught = 0
    for example in hostile():
        rows = example.rows
        weights = method.aggregate(StepView(losses=torch.ones(len(rows)), jacobian=rows), {}).weights
        direction = linalg.combine(rows, weights).double()
        cosines = (rows.double() @ direction) / rows.double().norm(dim=1) / direction.norm()
        caught += bool(cosines.min() < -noise(rows, weights, direction))
    assert caught >= 50


def test_the_benchmark_tells_the_verdicts_apart():
    rows = torch.tensor([[1.0, 0.1], [-1.0, 0.1]])

    def broken(rows, gramian):
        raise ValueError

    answers = {
        "sound": lambda rows, gramian: torch.tensor([1.0, 1.0]),
        "conflicting": lambda rows, gramian: torch.tensor([1.0, 0.0]),
        "standing still": lambda rows, gramian: torch.zeros(2),
        "failed": broken,
    }
    for verdict, weigh in answers.items():
        assert solvers._judge(rows, weigh, exact=True) == verdict
    assert solvers._judge(rows, lambda rows, gramian: torch.full((2,), torch.nan), exact=False) == "failed"
