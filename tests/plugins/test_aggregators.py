"""Every gradient method against its own definition, and all of them at the edges."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import mtlcore
from mtlcore import Aggregation, Needs, StepView
from mtlcore.errors import ConfigurationError, LossError

ALL: list[tuple[str, dict[str, Any]]] = [
    ("ls", {}),
    ("sum", {}),
    ("mgda", {}),
    ("mgda", {"normalize": "l2"}),
    ("mgda", {"normalize": "loss"}),
    ("mgda", {"normalize": "loss+"}),
    ("pcgrad", {}),
    ("cagrad", {}),
    ("cagrad", {"c": 1.5, "rescale": "1+c^2"}),
    ("upgrad", {}),
    ("dualproj", {}),
    ("fairgrad", {"alpha": 2.0}),
    ("nash-mtl", {}),
    ("imtl-g", {}),
    ("aligned-mtl", {}),
    ("aligned-mtl", {"scale": "rmse", "reduction": "sum"}),
    ("config", {}),
    ("gradops", {}),
    ("gradops", {"project": "always", "alpha": 1.0}),
]
every = pytest.mark.parametrize(("name", "options"), ALL, ids=lambda v: str(v))


def jacobian(seed: int, k: int, p: int) -> Tensor:
    return torch.randn(k, p, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ask(rows: Tensor, name: str, *, losses: Tensor | None = None, **options: Any) -> tuple[Tensor, Aggregation]:
    method = mtlcore.create("aggregator", name, **options)
    losses = torch.arange(1.0, len(rows) + 1) if losses is None else losses
    view = StepView(losses=losses, jacobian=rows, needs=method.needs)
    answer = method.aggregate(view, method.init(len(rows)))
    assert answer.weights.shape == (len(rows),)
    assert answer.weights.dtype == torch.float64
    return rows.T.double() @ answer.weights, answer


# --- all of them ----------------------------------------------------------------------------------------------------


@every
def test_edges_are_finite(name, options):
    row = torch.tensor([[0.6, -0.8, 0.0]], dtype=torch.float64)
    for rows in (
        row,
        torch.zeros(1, 3),
        torch.zeros(4, 3),
        row.expand(5, 3),
        torch.cat([row, -row]),
        torch.cat([row, torch.zeros(2, 3, dtype=torch.float64)]),
        torch.cat([row, 1e-10 * row, -1e10 * row]),
        jacobian(0, 7, 2),
    ):
        d, answer = ask(rows, name, **options)
        assert d.isfinite().all()
        for value in (answer.weights, answer.head_weights):
            assert value is None or bool(value.isfinite().all())


@every
def test_one_task_gives_a_positive_multiple_of_its_gradient(name, options):
    rows = torch.tensor([[3.0, -4.0]], dtype=torch.float64)
    d, _ = ask(rows, name, **options)
    assert d.norm() > 0
    torch.testing.assert_close(d / d.norm(), rows[0] / 5.0)


@every
def test_scaling_all_gradients_by_any_amount(name, options):
    degree = float(getattr(mtlcore.create("aggregator", name, **options), "degree", 1.0))
    rows = jacobian(1, 4, 9)
    d, _ = ask(rows, name, **options)
    for exponent in (-80, -40, 33, 66):  # 1e-24 .. 1e+20, exactly representable factors
        t = 2.0**exponent
        scaled, _ = ask(t * rows, name, **options)
        torch.testing.assert_close(scaled * t**-degree, d, rtol=1e-9, atol=1e-12)


@every
def test_reordering_the_tasks_reorders_the_weights(name, options):
    if name == "pcgrad":
        pytest.skip("its order is random: equivariant in distribution only")
    order = [2, 0, 4, 3, 1]
    rows, losses = jacobian(2, 5, 11), torch.tensor([1.0, 5.0, 2.0, 0.5, 3.0])
    _, first = ask(rows, name, losses=losses, **options)
    _, second = ask(rows[order], name, losses=losses[order], **options)
    torch.testing.assert_close(second.weights, first.weights[order], rtol=1e-9, atol=1e-12)


@every
def test_a_float32_jacobian_gives_the_answer_of_its_exact_gramian(name, options):
    rows = jacobian(3, 4, 50).float()
    _, single = ask(rows, name, **options)
    _, double = ask(rows.double(), name, **options)
    torch.testing.assert_close(single.weights, double.weights, rtol=1e-10, atol=1e-12)


@every
def test_the_view_is_not_written_to(name, options):
    rows = jacobian(4, 3, 6)
    gramian = rows @ rows.T
    before = gramian.clone()
    method = mtlcore.create("aggregator", name, **options)
    view = StepView(losses=torch.ones(3), gramian=gramian, needs=method.needs)
    first = method.aggregate(view, method.init(3)).weights
    assert torch.equal(gramian, before)
    view = StepView(losses=torch.ones(3), gramian=gramian, needs=method.needs)
    assert torch.equal(method.aggregate(view, method.init(3)).weights, first)


# --- scalarisation ----------------------------------------------------------------------------------------------------


def test_ls_and_sum_read_losses_only():
    for name, expected in (("ls", 1 / 3), ("sum", 1.0)):
        method = mtlcore.create("aggregator", name)
        assert method.needs == Needs.LOSSES
        assert method.aggregate(StepView(losses=torch.ones(3)), {}).weights.tolist() == pytest.approx([expected] * 3)


def test_ls_draws_weights_once_and_a_task_keeps_its_own():
    rows, losses = torch.eye(4), torch.ones(4)
    drawn = [mtlcore.aggregate(mtlcore.create("aggregator", "ls", draw=n), rows, losses) for n in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.allclose(drawn[0], drawn[2])
    assert float(drawn[0].sum()) == pytest.approx(1.0)
    three = mtlcore.aggregate(mtlcore.create("aggregator", "ls", draw=1), torch.eye(3), torch.ones(3))
    torch.testing.assert_close(three / three[0], drawn[0][:3] / drawn[0][0])
    with pytest.raises(ConfigurationError, match="give one of them"):
        mtlcore.create("aggregator", "ls", draw=1, weights=[1.0, 2.0])


def test_ls_with_weights():
    method = mtlcore.create("aggregator", "ls", weights=[1.0, 3.0, 0.0])
    assert method.aggregate(StepView(losses=torch.ones(3)), {}).weights.tolist() == [0.25, 0.75, 0.0]
    partial = StepView(losses=torch.ones(2), task_index=(0, 1))
    assert method.aggregate(partial, {}).weights.tolist() == [0.25, 0.75]
    with pytest.raises(ConfigurationError, match="more tasks"):
        method.aggregate(StepView(losses=torch.ones(4)), {})
    with pytest.raises(ConfigurationError, match="all zero"):
        method.aggregate(StepView(losses=torch.ones(1), task_index=(2,)), {})
    for n in (2, 4):
        with pytest.raises(ConfigurationError, match=f"weights has 3 entries for {n} tasks"):
            method.init(n)
    with pytest.raises(ConfigurationError, match="weights"):
        mtlcore.create("aggregator", "ls", weights=[-1.0, 2.0])


# --- MGDA -------------------------------------------------------------------------------------------------------------


def test_mgda_by_hand():
    d, answer = ask(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), "mgda")
    torch.testing.assert_close(d, torch.tensor([0.4, 0.8], dtype=torch.float64))
    assert answer.diagnostics["squared_norm"] == pytest.approx(0.8)


@pytest.mark.parametrize("normalize", ["none", "l2", "loss", "loss+"])
def test_mgda_is_the_min_norm_point_of_the_rescaled_gradients(normalize):
    rows, losses = jacobian(5, 3, 6), torch.tensor([0.5, 2.0, 8.0], dtype=torch.float64)
    norms = rows.norm(dim=1)
    lengths = {"none": torch.ones(3), "l2": norms, "loss": losses, "loss+": losses * norms}[normalize].double()
    scaled = rows / lengths[:, None]
    d, _ = ask(rows, "mgda", losses=losses, normalize=normalize)
    assert (scaled @ d - d @ d).min() >= -1e-12
    # In the hull, by a fine grid of the simplex.
    n = 300
    grid = torch.tensor([(i / n, j / n, 1 - (i + j) / n) for i in range(n + 1) for j in range(n + 1 - i)]).double()
    assert (grid @ scaled).norm(dim=1).min() == pytest.approx(float(d.norm()), rel=1e-3)


def test_mgda_stops_where_a_task_has_no_gradient():
    rows = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    d, answer = ask(rows, "mgda")
    assert d.norm() == 0
    assert answer.weights.tolist() == [0.0, 1.0]
    torch.testing.assert_close(ask(rows, "mgda", normalize="l2")[0], rows[0])


@pytest.mark.parametrize("normalize", ["loss", "loss+"])
def test_mgda_names_the_task_whose_loss_it_cannot_divide_by(normalize):
    with pytest.raises(LossError, match="task1"):
        ask(jacobian(0, 2, 3), "mgda", losses=torch.tensor([1.0, 0.0]), normalize=normalize)


# --- PCGrad -----------------------------------------------------------------------------------------------------------


def pcgrad_in_order(rows: Tensor, orders: tuple[tuple[int, ...], ...]) -> Tensor:
    out = torch.zeros_like(rows[0])
    for i, order in enumerate(orders):
        g = rows[i].clone()
        for j in order:
            if j != i and g @ rows[j] < 0:
                g = g - (g @ rows[j]) / (rows[j] @ rows[j]) * rows[j]
        out = out + g
    return out


def test_pcgrad_is_one_of_the_outcomes_of_its_algorithm_and_reaches_several():
    rows = torch.tensor([[1.0, 0.0, 0.2], [-0.8, 0.6, 0.0], [-0.7, -0.6, 0.3]], dtype=torch.float64)
    outcomes = [
        pcgrad_in_order(rows, orders) for orders in itertools.product(itertools.permutations(range(3)), repeat=3)
    ]
    method = mtlcore.create("aggregator", "pcgrad")
    reached = set()
    for seed in range(60):
        view = StepView(losses=torch.ones(3), jacobian=rows, generator=seed)
        d = rows.T @ method.aggregate(view, {}).weights
        distances = [float((d - o).norm()) for o in outcomes]
        assert min(distances) <= 1e-12
        reached.add(round(float(d[0]), 9))
    assert len(reached) > 1


def test_pcgrad_uses_the_given_generator_only():
    rows, method = jacobian(17, 6, 4), mtlcore.create("aggregator", "pcgrad")
    before = torch.random.get_rng_state()
    answers = [
        method.aggregate(StepView(losses=torch.ones(6), jacobian=rows, generator=seed), {}).weights
        for seed in (1, 1, 2)
    ]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(answers[0], answers[1])
    assert not torch.equal(answers[0], answers[2])


def test_pcgrad_mean_is_the_sum_over_k():
    rows = jacobian(0, 3, 4)
    torch.testing.assert_close(3 * ask(rows, "pcgrad", reduction="mean")[0], ask(rows, "pcgrad")[0])


# --- CAGrad, UPGrad, DualProj ---------------------------------------------------------------------------------------


def test_cagrad_at_its_limits():
    rows = jacobian(6, 4, 9)
    torch.testing.assert_close(ask(rows, "cagrad", c=0.0)[0], rows.mean(0))
    far, _ = ask(rows, "cagrad", c=1e6)
    near, _ = ask(rows, "mgda")
    torch.testing.assert_close(far / far.norm(), near / near.norm(), atol=1e-5, rtol=0)


def test_cagrad_rescaling():
    rows = jacobian(6, 4, 9)
    plain, _ = ask(rows, "cagrad", c=2.0)
    torch.testing.assert_close(ask(rows, "cagrad", c=2.0, rescale="1+c^2")[0] * 5.0, plain)
    torch.testing.assert_close(ask(rows, "cagrad", c=2.0, rescale="1+c")[0] * 3.0, plain)


@pytest.mark.parametrize("c", [0.3, 1.0])
def test_cagrad_beats_every_other_direction_in_its_ball(c):
    rows = jacobian(7, 3, 3)
    d, _ = ask(rows, "cagrad", c=c)
    mean = rows.mean(0)
    radius = c * mean.norm()
    assert (d - mean).norm() == pytest.approx(float(radius), rel=1e-10)
    others = mean + radius * torch.nn.functional.normalize(jacobian(8, 20_000, 3), dim=1)
    assert (others @ rows.T).min(dim=1).values.max() <= (rows @ d).min() + 1e-12


def test_upgrad_and_dualproj_by_hand():
    # g_1 = (1, 0), g_2 = (-1, 1): each projects to what it is without its part along the other.
    rows = torch.tensor([[1.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(ask(rows, "upgrad")[0], torch.tensor([0.25, 0.75], dtype=torch.float64))
    torch.testing.assert_close(ask(rows, "dualproj")[0], torch.tensor([0.0, 0.5], dtype=torch.float64))


def test_upgrad_averages_the_projections_of_the_rows():
    rows = jacobian(9, 4, 3)
    units = rows / rows.norm(dim=1, keepdim=True)
    total = torch.zeros(3, dtype=torch.float64)
    for i in range(4):
        # The nearest point of the cone lies on one of its faces: try them all.
        g = rows[i].clone()
        best = g
        for size in range(5):
            for support in itertools.combinations(range(4), size):
                s = units[list(support)]
                y = torch.linalg.lstsq(s.T, -g[:, None]).solution[:, 0] if size else torch.zeros(0).double()
                x = g + s.T @ y
                if (y >= -1e-12).all() and (units @ x >= -1e-9).all():
                    best = x
        total += best / 4
    torch.testing.assert_close(ask(rows, "upgrad")[0], total, rtol=1e-7, atol=1e-9)


def test_without_conflict_the_mean_is_kept():
    rows = jacobian(10, 5, 20).abs()
    for name in ("upgrad", "dualproj"):
        assert ask(rows, name)[1].weights.tolist() == pytest.approx([0.2] * 5, abs=1e-15)


# --- FairGrad, Nash-MTL ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 5.0])
def test_fairgrad_solves_its_equation_at_any_scale(alpha):
    for scale in (1e-10, 1.0, 1e10):
        rows = scale * jacobian(11, 4, 12)
        _, answer = ask(rows, "fairgrad", alpha=alpha)
        w = answer.weights
        torch.testing.assert_close(rows @ (rows.T @ w), w ** (-1.0 / alpha), rtol=1e-9, atol=0.0)


def test_nash_is_fairgrad_with_alpha_one_and_has_constant_length():
    rows = jacobian(12, 5, 12)
    d, answer = ask(rows, "nash-mtl")
    torch.testing.assert_close(answer.weights, ask(rows, "fairgrad", alpha=1.0)[1].weights)
    assert d.norm() == pytest.approx(5**0.5, rel=1e-12)
    torch.testing.assert_close(answer.weights * (rows @ d), torch.ones(5, dtype=torch.float64))


def test_nash_of_two_tasks_is_along_the_bisector():
    rows = torch.tensor([[1e-6, 0.0], [-3e5, 4e5]], dtype=torch.float64)
    d, _ = ask(rows, "nash-mtl")
    bisector = rows[0] / rows[0].norm() + rows[1] / rows[1].norm()
    torch.testing.assert_close(d / d.norm(), bisector / bisector.norm())


def test_nash_and_fairgrad_weigh_the_heads_too_if_asked():
    rows = jacobian(13, 3, 8)
    assert ask(rows, "fairgrad")[1].head_weights is None
    assert ask(rows, "nash-mtl")[1].head_weights is not None
    for name in ("nash-mtl", "fairgrad"):
        _, answer = ask(rows, name, heads="weights")
        assert torch.equal(answer.head_weights, answer.weights)
        _, answer = ask(torch.cat([rows, torch.zeros(1, 8, dtype=torch.float64)]), name, heads="weights")
        assert answer.weights[3] == 0
        assert answer.head_weights[3] == pytest.approx(float(answer.weights[:3].mean()))


def test_nash_reuses_weights_between_updates():
    method = mtlcore.create("aggregator", "nash-mtl", update_every=3)
    fresh = mtlcore.create("aggregator", "nash-mtl")
    state, used, exact = method.init(3), [], []
    for step in range(7):
        view = StepView(losses=torch.ones(3), jacobian=jacobian(step, 3, 8))
        answer = method.aggregate(view, state)
        state = answer.state
        used.append(answer.weights)
        exact.append(fresh.aggregate(view, {}).weights)
    for step in range(7):
        assert torch.equal(used[step], exact[3 * (step // 3)])


def test_nash_does_not_hold_a_task_still_because_its_gradient_was_zero_once():
    rows = jacobian(3, 3, 6)
    silent = rows.clone()
    silent[1] = 0.0
    method = mtlcore.create("aggregator", "nash-mtl", update_every=3)
    first = method.aggregate(StepView(losses=torch.ones(3), jacobian=silent), method.init(3))
    assert first.weights[1] == 0.0
    second = method.aggregate(StepView(losses=torch.ones(3), jacobian=rows, step=1), first.state)
    assert second.diagnostics["reused"]
    assert second.weights[1] == first.weights[[0, 2]].mean()
    assert torch.equal(second.weights, second.head_weights)
    # A step in which no task has a gradient is no update: the next one tries again.
    nothing = method.aggregate(StepView(losses=torch.ones(3), jacobian=0 * rows), method.init(3))
    after = method.aggregate(StepView(losses=torch.ones(3), jacobian=rows, step=1), nothing.state)
    assert "reused" not in after.diagnostics
    assert torch.equal(after.weights, ask(rows, "nash-mtl")[1].weights)


def test_nash_clips_on_request():
    assert ask(jacobian(0, 4, 9), "nash-mtl", max_norm=1.0)[0].norm() == pytest.approx(1.0)
    assert ask(jacobian(0, 4, 9), "nash-mtl", max_norm=10.0)[0].norm() == pytest.approx(2.0)


# --- linear algebra -------------------------------------------------------------------------------------------------


@every
def test_gradients_whose_squares_have_no_digits_left_count_as_zero(name, options):
    """Between 1e-162 and 1e-154 a squared norm is a denormal number, and cosines made with it were up to 2."""
    for seed in range(10):
        rows = jacobian(seed, 4, 3)
        rows[:2] *= torch.tensor([[1e-158], [3e-162]], dtype=torch.float64)
        zero = rows.clone()
        zero[:2] = 0.0
        d, answer = ask(rows, name, **options)
        expected, _ = ask(zero, name, **options)
        assert torch.isfinite(answer.weights).all()
        torch.testing.assert_close(d, expected)


def test_imtl_g_projects_equally_and_its_weights_sum_to_one():
    rows = jacobian(14, 4, 9)
    d, answer = ask(rows, "imtl-g")
    projections = (rows @ d) / rows.norm(dim=1)
    torch.testing.assert_close(projections, projections[:1].expand(4), rtol=1e-9, atol=1e-12)
    assert answer.weights.sum() == pytest.approx(1.0, abs=1e-12)


def test_imtl_g_may_conflict_with_every_task_and_says_so():
    rows = [[-0.007, -0.002, -0.004, 0.006], [0.045, -0.334, -0.894, -0.294], [0.005, -0.166, 0.778, 0.606]]
    d, answer = ask(torch.tensor(rows, dtype=torch.float64), "imtl-g")
    assert (torch.tensor(rows, dtype=torch.float64) @ d).max() < 0
    assert answer.diagnostics["conflicts_with_all"]


def test_imtl_g_of_dependent_rows_conflicts_with_all_only_if_it_does():
    """The least-squares solution has no equal projections, so the sign of the weights' sum says nothing about each."""
    rows = torch.tensor([[3.0], [-1.0], [3.0]], dtype=torch.float64)
    d, answer = ask(rows, "imtl-g")
    assert float(answer.weights.sum()) == pytest.approx(1.0)
    assert (rows @ d).tolist() == pytest.approx([-27.0, 9.0, -27.0])
    assert not answer.diagnostics["conflicts_with_all"]


