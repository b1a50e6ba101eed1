"""Methods without a memory, against convex programs, the definitions that they state, and each other's limits."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import mtlcore
from mtlcore import StepView
from mtlcore.errors import ConfigurationError, LossError
from mtlplugins.aggregators.auto_lambda import _shortest
from mtlplugins.grouping import group_means
from mtlplugins.solvers.simplex import project_simplex, settled
from mtlplugins.solvers.simplex_quadratic import minimise, minimise_above
from mtlverify import references
from mtlverify.references import NoUniqueAnswer


def rows(seed: int, k: int = 4, p: int = 9) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.rand(k, 1, generator=generator, dtype=torch.float64) * 3 + 0.1
    return sizes * torch.randn(k, p, generator=generator, dtype=torch.float64)


def ask(name: str, j: Tensor, losses: Tensor | None = None, state: Any = None, step: int = 0, **options: Any):
    method = mtlcore.create("aggregator", name, **options)
    losses = torch.ones(len(j), dtype=torch.float64) if losses is None else losses
    view = StepView(losses=losses, jacobian=j, step=step, needs=method.needs)
    answer = method.aggregate(view, method.init(len(j)) if state is None else state)
    return (j.T @ answer.weights if answer.direction is None else answer.direction), answer


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("conicgrad", {}),
        ("conicgrad", {"c": 0.9}),
        ("imgrad", {}),
        ("capped-mgda", {}),
        ("capped-mgda", {"share": 0.3}),
        ("sdmgrad", {"double_sampling": False}),
        ("pivrg", {}),
        ("pcd", {"beta": 0.0}),
        ("pcd", {"beta": 0.0, "primary": 1, "tau": 0.5}),
    ],
)
def test_200_random_jacobians_against_a_convex_program(name, options):
    method = mtlcore.create("aggregator", name, **options)
    reference, compared = references.reference_for(method), 0
    for seed in range(30):
        j = rows(seed, k=2 + seed % 5, p=3 + seed % 7)
        try:
            exact = reference(j.numpy(), method, np.ones(len(j)))
        except NoUniqueAnswer:
            continue
        got, _ = ask(name, j, **options)
        apart = float((got - torch.from_numpy(exact.direction)).norm())
        assert apart <= 1e-6 * exact.size + exact.distance, seed
        compared += 1
    assert compared >= 24


# --- limits -----------------------------------------------------------------------------------------------------------


def test_capped_mgda_is_mgda_at_one_end_and_the_mean_at_the_other():
    for seed in range(10):
        j = rows(seed)
        torch.testing.assert_close(ask("capped-mgda", j, share=0.25)[0], ask("mgda", j)[0], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(ask("capped-mgda", j, share=1.0)[0], j.mean(0))
        weights = ask("capped-mgda", j, share=0.5)[1].weights
        assert float(weights.max()) <= 0.5 + 1e-12


@pytest.mark.parametrize(("seed", "k", "p", "share"), [(584, 6, 5, 0.5), (849, 12, 4, 0.75), (1846, 12, 4, 0.75)])
def test_capped_mgda_leaves_a_corner_at_which_every_weight_is_at_a_bound(seed, k, p, share):
    """One index alone cannot be released there: the sum of the weights holds it. It was fixed and released again and
    again."""
    rng = np.random.default_rng(seed)
    assert (rng.integers(4, 13), rng.integers(1, 6)) == (k, p)
    j = rng.standard_normal((k, p))
    if seed % 2:
        j[-1] = j[0]
    weights = ask("capped-mgda", torch.from_numpy(j), share=share)[1].weights.numpy()
    cap, gains = 1.0 / (share * k), j @ (j.T @ weights)
    can_fall, can_rise = weights > 1e-9, weights < cap - 1e-9
    assert gains[can_fall].max() <= gains[can_rise].min() + 1e-9 * np.abs(gains).max()


def test_capped_mgda_maximises_the_mean_gain_of_the_worst_half():
    """The conditional value at risk: no other unit direction, among many tried, has a larger one."""
    for seed in range(10):
        j = rows(seed, p=5)
        d, _ = ask("capped-mgda", j, share=0.5)
        tried = torch.randn(5, 2000, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        near = d[:, None] / d.norm() + 0.05 * tried[:, :500]
        for others in (tried, near):
            assert float(_worst_half(j, others).max()) <= float(_worst_half(j, d)) * (1 + 1e-9)


def _worst_half(j: Tensor, direction: Tensor) -> Tensor:
    """Mean of the two smallest of four gains of a unit direction, or of several in columns."""
    return (j @ (direction / direction.norm(dim=0))).sort(dim=0).values[:2].mean(0)


def test_sdmgrad_is_mgda_without_the_mean_and_the_mean_with_much_of_it():
    j = rows(3)
    torch.testing.assert_close(ask("sdmgrad", j, double_sampling=False, lambda_=0.0)[0], ask("mgda", j)[0])
    torch.testing.assert_close(
        ask("sdmgrad", j, double_sampling=False, lambda_=1e9)[0], j.mean(0), rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize(("seed", "lambda_"), [(83, 1.0), (436, 1.0), (552, 0.3), (1219, 1.0), (2446, 1.0)])
def test_sdmgrad_of_more_tasks_than_parameters_has_an_answer(seed, lambda_):
    """What the shift leaves of a row may be rounding; the system of its cosines was then singular."""
    rng = np.random.default_rng(seed)
    k, p = int(rng.integers(3, 13)), int(rng.integers(1, 4))
    j = rng.standard_normal((k, p))
    if seed % 2:
        j[-1] = j[0]
    d, answer = ask("sdmgrad", torch.from_numpy(j), double_sampling=False, lambda_=lambda_)
    shifted, point = j + lambda_ * j.mean(0), d.numpy() * (1.0 + lambda_)
    assert answer.diagnostics["solver"] in ("optimal", "stationary")
    assert (shifted @ point).min() >= point @ point - 1e-7 * np.abs(shifted).max() ** 2


def test_conicgrad_keeps_its_angle_and_its_length_and_harms_nobody():
    for seed in range(60):
        j = rows(seed, k=3, p=4)
        d, answer = ask("conicgrad", j, c=0.6, fallback=False)
        mean = j.mean(0)
        assert float((j @ d).min()) >= -1e-9 * float(d.norm()) * float(j.norm())
        if answer.diagnostics["solver"] == "outside":
            assert float(d.norm()) == 0.0
        elif float(d.norm()) > 0:
            assert float(d.norm()) == pytest.approx(float(mean.norm()), rel=1e-7)
            assert float(d @ mean) >= (0.6 - 1e-7) * float(d.norm() * mean.norm())


def test_conicgrad_has_an_answer_where_one_long_row_is_the_mean_but_for_rounding():
    """Found by a hunt: the parts of the rows at right angles to the mean were rounding, and their system singular."""
    j = torch.tensor(
        [
            [5.357789632398635e-05, -0.00027366745052859187, 0.00013875964214093983, 1.5392050045193173e-05],
            [48.27599334716797, 46.87586975097656, -38.2806396484375, -27.71468162536621],
            [0.009655534289777279, 0.022298647090792656, 0.0040478999726474285, -0.010240423493087292],
            [-2.579951286315918, 0.635481595993042, -1.0814982652664185, 0.23099355399608612],
            [3.8656742572784424, 0.6804858446121216, 1.2514047622680664, -0.26554739475250244],
        ]
    )
    turned = 5.0 * torch.eye(4)
    turned[0, 0], turned[0, 3], turned[3, 0], turned[3, 3] = 3.0, 4.0, -4.0, 3.0
    for angles in (5.0 * torch.eye(4), turned):
        rows = (j @ angles).double()
        d, _ = ask("conicgrad", rows)
        assert float(((rows @ d) / rows.norm(dim=1)).min()) >= -1e-9 * float(d.norm())


def test_conicgrad_leaves_the_cone_only_with_the_fallback():
    j = torch.tensor([[10.0, 0.0], [-1.0, 0.1]], dtype=torch.float64)
    inside, answer = ask("conicgrad", j, c=0.9, fallback=False)
    assert answer.diagnostics["solver"] == "outside"
    assert not inside.any()
    d, answer = ask("conicgrad", j, c=0.9)
    assert "fallback" in answer.diagnostics
    assert float((j @ d).min()) > 0.0


def test_imgrad_weighs_its_terms_by_the_cosine_of_mean_and_min_norm_point():
    j = rows(5)
    _, answer = ask("imgrad", j)
    expected = torch.nn.functional.cosine_similarity(j.mean(0), ask("mgda", j)[0], 0)
    assert answer.diagnostics["balance"] == pytest.approx(float(expected), abs=1e-9)


def test_pivrg_solves_its_equation_with_the_priorities_of_its_history():
    j, method = rows(7), mtlcore.create("aggregator", "pivrg", window=2, least_temperature=20.0)
    state, scale = method.init(4), torch.ones(4, dtype=torch.float64)
    for step in range(6):
        scale = scale * torch.tensor([0.9, 1.0, 1.1, 0.7], dtype=torch.float64)
        view = StepView(losses=scale, jacobian=j, step=step, needs=method.needs)
        answer = method.aggregate(view, state)
        state, w, p = answer.state, answer.weights, answer.diagnostics["priority"]
        torch.testing.assert_close(j @ (j.T @ w), (p / w).sqrt(), rtol=1e-9, atol=1e-12)
    last = torch.tensor([0.9, 1.0, 1.1, 0.7], dtype=torch.float64)
    ratio = (last**3 + last**4) / (last + last**2)
    s = 100 * (ratio - 1)
    temperature = max(float(s.max() - s.min()) / np.log(2.0), 20.0)
    torch.testing.assert_close(p, 4 * torch.softmax(s / temperature, 0))
    assert float(p.max() / p.min()) <= 2.0 + 1e-9


def test_emtl_weighs_a_task_that_has_nearly_all_of_the_contribution_by_its_data_and_not_by_rounding():
    """Found by a hunt: (r_i / r - 1) - Var / r^2 was 3 - 3, and the order of the tasks decided what was left."""
    j = torch.tensor([[-619.0], [9999959.0], [1e12], [1e-6]], dtype=torch.float64)
    losses = torch.tensor([2.0**-40, 2.0**-40, 0.003473428627439651, 2.0**-40], dtype=torch.float64)
    order = [0, 3, 1, 2]
    (_, first), (_, second) = ask("emtl", j, losses), ask("emtl", j[order], losses[order])
    torch.testing.assert_close(second.weights, first.weights[order], rtol=1e-12, atol=0)
    share = [Fraction(float(v)) / abs(Fraction(float(g))) for v, g in zip(losses, j[:, 0])]
    share = [r / sum(share) for r in share]
    excess = [sum(s * (r - s) for s in share) for r in share]
    inverse = [r * sum(Fraction(float(v)) for v in losses) * 4 / Fraction(float(v)) for r, v in zip(share, losses)]
    weights = [max(Fraction(0), 1 + Fraction(0.1) * 2 * e * i) for e, i in zip(excess, inverse)]
    expected = torch.tensor([float(4 * w / sum(weights)) for w in weights], dtype=torch.float64)
    torch.testing.assert_close(first.weights, expected, rtol=1e-12, atol=0)


def test_emtl_is_a_gradient_step_on_losses_plus_the_variance_of_contributions():
    j = rows(9)
    losses = torch.tensor([1.0, 3.0, 0.2, 0.7], dtype=torch.float64)
    for variance in ("plain", "relative"):
        leaf = losses.clone().requires_grad_()
        r = leaf / j.norm(dim=1)
        spread = r.var(unbiased=False)
        if variance == "relative":
            spread = spread / r.mean() ** 2 * losses.sum()
        (w,) = torch.autograd.grad(leaf.sum() + 0.05 * spread, leaf)
        w = w.clamp_min(0.0)
        _, answer = ask("emtl", j, losses, lamb=0.05, variance=variance)
        torch.testing.assert_close(answer.weights, w * 4 / w.sum())


def test_wpcgrad_with_one_certain_task_is_deterministic_and_protects_it():
    for seed in range(20):
        for mode in ("order", "protect-one"):
            j = rows(seed, k=3, p=3)
            options = {"mode": mode, "scheme": "fixed", "priorities": (1e-300, 1.0, 1e-300)}
            d, answer = ask("wpcgrad", j, **options)
            assert answer.diagnostics["protected"] == "task1"
            assert float(d @ j[1]) >= float(j[1] @ j[1]) * (1 - 1e-12)


def test_wpcgrad_draws_the_protected_task_in_proportion_to_its_priority():
    j = torch.tensor([[1.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    method = mtlcore.create("aggregator", "wpcgrad", scheme="fixed", priorities=(3.0, 1.0))
    generator, first = torch.Generator().manual_seed(0), 0
    for _ in range(2000):
        view = StepView(losses=torch.ones(2), jacobian=j, generator=generator, needs=method.needs)
        first += method.aggregate(view, {}).diagnostics["protected"] == "task0"
    assert first / 2000 == pytest.approx(0.75, abs=0.04)  # four standard deviations


WINDOWS = [(4.0, 1.0), (2.0, 1.0), (1.0, 0.5)]
"""Mean losses of two tasks in three windows of two steps."""


@pytest.mark.parametrize(
    ("scheme", "options", "expected"),
    [
        # Relative to the first window: (1/2)^2 and 1 in the third, (1/4)^2 and (1/2)^2 in the fourth.
        ("loss", {"gamma": 2.0}, [(1.0, 1.0), (1.0, 1.0), (0.25, 1.0), (1 / 16, 0.25)]),
        # Relative to the window before: 1/2 and 1 in the third, 1/2 and 1/2 in the fourth.
        ("dwa", {"temperature": 0.5}, [(1.0, 1.0), (1.0, 1.0), (math.exp(1.0), math.exp(2.0)), (1.0, 1.0)]),
        # -(1 - k) log k with k = exp(-L): (1 - exp(-L)) L.
        ("focal", {"gamma": 1.0}, [(1.0, 1.0), *[tuple((1 - math.exp(-x)) * x for x in w) for w in WINDOWS]]),
        ("focal", {"gamma": 0.0}, [(1.0, 1.0), *WINDOWS]),
    ],
)
def test_wpcgrad_makes_priorities_of_the_windows_that_are_over(scheme, options, expected):
    method = mtlcore.create("aggregator", "wpcgrad", scheme=scheme, window=2, **options)
    j, state = torch.eye(2, dtype=torch.float64), method.init(2)
    for step in range(8):
        losses = torch.tensor((*WINDOWS, (7.0, 7.0))[step // 2], dtype=torch.float64)
        draws = torch.Generator().manual_seed(step)
        view = StepView(losses=losses, jacobian=j, generator=draws, needs=method.needs, step=step)
        logs, _ = method._log_priorities(view, state)
        state = method.aggregate(view, state).state
        first, second = expected[step // 2]
        assert float(np.exp(logs[0] - logs[1])) == pytest.approx(first / second)


def test_wpcgrad_protects_the_task_with_the_higher_priority_and_bears_extreme_losses():
    j = torch.tensor([[1.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    for scheme, losses in (("loss", (1e-300, 1e300)), ("dwa", (1e-300, 1e300)), ("focal", (1e-300, 1e300))):
        method = mtlcore.create("aggregator", "wpcgrad", scheme=scheme, window=1)
        state = method.init(2)
        for step, now in enumerate([(1.0, 1.0), losses, losses]):
            draws = torch.Generator().manual_seed(step)
            view = StepView(
                losses=torch.tensor(now).double(), jacobian=j, generator=draws, needs=method.needs, step=step
            )
            found = method.aggregate(view, state)
            state = found.state
        assert found.diagnostics["protected"] == "task1"
        assert torch.equal(found.weights @ j, torch.tensor([-0.5, 1.5]).double())  # g_0 without its part along g_1
        bad = StepView(losses=torch.tensor([-1.0, 1.0]).double(), jacobian=j, generator=draws, needs=method.needs)
        with pytest.raises(LossError, match="task 'task0'"):
            method.aggregate(bad, method.init(2))


# --- robust means -----------------------------------------------------------------------------------------------------


def test_pcd_gives_every_other_task_its_share_or_drops_what_cannot_be_had():
    for seed in range(20):
        j = rows(seed)
        d, answer = ask("pcd", j, tau=0.2, primary=1)
        torch.testing.assert_close(d.norm(), j[1].norm())
        shares = j @ d / j.norm(dim=1) / d.norm()  # of |h_j| |d'|, and |d'| >= 0.2 where the constraints hold
        assert answer.diagnostics["solver"] in ("optimal", "trivial")
        assert float(shares[[0, 2, 3]].min()) > 0.0
    opposed = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    d, answer = ask("pcd", opposed)
    assert d.tolist() == [1.0, 0.0]
    assert "infeasible" in answer.diagnostics["solver"]
    assert not ask("pcd", opposed, taus=(0.0, 0.0, 0.0))[1].diagnostics["solver"].startswith("infeasible")
    assert not ask("pcd", torch.stack([0.0 * opposed[0], opposed[1]]))[0].any()


def test_krum_takes_the_gradients_nearest_to_the_others():
    for seed in range(50):
        j = rows(seed, k=6)
        for distance, power in (("squared", 2), ("plain", 1)):
            apart = torch.cdist(j, j, compute_mode="donot_use_mm_for_euclid_dist") ** power
            scores = apart.sort(dim=1).values[:, 1 : 6 - 1 - 2 + 1].sum(1)
            expected = torch.zeros(6, dtype=torch.float64)
            expected[scores.topk(2, largest=False).indices] = 0.5
            _, answer = ask("krum", j, broken=1, selected=2, distance=distance)
            torch.testing.assert_close(answer.weights, expected)
            torch.testing.assert_close(answer.diagnostics["scores"], scores)


def test_krum_shares_a_tie():
    j = torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(ask("krum", j)[1].weights, torch.full((4,), 0.25, dtype=torch.float64))


def test_a_wild_task_moves_neither_krum_nor_the_trimmed_mean_far():
    j = torch.ones(5, 3, dtype=torch.float64) + 0.01 * rows(1, k=5, p=3)
    j[2] = torch.tensor([1e9, -1e9, 1e9])
    for name in ("krum", "trimmed-mean"):
        assert float((ask(name, j)[0] - 1.0).abs().max()) < 0.2
    torch.testing.assert_close(ask("trimmed-mean", j, trim=0)[0], j.mean(0))


# --- solvers ----------------------------------------------------------------------------------------------------------


def test_grouping_is_the_best_of_all_partitions():
    import itertools

    generator = np.random.default_rng(0)
    for _ in range(12):
        values = generator.normal(size=6)
        means, _ = group_means(values, 3)
        best = min(_spread(values, labels) for labels in itertools.product(range(3), repeat=6))
        assert float(((values - means) ** 2).sum()) == pytest.approx(best, rel=1e-9)


def _spread(values, labels):
    labels = np.array(labels)
    return float(sum(((values[labels == g] - values[labels == g].mean()) ** 2).sum() for g in set(labels.tolist())))


@pytest.mark.parametrize("scale", [1.0, 1e28, 1e298])
def test_equal_pulls_stay_equal_however_long_the_step(scale):
    """Two tasks with the least pull, up to rounding, share the weight as before; the order of tasks decides nothing."""
    pull = scale * np.array([3.0, 1.0, 2.0, 1.0 + 4e-16, 3.0 - 8e-16])
    w = np.array([0.2, 0.3, 0.1, 0.2, 0.2])
    for order in itertools.permutations(range(5)):
        listed = list(order)
        clean = settled(pull[listed], 3.0 * scale)
        back = np.argsort(listed)
        assert clean[back][1] == clean[back][3] == 0.0
        assert clean[back][0] == clean[back][4] == pytest.approx(2.0 * scale)
        if scale > 1.0:
            np.testing.assert_allclose(project_simplex(w[listed] - clean)[back], [0, 0.55, 0, 0.45, 0], atol=1e-15)


@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_the_shortest_combination_of_columns_is_the_min_norm_point(spread):
    """<h_j, h> >= |h|^2 for all columns is what defines it; or it is zero. The columns' lengths may differ."""
    generator = np.random.default_rng(0)
    for k, p in itertools.product(range(1, 6), (2, 5)):
        columns = generator.standard_normal((p, k)) * 10.0 ** generator.uniform(-spread, spread, k)
        w = _shortest(columns, np.linalg.norm(columns, axis=0))
        assert w.min() >= 0
        assert w.sum() == pytest.approx(1.0)
        point = columns @ w
        slack = (columns.T @ point - point @ point) / (np.linalg.norm(columns, axis=0) * np.linalg.norm(columns @ w))
        rounding = 1e-15 * np.linalg.norm(columns, axis=0).min()
        assert slack.min() > -1e-9 or np.linalg.norm(point) < 100.0 * rounding


