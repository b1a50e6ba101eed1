"""The convergence table tells apart what converges, what does not, and how fast."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import torch
from typer.testing import CliRunner

import mtlcore
from mtlcore import Aggregation, Aggregator
from mtlverify.convergence.claims import claimed
from mtlverify.convergence.rates import fitted
from mtlverify.convergence.run import _Batches, run, stationarity
from mtlverify.convergence.suite import CASES, Case, curvature
from mtlverify.convergence.verdict import judge
from mtlverify.problems.quadratics import Quadratics

EASY = CASES[0]
HARD = CASES[1]


@pytest.mark.parametrize("method", ["mgda", "upgrad", "nash-mtl", "famo", "bilb4mtl-double-loop"])
def test_methods_reach_the_pareto_set(method):
    verdict = judge(mtlcore.create("aggregator", method), EASY, noisy=False, steps=60)
    assert verdict.verdict == "converged", verdict
    assert verdict.distance[1] < 1e-2 * verdict.distance[0]


@dataclass(frozen=True)
class Ascent(Aggregator):
    """A sign error."""

    def aggregate(self, view, state):
        return Aggregation(weights=torch.full((view.n_tasks,), -1.0 / view.n_tasks), state=state)


@dataclass(frozen=True)
class Lazy(Aggregator):
    """Forgets to move."""

    def aggregate(self, view, state):
        return Aggregation(weights=torch.zeros(view.n_tasks), state=state)


@dataclass(frozen=True)
class Raises(Aggregator):
    def aggregate(self, view, state):
        raise ValueError("no")


def test_broken_methods_are_told_apart():
    assert judge(Ascent(), EASY, noisy=False, steps=30).verdict == "stalled"
    assert judge(Lazy(), EASY, noisy=True, steps=30).verdict == "stalled"
    broken = judge(Raises(), EASY, noisy=False, steps=30)
    assert broken.verdict == "error"
    assert "no" in broken.detail


def test_claimed_rate_is_met_and_a_slower_run_would_not_meet_it():
    verdict = judge(mtlcore.create("aggregator", "mgda"), HARD, noisy=False, steps=60)
    assert verdict.as_claimed is True
    assert "linear" in verdict.claimed
    assert "Fliege" in verdict.source
    from mtlverify.convergence.verdict import _keeps

    steps = tuple(range(0, 60, 4))
    assert _keeps(steps, tuple(0.9**t for t in steps), "linear", 0.9)
    assert not _keeps(steps, tuple((1.0 + t) ** -0.5 for t in steps), "linear", 0.8)


def test_no_rate_is_claimed_where_none_is_known():
    problem = EASY.make()
    assert claimed("nash-mtl", problem, 1.0) is None
    assert claimed("mgda", Case("toy", "cagrad-toy").make(), 1.0) is None
    assert claimed("mgda", problem, 1.0).kind == "linear"
    assert claimed("mgda", Case("toy", "pareto-mtl-toy").make(), 2.0).kind == "power"


def test_rates_are_recovered():
    steps = tuple(round(200 ** (i / 14)) for i in range(15))
    linear = fitted(steps, tuple(0.93**t for t in steps))
    power = fitted(steps, tuple((1.0 + t) ** -0.7 for t in steps))
    assert linear.kind == "linear"
    assert linear.value == pytest.approx(0.93, abs=1e-6)
    assert power.kind == "power"
    assert power.value == pytest.approx(0.7, abs=0.1)
    assert fitted(steps, (1.0,) * 15).kind == "none"


def test_stationarity_is_zero_on_the_front_and_matches_the_closed_form_for_two_tasks():
    problem = Quadratics(angle=130.0, imbalance=3.0)
    assert stationarity(problem, problem.pareto_point(torch.tensor([0.3, 0.7], dtype=torch.float64))) < 1e-7
    g, h = problem.jacobian(problem.start(torch.Generator()))
    a = float(((h - g) @ h / (h - g).square().sum()).clamp(0, 1))
    expected = float((a * g + (1 - a) * h).norm())
    assert stationarity(problem, problem.start(torch.Generator())) == pytest.approx(expected, rel=1e-6)


def test_noise_is_seeded_and_hurts():
    problem, method = EASY.make(), mtlcore.create("aggregator", "mgda")
    bend = curvature(problem)
    first, again, other = (
        run(method, problem, steps=25, curvature=bend, noise=0.1, seed=s).stationarity for s in (1, 1, 2)
    )
    assert first == again != other
    assert run(method, problem, steps=25, curvature=bend).stationarity[-1] < first[-1]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_a_run_offers_the_true_hessians(case):
    """Against differences of the declared gradients."""
    problem = case.make()
    x = problem.sample(torch.Generator().manual_seed(0))
    batches = _Batches(problem, torch.zeros(problem.shape[0], 1), torch.Generator(), 0)
    vectors = torch.randn(problem.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():  # as in a step
        found = batches.view(x, 0).curvature(vectors)
    h = 1e-6
    ahead = [(problem.jacobian(x + h * v)[i] - problem.jacobian(x - h * v)[i]) / (2 * h) for i, v in enumerate(vectors)]
    torch.testing.assert_close(found, torch.stack(ahead).sum(0), rtol=1e-5, atol=1e-6)


def test_the_exact_form_of_emtl_takes_part():
    problem, method = EASY.make(), mtlcore.create("aggregator", "emtl", form="exact", lamb=0.01)
    seen = run(method, problem, steps=50, curvature=curvature(problem)).losses
    assert sum(seen[1]) < sum(seen[0])


def test_command_line_writes_json(tmp_path):
    from mtlverify.convergence.command import app

    file = tmp_path / "table.json"
    done = CliRunner().invoke(app, ["ls", "--steps", "20", "--json", str(file), "--jobs", "1"])
    assert done.exit_code == 0, done.output
    rows = json.loads(file.read_text())
    assert len(rows) == 2 * len(CASES)
    assert {r["verdict"] for r in rows} <= {"converged", "approaching", "stalled"}
    assert CliRunner().invoke(app, ["lss"]).exit_code == 2
