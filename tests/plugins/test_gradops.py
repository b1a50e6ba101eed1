"""GradOPS against what is proved about it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import mtlcore
from mtlcore import Aggregation, StepView
from mtlcore.errors import ConfigurationError


def jacobian(seed: int, k: int, p: int, decades: float = 0.0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    rows = torch.randn(k, p, generator=g, dtype=torch.float64)
    return rows * 10.0 ** (decades * (torch.rand(k, 1, generator=g, dtype=torch.float64) - 0.5))


def ask(rows: Tensor, name: str = "gradops", **options: Any) -> tuple[Tensor, Aggregation]:
    method = mtlcore.create("aggregator", name, **options)
    answer = method.aggregate(StepView(losses=torch.ones(len(rows)), jacobian=rows), method.init(len(rows)))
    return rows.T @ answer.weights.to(rows.dtype), answer


def projected(rows: Tensor, **options: Any) -> Tensor:
    """The g_i' one by one, through one-hot task weights."""
    hot = torch.eye(len(rows)).tolist()
    return torch.stack([ask(rows, weights=tuple(w), **options)[0] for w in hot])


def plane(*degrees: float) -> Tensor:
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([angle.cos(), angle.sin()], dim=1)


STALL = plane(5.0, 100.0, 175.0)
SHAPES = [(2, 4), (3, 8), (4, 3), (6, 30)]


@pytest.mark.parametrize("project", ["conflict-only", "always"])
@pytest.mark.parametrize(("k", "p"), SHAPES)
def test_no_modified_gradient_conflicts_with_an_original_one(k, p, project):
    for seed in range(10):
        rows = jacobian(seed, k, p, decades=4.0)
        parts = projected(rows, project=project)
        cosines = (parts @ rows.T) / rows.norm(dim=1) / rows.norm(dim=1)[:, None]
        assert cosines.min() >= -1e-12