def test_imtl_g_without_an_answer_stands_still():
    d, answer = ask(torch.tensor([[1.0], [2.0], [-1.0], [-1.0]], dtype=torch.float64), "imtl-g")
    assert d.norm() == 0
    assert "undefined" in answer.diagnostics


def test_config_follows_its_formula():
    rows = jacobian(15, 4, 9)
    units = (rows / rows.norm(dim=1, keepdim=True)).numpy()
    x = np.linalg.lstsq(units, np.ones(4), rcond=None)[0]
    u = x / np.linalg.norm(x)
    d, answer = ask(rows, "config")
    np.testing.assert_allclose(d.numpy(), (rows.numpy() @ u).sum() * u, rtol=1e-9)
    assert answer.diagnostics["min_cosine"] > 0


def test_config_reports_the_smallest_cosine_of_the_direction_it_returns():
    turned = 0
    for seed in range(60):
        rows = jacobian(seed, 4, 2) * torch.tensor([[1.0], [1.0], [10.0], [100.0]], dtype=torch.float64)
        d, answer = ask(rows, "config")
        units = rows / rows.norm(dim=1, keepdim=True)
        turned += bool((rows @ (torch.linalg.pinv(units) @ torch.ones(4, dtype=torch.float64))).sum() < 0)
        assert answer.diagnostics["min_cosine"] == pytest.approx(float((units @ d).min() / d.norm()), abs=1e-9)
    assert turned >= 5


