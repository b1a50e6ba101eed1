"""The verdicts of the detectors against the definitions, written out on the gradients themselves."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import mtlcore
from mtlcore import StepView


def view(jacobian: Tensor) -> StepView:
    return StepView(losses=torch.ones(len(jacobian)), jacobian=jacobian.to(torch.float64))


def jacobian(seed: int, k: int, p: int, spread: float) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    rows = torch.randn(k, p, generator=g, dtype=torch.float64)
    return rows * (spread * torch.randn(k, 1, generator=g, dtype=torch.float64)).exp()


matrices = st.builds(jacobian, st.integers(0, 10_000), st.integers(2, 8), st.integers(2, 12), st.floats(0.0, 4.0))


def cos(a: Tensor, b: Tensor) -> float:
    return float(a @ b / a.norm() / b.norm())


@given(matrices)
def test_smallest_is_equation_3_of_the_paper(rows):
    mean = rows.mean(dim=0)
    weakest = rows[rows.norm(dim=1).argmin()]
    found = mtlcore.create("detector", "dominated").detect(view(rows))
    assert found.conflicting == (cos(weakest, mean) < 0)
    assert found.severity == pytest.approx(-cos(weakest, mean), abs=1e-9)


@given(matrices)
def test_any_is_the_authors_code(rows):
    worst = min(cos(row, rows.mean(dim=0)) for row in rows)
    found = mtlcore.create("detector", "dominated", rule="any").detect(view(rows))
    assert found.conflicting == (worst < 0)
    assert found.dominated.tolist() == [cos(row, rows.mean(dim=0)) < 0 for row in rows]


@given(st.builds(jacobian, st.integers(0, 10_000), st.just(2), st.integers(2, 12), st.floats(0.0, 4.0)))
def test_two_tasks_both_rules_agree_and_have_a_closed_form(rows):
    small, large = sorted(rows, key=lambda r: float(r.norm()))
    expected = cos(small, large) < -float(small.norm() / large.norm())
    for rule in ("smallest", "any"):
        assert mtlcore.create("detector", "dominated", rule=rule).detect(view(rows)).conflicting == expected


@given(matrices, st.floats(0.0, 0.9), st.sampled_from([0.1, 0.34, 0.5, 1.0]))
def test_fraction_counts_the_dominated_tasks(rows, threshold, rho):
    count = sum(cos(row, rows.mean(dim=0)) < -threshold for row in rows)
    detector = mtlcore.create("detector", "dominated", rule="fraction", threshold=threshold, rho=rho)
    assert detector.detect(view(rows)).conflicting == (count >= math.ceil(rho * len(rows)))


# In floats rho * k is a little more than the number of tasks in each of these.
@pytest.mark.parametrize(
    ("k", "rho", "count"), [(25, 0.28, 7), (25, 0.56, 14), (50, 0.14, 7), (100, 0.07, 7), (40, 0.5, 20)]
)
def test_a_fraction_is_reached_by_exactly_that_many_tasks(k, rho, count):
    detector = mtlcore.create("detector", "dominated", rule="fraction", rho=rho)
    for dominated in (count - 1, count):
        others = torch.full((k - dominated, 1), 1e3 * k, dtype=torch.float64)
        rows = torch.cat([others, torch.full((dominated, 1), -1.0, dtype=torch.float64)])
        assert detector.detect(view(rows)).conflicting == (dominated == count)


@given(matrices, st.floats(0.0, 0.9))
def test_cosine_is_weak_conflict(rows, threshold):
    table = [[cos(a, b) for b in rows] for a in rows]
    found = mtlcore.create("detector", "cosine", threshold=threshold).detect(view(rows))
    expected = [[i != j and c < -threshold for j, c in enumerate(line)] for i, line in enumerate(table)]
    assert found.pairs.tolist() == expected
    assert found.conflicting == any(map(any, expected))


@given(matrices, st.floats(1.0, 1e3))
def test_imbalance_is_the_ratio_of_norms(rows, ratio):
    norms = rows.norm(dim=1)
    found = mtlcore.create("detector", "imbalance", ratio=ratio).detect(view(rows))
    assert found.conflicting == (float(norms.max() / norms.min()) > ratio)
    assert found.severity == pytest.approx(math.log(float(norms.max() / norms.min())), abs=1e-9)
    assert found.conflicting == bool(found.pairs.any())


DETECTORS = [
    ("dominated", {}),
    ("dominated", {"rule": "any", "threshold": 0.1}),
    ("dominated", {"rule": "fraction", "rho": 0.5}),
    ("cosine", {}),
    ("imbalance", {"ratio": 3.0}),
]


@pytest.mark.parametrize(("name", "options"), DETECTORS)
@given(rows=matrices, exponent=st.integers(-40, 40))
def test_the_unit_of_the_losses_does_not_matter(name, options, rows, exponent):
    detector = mtlcore.create("detector", name, **options)
    a, b = detector.detect(view(rows)), detector.detect(view(rows * 2.0**exponent))
    assert (a.conflicting, a.severity) == (b.conflicting, b.severity)
    assert torch.equal(a.pairs, b.pairs)
    assert torch.equal(a.dominated, b.dominated)


@pytest.mark.parametrize(("name", "options"), DETECTORS)
@given(rows=matrices, seed=st.integers(0, 100))
def test_the_order_of_the_tasks_does_not_matter(name, options, rows, seed):
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    detector = mtlcore.create("detector", name, **options)
    a, b = detector.detect(view(rows)), detector.detect(view(rows[order]))
    assert a.severity == pytest.approx(b.severity, abs=1e-12)
    assert torch.equal(a.pairs[order][:, order], b.pairs)
    assert torch.equal(a.dominated[order], b.dominated)


@pytest.mark.parametrize(("name", "options"), DETECTORS)
def test_one_task_never_conflicts(name, options):
    found = mtlcore.create("detector", name, **options).detect(view(torch.tensor([[1.0, -2.0]])))
    assert not found.conflicting
    assert found.severity == 0.0
    assert not found.pairs.any()
    assert not found.dominated.any()


@pytest.mark.parametrize(("name", "options"), DETECTORS)
@pytest.mark.parametrize("others", [0.0, 1.0])
def test_a_zero_gradient_conflicts_with_nobody(name, options, others):
    rows = torch.tensor([[0.0, 0.0], [others, 0.0], [others, others]])
    found = mtlcore.create("detector", name, **options).detect(view(rows))
    assert not found.conflicting
    assert math.isfinite(found.severity)
    assert not found.pairs[0].any()
    assert not found.pairs[:, 0].any()
    assert not found.dominated[0]


def test_opposite_gradients_leave_no_mean_to_be_dominated_by():
    rows = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    assert not mtlcore.create("detector", "dominated").detect(view(rows)).conflicting
    found = mtlcore.create("detector", "cosine").detect(view(rows))
    assert found.conflicting
    assert found.severity == pytest.approx(1.0)


def test_rounding_is_not_a_conflict():
    # Orthogonal in exact arithmetic; in float64 the inner product is -2.8e-17.
    rows = torch.tensor([[0.1, -0.1, 0.0], [1.1, 0.8 + 0.3, 0.0]], dtype=torch.float64)
    rows[1, 1] = torch.nextafter(rows[1, 0], torch.tensor(2.0, dtype=torch.float64))
    assert float(rows[0] @ rows[1]) < 0.0
    assert not mtlcore.create("detector", "cosine").detect(view(rows)).pairs.any()


def test_rows_of_very_different_size():
    rows = torch.tensor([[1e-8, -1e-8], [0.0, 1.0]])
    found = mtlcore.create("detector", "dominated").detect(view(rows))
    assert found.conflicting
    assert found.severity == pytest.approx(0.5**0.5, rel=1e-6)
    assert found.dominated.tolist() == [True, False]


def test_rounding_is_not_domination():
    # <g_1, g_1> + <g_1, g_2> is -2.2e-16: what rounding leaves of a task that is orthogonal to the mean.
    gram = torch.tensor([[1.0, -1.0 - 2.3e-16], [-1.0 - 2.3e-16, 4.0]], dtype=torch.float64)
    assert float(gram[0].sum()) < 0.0
    found = mtlcore.create("detector", "dominated").detect(StepView(losses=torch.ones(2), gramian=gram))
    assert not found.conflicting
    assert not found.dominated.any()