def test_the_simplex_projection_is_the_nearest_point():
    generator = np.random.default_rng(1)
    for _ in range(50):
        point = generator.normal(size=5) * 10.0 ** generator.integers(-3, 8)
        w = project_simplex(point)
        assert w.min() >= 0.0
        assert w.sum() == pytest.approx(1.0, rel=1e-9)
        others = generator.dirichlet(np.ones(5), 200)
        assert ((point - w) @ (others - w).T <= 1e-9 * np.abs(point).max()).all()  # the variational inequality


def test_the_quadratic_program_agrees_with_clarabel():
    """Singular ones, and linear terms of every size, included."""
    import cvxpy as cp

    generator = np.random.default_rng(2)
    for trial in range(40):
        n, rank = int(generator.integers(2, 7)), int(generator.integers(1, 7))
        root, c = generator.normal(size=(rank, n)), generator.normal(size=n)
        f = generator.normal(size=n) * 10.0 ** generator.uniform(-3, 3)
        x = cp.Variable(n, nonneg=True)
        simplex, half = [cp.sum(x) == 1], 0.5 * cp.sum_squares(root @ x)
        free = cp.Problem(cp.Minimize(half + f @ x), simplex).solve(solver=cp.CLARABEL)
        found = minimise(root.T @ root, f)
        assert 0.5 * found @ root.T @ root @ found + f @ found <= free + 1e-6 * (1.0 + abs(free)), trial
        a = float(generator.uniform(c.min(), c.max()))
        over = cp.Problem(cp.Minimize(half), [*simplex, c @ x >= a]).solve(solver=cp.CLARABEL)
        above = minimise_above(root.T @ root, c, a)
        assert 0.5 * above @ root.T @ root @ above <= over + 1e-6 * (1.0 + abs(over)), trial
        assert c @ above >= a - 1e-9
        for point in (found, above):
            assert point.min() >= 0
            assert point.sum() == pytest.approx(1.0, rel=1e-12)