@pytest.mark.parametrize("fallback", [True, False])
def test_projection_is_the_one_off_the_span_of_the_others(fallback):
    for seed in range(10):
        rows = jacobian(seed, 4, 12)
        units = rows / rows.norm(dim=1, keepdim=True)
        conflicting = (units @ units.T < 0).any(dim=1)
        expected = []
        for i in range(4):
            basis, _ = torch.linalg.qr(torch.cat([rows[:i], rows[i + 1 :]]).T)
            expected.append(rows[i] - basis @ (basis.T @ rows[i]) if conflicting[i] else rows[i])
        torch.testing.assert_close(projected(rows, fallback=fallback), torch.stack(expected), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(ask(rows, fallback=fallback)[0], torch.stack(expected).sum(0), rtol=1e-9, atol=1e-9)


@given(seed=st.integers(0, 10**6), weights=st.lists(st.floats(0, 100), min_size=4, max_size=4).filter(any))
def test_any_nonnegative_weights_keep_non_conflict(seed, weights):
    rows = jacobian(seed, 4, 7, decades=6.0)
    d, _ = ask(rows, weights=tuple(weights))
    if d.norm() > 0:
        assert ((rows @ d) / rows.norm(dim=1) / d.norm()).min() >= -1e-10


def test_always_mode_sets_every_gain_independently():
    rows = jacobian(3, 4, 9, decades=2.0)
    w = (0.5, 2.0, 0.0, 7.0)
    d, _ = ask(rows, project="always", weights=w)
    lengths = projected(rows, project="always").square().sum(dim=1)
    torch.testing.assert_close(rows @ d, torch.tensor(w, dtype=torch.float64) * lengths, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("decades", [0.0, 8.0])
def test_equal_to_pcgrad_for_two_tasks(decades):
    for seed in range(50):
        rows = jacobian(seed, 2, 3, decades)
        d, _ = ask(rows)
        expected, _ = ask(rows, "pcgrad")
        assert (d - expected).norm() <= 1e-12 * rows.norm(dim=1).sum()


def test_stall_is_repaired_and_reported():
    d, answer = ask(STALL)
    assert (STALL @ d).min() > 0.02 * d.norm()
    assert "stall" in answer.diagnostics["fallback"]
    plain, silent = ask(STALL, fallback=False)
    assert plain.norm() == 0
    assert "fallback" not in silent.diagnostics


@pytest.mark.parametrize("project", ["conflict-only", "always"])
def test_stall_is_seen_where_two_gradients_are_nearly_one(project):
    """The third depends on the first two through coefficients of 1e5, whose rounding looked like a remainder."""
    for angle in np.geomspace(1e-6, 1e-4, 50):
        for third in (110.0, 130.0, 150.0):
            rows = plane(0.0, np.rad2deg(angle), third)
            d, answer = ask(rows, project=project)
            assert "stall" in answer.diagnostics["fallback"]
            assert (rows @ d > 0.05).all()


def test_fallback_keeps_every_single_promise():
    parts = projected(STALL)
    assert (parts @ STALL.T).min() >= -1e-14
    # The projection of each gradient onto the cone of directions that conflict with none, by sampling the cone.
    angle = torch.linspace(0, 2 * torch.pi, 200_001, dtype=torch.float64)
    circle = torch.stack([angle.cos(), angle.sin()], dim=1)
    cone = circle[(circle @ STALL.T).min(dim=1).values >= 0]
    for g, part in zip(STALL, parts):
        best = (cone @ g).max()
        assert part.norm() == pytest.approx(max(float(best), 0.0), abs=1e-4)


def test_no_fallback_without_a_stall():
    for seed in range(20):
        assert "fallback" not in ask(jacobian(seed, 3, 20))[1].diagnostics


def test_stall_threshold_is_a_sine():
    # Two gradients at 180 degrees minus a small angle: the remainders have the sine of it.
    for degrees, expected in [(0.01, True), (1.0, False)]:
        _, answer = ask(plane(0.0, 180.0 - degrees))
        assert ("fallback" in answer.diagnostics) == expected
        assert answer.diagnostics["longest_remainder"] == pytest.approx(np.sin(np.deg2rad(degrees)), rel=1e-6)


def test_zero_only_where_the_gradients_have_no_common_descent_direction():
    stationary = torch.tensor([[1.0, 2.0], [-3.0, -6.0]], dtype=torch.float64)
    d, _ = ask(stationary)
    assert d.norm() <= 1e-14
    for seed in range(30):
        rows = jacobian(seed, 5, 3)
        rows[:, 0] = rows[:, 0].abs() + 0.1  # e_1 helps everybody
        d, _ = ask(rows)
        assert d.norm() > 1e-3


def test_agreeing_collinear_tasks_are_kept():
    rows = torch.tensor([[1.0, 1.0], [2.0, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(ask(rows)[0], rows.sum(0))
    # "always" removes both; the stall sees it.
    d, answer = ask(rows, project="always")
    torch.testing.assert_close(d, rows.sum(0))
    assert "fallback" in answer.diagnostics


def test_nearly_orthogonal_gradients_are_not_projected_for_rounding():
    rows = torch.eye(3, dtype=torch.float64)
    rows[0, 1] = -1e-17
    assert ask(rows)[1].diagnostics["projected"] == 0
    rows[0, 1] = -1e-12
    assert ask(rows)[1].diagnostics["projected"] == 2


@pytest.mark.parametrize("contribution", ["relative", "projection"])
def test_alpha_follows_its_formula(contribution):
    rows = jacobian(1, 4, 10, decades=1.0)
    parts = projected(rows)
    total = parts.sum(0)
    r = (rows @ total) / rows.norm(dim=1) ** (2 if contribution == "relative" else 1)
    for alpha in (-3.0, -1.0, 0.5, 2.0):
        share = (r / r.mean()).clamp_min(1e-6) ** alpha
        w = (4 * share / share.sum()).clamp_min(1e-3)
        d, answer = ask(rows, alpha=alpha, contribution=contribution)
        torch.testing.assert_close(answer.diagnostics["task_weights"], w, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(d, w @ parts, rtol=1e-8, atol=1e-10)


def test_alpha_shifts_the_trade_off_monotonically():
    """The sweep over alpha: the weight of the task that dominates rises with alpha, that of the dominated one falls."""
    rows = torch.tensor([[3.0, 1.0, 0.0], [-1.0, 2.0, 0.5], [0.0, 0.1, 0.3]], dtype=torch.float64)
    base = (rows @ projected(rows).sum(0)) / rows.norm(dim=1)
    strongest, weakest = int(base.argmax()), int(base.argmin())
    weights = torch.stack([ask(rows, alpha=a)[1].diagnostics["task_weights"] for a in (-3.0, -1.0, 0.0, 1.0, 3.0)])
    assert (weights[1:, strongest] > weights[:-1, strongest]).all()
    assert (weights[1:, weakest] < weights[:-1, weakest]).all()


@pytest.mark.parametrize("contribution", ["relative", "projection"])
@pytest.mark.parametrize("alpha", [-3.0, -1.0, 1.0, 3.0])
def test_tasks_without_a_projected_gradient_take_no_share(alpha, contribution):
    """Two opposite gradients among five: with alpha < 0 they had all the weight, and nothing to move with it."""
    rows = jacobian(0, 5, 8)
    rows[1] = -2.0 * rows[0]
    parts = projected(rows, fallback=False)
    assert parts[:2].norm() == 0
    r = (rows @ parts.sum(0))[2:] / rows[2:].norm(dim=1) ** (2 if contribution == "relative" else 1)
    share = (r / r.mean()) ** alpha
    d, answer = ask(rows, alpha=alpha, contribution=contribution)
    w = (3 * share / share.sum()).clamp_min(1e-3)
    torch.testing.assert_close(answer.diagnostics["task_weights"][2:], w, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(d, w @ parts[2:], rtol=1e-8, atol=1e-10)


def test_rescale_gives_the_length_of_the_mean_gradient():
    rows = jacobian(5, 3, 6)
    d, _ = ask(rows, rescale=True)
    plain, _ = ask(rows)
    assert d.norm() == pytest.approx(float(rows.mean(0).norm()), rel=1e-12)
    torch.testing.assert_close(d / d.norm(), plain / plain.norm())


def test_descent_lemma_on_quadratics():
    """eta = 1 / (L K^2 w_max): the summed loss falls by (eta/2) sum_j w_j |g_j'|^2 at least, at every step."""
    generator = torch.Generator().manual_seed(0)
    k, p = 3, 6
    centres = torch.randn(k, p, generator=generator, dtype=torch.float64)
    curvatures = 0.2 + 0.8 * torch.rand(k, p, generator=generator, dtype=torch.float64)
    w = (0.5, 1.0, 2.0)
    eta = 1.0 / (1.0 * k**2 * 2.0)

    def losses(x: Tensor) -> Tensor:
        return 0.5 * (curvatures * (x - centres) ** 2).sum(dim=1)

    x = torch.full((p,), 3.0, dtype=torch.float64)
    for _ in range(100):
        rows = curvatures * (x - centres)
        parts = projected(rows, project="always", fallback=False)
        d, _ = ask(rows, project="always", fallback=False, weights=w)
        gain = torch.tensor(w, dtype=torch.float64) @ parts.square().sum(dim=1)
        assert (rows @ d).min() >= -1e-12
        assert losses(x - eta * d).sum() <= losses(x).sum() - 0.5 * eta * gain + 1e-12
        x = x - eta * d
    assert gain < 1e-3


def test_a_task_with_zero_gradient_is_left_out():
    rows = jacobian(2, 3, 5)
    with_zero = torch.cat([rows, torch.zeros(1, 5, dtype=torch.float64)])
    torch.testing.assert_close(ask(with_zero)[0], ask(rows)[0])


def test_claims_depend_on_the_hyper_parameters():
    claims = lambda **o: mtlcore.create("aggregator", "gradops", **o).claims
    assert "linear-under-scaling" in claims()
    assert "linear-under-scaling" not in claims(alpha=1.0)
    assert "permutation-equivariant" not in claims(weights=(1.0, 2.0))
    assert "zero-only-if-stationary" not in claims(fallback=False)
    assert "non-conflicting" in claims(alpha=-3.0, fallback=False, rescale=True)


def test_weights_follow_the_tasks_that_are_present():
    rows = jacobian(4, 2, 5)
    method = mtlcore.create("aggregator", "gradops", weights=(9.0, 0.5, 3.0))
    view = StepView(losses=torch.ones(2), jacobian=rows, task_index=(1, 2))
    expected, _ = ask(rows, weights=(0.5, 3.0))
    torch.testing.assert_close(rows.T @ method.aggregate(view, {}).weights, expected)


@pytest.mark.parametrize("weights", [(1.0,), (0.0, 0.0), (1.0, 2.0, 3.0)])
def test_unusable_weights_are_refused(weights):
    with pytest.raises(ConfigurationError, match="one number per task"):
        ask(jacobian(0, 2, 3), weights=weights)


def test_weights_of_absent_tasks_do_not_move_the_others():
    method = mtlcore.create("aggregator", "gradops", weights=(1.0, 0.0, 0.0))
    view = StepView(losses=torch.ones(2), jacobian=jacobian(0, 2, 5), task_index=(1, 2), task_names=["b", "c"])
    with pytest.raises(ConfigurationError, match=r"'b', 'c'.*all zero"):
        method.aggregate(view, method.init(3))


def test_exact_dependence_is_a_stall_whatever_the_bound():
    for options in ({"project": "always"}, {}):
        d, answer = ask(STALL, stall=0.0, **options)
        assert (STALL @ d).min() > 0.02 * d.norm()
        assert "stall" in answer.diagnostics["fallback"]


def test_a_run_counts_its_fallbacks():
    angles = torch.deg2rad(torch.tensor([5.0, 100.0, 175.0], dtype=torch.float64))
    stall = torch.stack([angles.cos(), angles.sin()], 1)
    method = mtlcore.create("aggregator", "gradops")
    state, counts = method.init(3), []
    for rows in (stall, torch.eye(3, dtype=torch.float64), stall):
        answer = method.aggregate(mtlcore.StepView(losses=torch.ones(3), jacobian=rows), state)
        state = answer.state
        counts.append((answer.diagnostics["fallbacks"], "fallback" in answer.diagnostics))
    assert counts == [(1, True), (1, False), (2, True)]
    assert mtlcore.create("aggregator", "gradops", fallback=False).init(3) == {}