def test_config_of_opposite_gradients_stands_still():
    d, answer = ask(torch.tensor([[1.0, 2.0], [-1.0, -2.0]]), "config")
    assert d.norm() == 0
    assert "undefined" in answer.diagnostics


@pytest.mark.parametrize("scale", ["min", "median", "rmse"])
def test_aligned_mtl_is_the_procrustes_solution(scale):
    rows = jacobian(16, 4, 9)
    left, values, right = np.linalg.svd(rows.numpy(), full_matrices=False)
    sigma = {"min": values[-1], "median": values[2], "rmse": (values**2).mean() ** 0.5}[scale]
    d, answer = ask(rows, "aligned-mtl", scale=scale)
    np.testing.assert_allclose(d.numpy(), sigma * (left @ right).mean(axis=0), rtol=1e-8, atol=1e-12)
    assert answer.diagnostics["condition"] == pytest.approx(values[0] / values[-1])


def test_aligned_mtl_drops_dependent_directions():
    rows = jacobian(16, 2, 9)[[0, 1, 0]]
    _, values, _ = np.linalg.svd(rows.numpy())
    d, answer = ask(rows, "aligned-mtl", reduction="sum")
    assert answer.diagnostics["rank"] == 2
    assert d.isfinite().all()
    assert d.norm() > 0.1 * values[1]


def test_aligned_mtl_keeps_its_digits_when_norms_differ_by_a_million():
    rows = jacobian(16, 4, 9) * torch.tensor([[1e6], [1.0], [1e3], [2.0]], dtype=torch.float64)
    left, values, right = np.linalg.svd(rows.numpy(), full_matrices=False)
    d, _ = ask(rows, "aligned-mtl")
    np.testing.assert_allclose(d.numpy(), values[-1] * (left @ right).mean(axis=0), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("seed", [622, 1335, 1465])
def test_mgda_stays_on_the_simplex_when_its_answer_is_polished(seed):
    """Two opposite rows among eight: the direction is rounding, and the last look moves the weights."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(8, 8))
    rows[7] = -rows[0] * rng.uniform(1, 9)
    _, answer = ask(torch.from_numpy(rows), "mgda")
    assert "polished" in answer.diagnostics
    assert float(answer.weights.sum()) == pytest.approx(1.0, abs=1e-13)