def test_a_quadratic_program_of_any_size_has_an_answer():
    """A linear term of 1e120 beside a matrix of ones used to end in NaN."""
    for scale in (1e-300, 1e-120, 1.0, 1e120, 1e300):
        assert minimise(np.ones((1, 1)), np.full(1, scale)).tolist() == [1.0]
        assert minimise(np.eye(3), scale * np.array([3.0, 1.0, 2.0])).sum() == pytest.approx(1.0)
    assert minimise(np.eye(3), 1e120 * np.array([3.0, 1.0, 2.0])).tolist() == [0.0, 1.0, 0.0]
    np.testing.assert_allclose(minimise(np.zeros((2, 2)), np.zeros(2)), 0.5)
    for scale in (0.0, 1.0, 1e9, 1e120):  # entries that are alike get alike numbers
        alike = minimise(np.ones((3, 3)), scale * np.array([1.0, 1.0, 2.0]))
        np.testing.assert_allclose(alike, [0.5, 0.5, 0.0] if scale else 1 / 3, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-120, 1e-3, 1.0, 2500.0, 1e120])
def test_forum_solves_its_program_at_every_scale(scale):
    """It refuted "finite": one gradient of 2500 ended in NaN, and many rows in less than the optimum."""
    upper, lower = rows(3, k=3, p=2), rows(4, k=3, p=2) * scale
    view = StepView(losses=torch.ones(3), jacobian=upper, needs=mtlcore.Needs.JACOBIAN)
    method = mtlcore.create("aggregator", "forum")
    first = StepView(losses=torch.ones(3), jacobian=lower, others=(view,), needs=method.needs)
    answer = method.aggregate(first, method.init(3))
    h, q = (upper / upper.norm(dim=1, keepdim=True)).numpy(), lower.mean(0).numpy()
    length = np.linalg.norm(q)

    def objective(x):
        v = max(0.0, float(x @ (0.1 - h @ q / length / length)))
        point = x @ h + v * q
        return point @ point - v * 0.1 * length * length

    found = answer.diagnostics["mixture"].numpy()  # after one step l is the minimiser itself
    least = min(objective(x) for x in np.random.default_rng(0).dirichlet(np.ones(3), 2000))
    assert objective(found) <= least + 1e-9 * abs(least)
    assert bool(torch.isfinite(answer.direction).all())


# --- scalarisations and edges ----------------------------------------------------------------------------------------


def test_constant_keeps_the_numbers_and_says_what_is_missing():
    j = rows(0, k=3)
    assert ask("constant", j, weights=(2.0, -1.0, 0.0))[1].weights.tolist() == [2.0, -1.0, 0.0]
    with pytest.raises(ConfigurationError, match="2 entries for 3 tasks"):
        ask("constant", j, weights=(1.0, 1.0))


@pytest.mark.parametrize("form", ["uniform", "normal", "dirichlet", "bernoulli", "one-task"])
def test_random_weights_are_even_on_average(form):
    method, total = mtlcore.create("aggregator", "random", form=form), torch.zeros(3, dtype=torch.float64)
    for seed in range(3000):
        weights = method.aggregate(StepView(losses=torch.ones(3), generator=seed), {}).weights
        assert float(weights.sum()) == pytest.approx(1.0)
        total += weights
    torch.testing.assert_close(total / 3000, torch.full((3,), 1 / 3, dtype=torch.float64), atol=0.035, rtol=0.0)


def test_scalarisations_point_to_the_preference():
    """One small step of the losses along minus the weights brings cosmos and pbi nearer to their ray."""
    r = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    losses = torch.tensor([3.0, 1.0, 1.0], dtype=torch.float64)

    def cosine(x: Tensor) -> float:
        return float(torch.nn.functional.cosine_similarity(x, r, 0))

    for name, more in (("cosmos", {"lamb": 10.0}), ("pbi", {})):
        method = mtlcore.create("aggregator", name, preferences=tuple(r.tolist()), **more)
        w = method.aggregate(StepView(losses=losses), {}).weights
        assert cosine(losses - 1e-3 * w) > cosine(losses)


@pytest.mark.parametrize("name", ["go4align", "gradnorm", "db-mtl", "emtl", "pivrg"])
def test_a_negative_loss_is_refused_by_name(name):
    with pytest.raises(LossError, match="task1"):
        ask(name, rows(0, k=2), torch.tensor([1.0, -1.0], dtype=torch.float64))


def test_go4align_and_db_mtl_leave_out_a_loss_of_zero():
    losses = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)
    j = rows(1, k=3)
    assert ask("go4align", j, losses)[1].weights[1] == 0.0
    d, answer = ask("db-mtl", j, losses)
    assert answer.head_weights[1] == 0.0
    torch.testing.assert_close(d, ask("db-mtl", j[[0, 2]], losses[[0, 2]])[0])


def test_references_read_the_radius_that_imgrad_uses():
    assert references.reference_for(mtlcore.create("aggregator", "imgrad")) is not None
    assert references.reference_for(SimpleNamespace(reference="conicgrad", c=0.5, fallback=True)) is not None
