"""BiLB4MTL: the published mathematics, checked against autograd on TOTAL written out a second time."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch
from torch import Tensor

import mtlcore
from mtlcore import StepView
from mtlcore.errors import ConfigurationError, FeaturesError, LossError

K, CHANNELS, BATCH, HIDDEN = 4, 3, 2, 5


def method(name: str = "bilb4mtl", **options: Any) -> mtlcore.Aggregator:
    return mtlcore.create("aggregator", name, **options)


# --- an independent TOTAL, for autograd ---------------------------------------------------------------------


def sigma_of(o: Any, flat: Tensor, features: list[Tensor], index: Tensor, n_tasks: int) -> Tensor:
    if o.router == "free":
        scores = flat
    else:
        pooled = torch.cat([f.flatten(2).mean((0, 2)) for f in features])
        if o.detach_features:
            pooled = pooled.detach()
        f = pooled.numel()
        if o.router == "mlp":
            weight, flat = flat[: n_tasks * HIDDEN].view(n_tasks, HIDDEN), flat[n_tasks * HIDDEN :]
            bias, flat = flat[:n_tasks], flat[n_tasks:]
            first, flat = flat[: HIDDEN * f].view(HIDDEN, f), flat[HIDDEN * f :]
            scores = torch.nn.functional.linear(
                torch.relu(torch.nn.functional.linear(pooled, first, flat)), weight, bias
            )
        else:
            scores = torch.nn.functional.linear(pooled, flat[: n_tasks * f].view(n_tasks, f), flat[n_tasks * f :])
    scores = scores[index]
    squashed = {
        "softmax": lambda: torch.softmax(scores, 0),
        "sigmoid": lambda: torch.sigmoid(scores),
        "relu-sigmoid": lambda: torch.sigmoid(torch.relu(scores)),
    }[o.squash]()
    return squashed if o.clamp_low is None else torch.clamp(squashed, o.clamp_low, o.clamp_high)


def total(o: Any, losses: Tensor, first: Tensor, smallest: float, sigma: Tensor) -> Tensor:
    normalised = {
        "identical": lambda: losses,
        "rescaled": lambda: losses / (first / smallest),
        "log": lambda: torch.log(losses / first),
    }[o.normalisation]()
    divisor = {"one": 1.0, "sum": sigma.sum(), "detached-sum": sigma.sum().detach()}[o.divide_by]
    g = (sigma * normalised).sum() / divisor
    v = sigma * normalised if o.tau == "sigma" else normalised
    n = len(v)
    if o.discrepancy == "adjacent":
        f = sum((v[i] - v[i + 1]).abs() for i in range(n - 1))
    elif o.discrepancy == "all-pairs":
        f = 2 / n * sum((v[i] - v[j]).abs() for i in range(n) for j in range(i))
    else:
        ordered = v.sort().values
        f = sum((ordered[i] - ordered[i + 1]).abs() for i in range(n - 1))
    return g + o.lamb * f


def task_losses(features: list[Tensor], targets: Tensor) -> Tensor:
    """K positive losses of two feature tensors, each its own function of them."""
    a, b = features
    return torch.stack([((a - t).square().mean() + 0.3 * (b * t).tanh().square().mean() + 0.1) for t in targets])


def feature_tensors(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(BATCH, CHANNELS, 2, 2, generator=generator, dtype=torch.float64)
    b = torch.randn(BATCH, 2, 3, generator=generator, dtype=torch.float64)
    return [a.requires_grad_(), b.requires_grad_()]


OPTIONS = [
    dict(
        zip(
            ("normalisation", "tau", "divide_by", "discrepancy", "router", "squash", "clamp_low", "detach_features"),
            values,
        )
    )
    for values in itertools.product(
        ("identical", "rescaled", "log"),
        ("one", "sigma"),
        ("one", "sum", "detached-sum"),
        ("adjacent", "all-pairs", "sorted-adjacent"),
        ("free", "linear", "mlp"),
        ("softmax", "sigmoid", "relu-sigmoid"),
        (None, 0.3),
        (True, False),
    )
    if not (values[4] == "free" and not values[7])
]


PAIRWISE = random.Random(0).sample(OPTIONS, len(OPTIONS) // 5)
"""Every two values of two options meet (see the test)."""


def test_every_two_options_meet_in_the_quick_selection() -> None:
    def pairs(rows: list[dict]) -> set:
        return {pair for row in rows for pair in itertools.combinations(((k, str(v)) for k, v in row.items()), 2)}

    assert pairs(PAIRWISE) == pairs(OPTIONS)


@pytest.mark.parametrize(
    "options_tried", [PAIRWISE, pytest.param(OPTIONS, marks=pytest.mark.slow)], ids=["pairs", "product"]
)
@pytest.mark.parametrize("present", [[0, 1, 2, 3], [0, 2, 3]], ids=["all", "one-absent"])
def test_weights_and_router_step_are_the_gradient_of_total(present: list[int], options_tried: list[dict]) -> None:
    """The identity dTOTAL/dl_i = c_i (seeds 4.5), the router's gradient, and the features' cotangents: all options."""
    index = torch.tensor(present)
    targets = torch.tensor([0.5, -1.0, 2.0, 0.1], dtype=torch.float64)
    before = task_losses(feature_tensors(1), targets).detach()
    worst = 0.0
    for options in options_tried:
        clamp_high = None if options["clamp_low"] is None else 0.6
        o = method(
            **options, clamp_high=clamp_high, lamb=0.37, hidden=HIDDEN, pareto_safe=False,
            router_optimizer="sgd", router_lr=1.0, init_low=-0.5, init_high=1.0,
        )  # fmt: skip
        features = feature_tensors(2)
        losses = task_losses(features, targets)
        state = o.aggregate(StepView(losses=before, features=features, generator=7), o.init(K)).state
        full = StepView(losses=losses, features=features, step=1)
        keep = torch.zeros(K, dtype=torch.bool).index_fill_(0, index, True)
        answer = o.aggregate(full.restricted(keep), state)

        flat = state["router"][0].clone().requires_grad_()
        expected = total(o, losses[index], before[index], float(before.min()), sigma_of(o, flat, features, index, K))
        by_router, *by_features = torch.autograd.grad(expected, [flat, *features], retain_graph=True, allow_unused=True)
        ours = list(torch.autograd.grad(losses[index] @ answer.weights, features))
        for i, cotangent in enumerate(answer.feature_gradient):
            ours[i] = ours[i] + cotangent
        router_step = state["router"][0] - answer.state["router"][0]
        for got, want in [(router_step, by_router), *zip(ours, by_features)]:
            want = torch.zeros_like(got) if want is None else want
            scale = float(want.abs().max()) + 1e-3  # values here are of order one
            worst = max(worst, float((got - want).abs().max()) / scale)
            assert worst < 1e-9, options
        assert bool(answer.feature_gradient) == (options["router"] != "free" and not options["detach_features"])


def test_adjacent_coefficients_are_the_published_formula() -> None:
    o = method(normalisation="identical", tau="sigma", divide_by="one", lamb=0.2, squash="softmax", pareto_safe=False)
    losses = torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)
    answer = o.aggregate(StepView(losses=losses), o.init(3))
    sigma = torch.full((3,), 1 / 3, dtype=torch.float64)
    s = [0.0, 1.0, -1.0, 0.0]  # s_0, sign(l1 - l2), sign(l2 - l3), s_3
    expected = torch.stack([sigma[i] + 0.2 * sigma[i] * (s[i + 1] - s[i]) for i in range(3)])
    torch.testing.assert_close(answer.weights, expected)
    torch.testing.assert_close(answer.diagnostics["coefficients"], expected)
    assert answer.diagnostics["signs"].tolist() == [1.0, -1.0]
    assert answer.diagnostics["discrepancy"] == pytest.approx(1.0)


def test_adam_is_torch_adam() -> None:
    """The router's own Adam takes torch.optim.Adam's steps, eps being relative to the gradient's scale."""
    o = method(normalisation="identical", router_lr=0.05, squash="softmax", divide_by="one", eps=0.0)
    state = o.init(3)
    w = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    adam = torch.optim.Adam([w], lr=0.05, eps=0.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        losses = torch.rand(3, generator=generator, dtype=torch.float64) + 0.1
        state = o.aggregate(StepView(losses=losses), state).state
        adam.zero_grad()
        total(o, losses, losses, 1.0, torch.softmax(w, 0)).backward()
        adam.step()
        torch.testing.assert_close(state["router"][0], w.data)


# --- pareto safety ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("discrepancy", ["adjacent", "all-pairs", "sorted-adjacent"])
@pytest.mark.parametrize("tau", ["one", "sigma"])
@pytest.mark.parametrize("normalisation", ["identical", "rescaled", "log"])
def test_safe_weights_are_never_negative_and_never_all_zero(discrepancy: str, tau: str, normalisation: str) -> None:
    generator = torch.Generator().manual_seed(3)
    for n in (1, 2, 5, 40, 100):
        o = method(discrepancy=discrepancy, tau=tau, normalisation=normalisation, lamb=3.0)
        published = method(discrepancy=discrepancy, tau=tau, normalisation=normalisation, lamb=3.0, pareto_safe=False)
        state, other = o.init(n), published.init(n)
        negative = False
        for step in range(10):
            losses = torch.rand(n, generator=generator, dtype=torch.float64) + 1e-3
            answer = o.aggregate(StepView(losses=losses, step=step), state)
            raw = published.aggregate(StepView(losses=losses, step=step), other)
            assert bool((answer.weights >= 0).all())
            assert float(answer.weights.sum()) > 0
            torch.testing.assert_close(answer.weights, raw.weights.clamp_min(0))
            assert bool((answer.diagnostics["clipped"] == (raw.weights < 0)).all())
            negative = negative or bool((raw.weights < 0).any())
            state, other = answer.state, raw.state
        assert negative == (n > 1), "the comparison must have met a coefficient worth clipping"
        assert "conic-combination" in o.claims
        assert "conic-combination" not in published.claims


@pytest.mark.parametrize(("tau", "lamb"), [("sigma", 0.5), ("one", 0.1)])
def test_bound_on_lambda_makes_clipping_unnecessary(tau: str, lamb: float) -> None:
    """Seeds 4.5: lambda <= 1/2 with tau = sigma; lambda <= min sigma / 2 with tau = 1 (clamp at 0.2). And tight."""

    def smallest(value: float) -> float:
        o = method(
            tau=tau, lamb=value, normalisation="identical", divide_by="one", squash="softmax", pareto_safe=False,
            clamp_low=0.2, clamp_high=0.8,
        )  # fmt: skip
        # The middle task is pulled from both sides: |s_i - s_{i-1}| = 2.
        return float(o.aggregate(StepView(losses=torch.tensor([2.0, 1.0, 2.0, 1.0, 2.0])), o.init(5)).weights.min())

    assert smallest(lamb) >= -1e-16
    assert smallest(lamb * 1.01) < -1e-4


def min_norm(jacobian: Tensor) -> float:
    """min_{w in simplex} ||J^T w||, by a convex program."""
    import cvxpy as cp

    w = cp.Variable(jacobian.shape[0], nonneg=True)
    scale = float(jacobian.norm())
    problem = cp.Problem(cp.Minimize(cp.norm(jacobian.T.numpy() / scale @ w)), [cp.sum(w) == 1])
    problem.solve(solver="CLARABEL")
    assert problem.status == "optimal"
    return float(problem.value) * scale


class LeastSquares:
    """n losses s_i (mean (A_i x - b_i)^2 + 1/2) in p dimensions, with scales s_i from 0.1 to 10.

    rank = p: each is strongly convex. rank < p: their rows span one subspace of that dimension, so that every
    weighted sum is Polyak-Lojasiewicz and has a flat valley, but is not strongly convex.
    """

    def __init__(self, n: int, p: int, rank: int) -> None:
        generator = torch.Generator().manual_seed(100 * n + p)
        basis = torch.linalg.qr(torch.randn(p, p, generator=generator, dtype=torch.float64)).Q[:, :rank]
        self.a = torch.randn(n, rank + 1, rank, generator=generator, dtype=torch.float64) @ basis.T / rank**0.5
        self.b = 2 * torch.randn(n, rank + 1, generator=generator, dtype=torch.float64)
        self.scale = torch.logspace(-1, 1, n, dtype=torch.float64)
        hessians = (2 / (rank + 1)) * self.scale[:, None, None] * (self.a.mT @ self.a)
        self.smoothness = torch.linalg.eigvalsh(hessians)[:, -1]
        smallest = float(torch.linalg.eigvalsh(hessians.sum(0))[0])
        assert (smallest > 1e-3) == (rank == p), "the problem is not what its name says"

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (n,) and Jacobian (n, p)."""
        residual = self.a @ x - self.b
        factor = 2 / residual.shape[1] * self.scale
        return self.scale * (residual.square().mean(1) + 0.5), factor[:, None] * torch.einsum(
            "nrp,nr->np", self.a, residual
        )


@pytest.mark.parametrize("normalisation", ["identical", "rescaled", "log"])
@pytest.mark.parametrize(("n", "p", "rank"), [(2, 3, 3), (3, 4, 4), (5, 6, 6), (3, 8, 4), (5, 9, 5)])
@pytest.mark.parametrize("discrepancy", ["adjacent", "sorted-adjacent"])
def test_reaches_pareto_stationary_points(n: int, p: int, rank: int, normalisation: str, discrepancy: str) -> None:
    """Strongly convex and PL problems; stationarity measured by an independent min-norm program.

    The discrepancy has kinks, around which a fixed step chatters; so the step falls like 1/t.
    """
    problem = LeastSquares(n, p, rank)
    o = method(normalisation=normalisation, discrepancy=discrepancy, lamb=0.1)
    x = torch.full((p,), 3.0, dtype=torch.float64)
    unit = problem(x)[1].norm(dim=1)
    at_start = min_norm(problem(x)[1] / unit[:, None])
    state = o.init(n)
    for step in range(1500):
        losses, jacobian = problem(x)
        answer = o.aggregate(StepView(losses=losses, step=step), state)
        state = answer.state
        x = x - (jacobian.T @ answer.weights) / (answer.weights @ problem.smoothness) / (1 + step / 100)
    final = problem(x)[1] / unit[:, None]
    certificate = min_norm(final)
    assert at_start > 0.05
    assert certificate < 5e-3 * at_start
    # The theorem's own bound at any point, here the last: weights / sum of weights are a certificate.
    raw = problem(x)[1]
    eps = float((raw.T @ answer.weights).norm())
    assert min_norm(raw) <= eps / float(answer.weights.sum()) * (1 + 1e-6)


def test_large_lambda_without_safety_pushes_a_low_loss_task_up_and_with_it_does_not() -> None:
    """What pareto_safe is for: one negative coefficient is an ascent direction for that task."""
    losses = torch.tensor([0.1, 1.0], dtype=torch.float64)
    o: dict[str, Any] = {"normalisation": "identical", "lamb": 2.0}
    assert float(method(**o, pareto_safe=False).aggregate(StepView(losses=losses), method().init(2)).weights[0]) < 0
    assert float(method(**o).aggregate(StepView(losses=losses), method().init(2)).weights[0]) == 0.0


# --- loss units ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("normalisation", "every"), [("rescaled", None), ("log", None), ("log", 3)])
@pytest.mark.parametrize("router", ["free", "linear"])
def test_units_of_the_losses_do_not_matter(normalisation: str, every: int | None, router: str) -> None:
    """Loss i in another unit, a_i l_i: same sigma, and weights w_i / a_i up to one common factor (none for log)."""
    units = torch.tensor([1e-9, 1.0, 2.0**20, 1e8, 3.0], dtype=torch.float64)
    o = method(normalisation=normalisation, log_reference_every=every, lamb=0.2, router_lr=0.05, router=router)
    generator = torch.Generator().manual_seed(5)
    features = [torch.randn(2, 3, generator=generator)]
    state, other = o.init(5), o.init(5)
    for step in range(30):
        losses = torch.rand(5, generator=generator, dtype=torch.float64) + 0.1
        plain = o.aggregate(StepView(losses=losses, step=step, features=features), state)
        scaled = o.aggregate(StepView(losses=losses * units, step=step, features=features), other)
        state, other = plain.state, scaled.state
        torch.testing.assert_close(plain.diagnostics["sigma"], scaled.diagnostics["sigma"], rtol=1e-7, atol=0)
        back = scaled.weights * units
        factor = 1.0 if normalisation == "log" else float(back.sum() / plain.weights.sum())
        torch.testing.assert_close(back / factor, plain.weights, rtol=1e-7, atol=0)
    moved = (state["router"][0] - o.init(5)["router"][0].new_ones(1)).abs().max()
    assert float(moved) > 0.1, "the router must have moved for this to say anything"


@pytest.mark.parametrize("squash", ["sigmoid", "softmax"])
def test_rounding_does_not_train_the_router(squash: str) -> None:
    """Rescaled losses are equal in the first step, so the derivative of their weighted mean is zero: all that is left
    of its terms is rounding, and Adam must not make a full step of that."""
    losses = torch.tensor([0.3, 0.7, 1.1, 2.3, 0.9, 0.1], dtype=torch.float64)
    for unit in (1e-9, 1.0, 1e9):
        o = method(divide_by="sum", tau="one", squash=squash, router_lr=0.1)
        state = o.aggregate(StepView(losses=unit * losses), o.init(6)).state
        torch.testing.assert_close(state["router"][0], torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-7)


def test_units_do_not_matter_when_a_task_appears_late() -> None:
    """A late task with the smallest first loss changes the common factor of all; Adam must not take that for a fall."""
    start = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    pace = torch.tensor([0.97, 0.9, 0.95], dtype=torch.float64)
    ends = []
    for unit in (1.0, 2.0**-20, 2.0**20):
        units = torch.tensor([1.0, 1.0, unit], dtype=torch.float64)
        o = method(normalisation="rescaled", router_lr=0.05)
        state = o.init(3)
        for step in range(30):
            view = StepView(losses=units * start * pace**step, step=step)
            here = torch.tensor([True, True, step >= 5])
            answer = o.aggregate(view if step >= 5 else view.restricted(here), state)
            state = answer.state
        ends.append(answer.weights * units / (answer.weights * units).sum())
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-7, atol=0)
    torch.testing.assert_close(ends[2], ends[0], rtol=1e-7, atol=0)


def test_identical_normalisation_does_depend_on_units() -> None:
    losses = torch.tensor([1.0, 2.0], dtype=torch.float64)
    o = method(normalisation="identical")
    one = o.aggregate(StepView(losses=losses), o.init(2)).weights
    two = o.aggregate(StepView(losses=losses * torch.tensor([10.0, 1.0])), o.init(2)).weights
    assert not torch.allclose(one, two)


def test_common_tiny_and_huge_units() -> None:
    """No absolute epsilon: the router learns alike from losses of 1e-12 and of 1e+12."""
    o = method(normalisation="identical", router_lr=0.05)
    generator = torch.Generator().manual_seed(6)
    batches = torch.rand(20, 3, generator=generator, dtype=torch.float64) + 0.1
    ends = []
    for unit in (1.0, 1e-12, 1e12):
        state = o.init(3)
        for losses in batches:
            state = o.aggregate(StepView(losses=losses * unit), state).state
        ends.append(state["router"][0])
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-9, atol=0)
    torch.testing.assert_close(ends[2], ends[0], rtol=1e-9, atol=0)


def test_log_references_are_taken_anew_every_period() -> None:
    o = method(normalisation="log", log_reference_every=3)
    state = o.init(2)
    for step in range(7):
        losses = torch.tensor([1.0 + step, 10.0 + step])
        state = o.aggregate(StepView(losses=losses, step=step), state).state
        taken = step - step % 3
        assert state["reference"][0].tolist() == [1.0 + taken, 10.0 + taken]


def test_rescaled_reference_is_the_first_loss_of_each_task_even_if_it_came_late() -> None:
    o = method(normalisation="rescaled", pareto_safe=False, lamb=0.0, divide_by="one", router_lr=0.0)
    full = StepView(losses=torch.tensor([4.0, 2.0, 8.0]))
    state = o.aggregate(full.restricted(torch.tensor([True, True, False])), o.init(3)).state
    assert state["reference"][1].tolist() == [0, 0, -1]
    sigma = float(torch.sigmoid(torch.tensor(1.0, dtype=torch.float64)))
    answer = o.aggregate(StepView(losses=torch.tensor([3.0, 3.0, 1.0]), step=1), state)
    assert answer.state["reference"][0].tolist() == [4.0, 2.0, 1.0]
    torch.testing.assert_close(answer.weights, sigma / torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64))


# --- losses that a normalisation cannot take ----------------------------------------------------------------


@pytest.mark.parametrize("normalisation", ["log", "rescaled"])
def test_negative_loss_names_task_and_option(normalisation: str) -> None:
    o = method(normalisation=normalisation)
    view = StepView(losses=torch.tensor([1.0, -0.25, 2.0]), task_names=["seg", "depth", "normals"])
    with pytest.raises(LossError, match=rf"'depth' \(-0.25\).*normalisation='{normalisation}'.*'identical'"):
        o.aggregate(view, o.init(3))


def test_negative_losses_are_fine_where_nothing_divides_by_them() -> None:
    view = StepView(losses=torch.tensor([1.0, -0.25, 2.0]))
    identical = method(normalisation="identical")
    assert bool(torch.isfinite(identical.aggregate(view, identical.init(3)).weights).all())
    rescaled = method(normalisation="rescaled")
    state = rescaled.aggregate(StepView(losses=torch.ones(3)), rescaled.init(3)).state
    assert bool(torch.isfinite(rescaled.aggregate(view, state).weights).all())


def test_zero_loss_is_left_out_of_log_and_said_so() -> None:
    o = method(normalisation="log")
    names = ["seg", "depth", "normals"]
    state = o.aggregate(StepView(losses=torch.ones(3), task_names=names), o.init(3)).state
    view = StepView(losses=torch.tensor([0.5, 0.0, 2.0]), task_names=names, step=1)
    answer = o.aggregate(view, state)
    assert answer.weights[1] == 0.0
    assert "depth" in answer.diagnostics["left_out"]
    without = o.aggregate(view.restricted(torch.tensor([True, False, True])), state)
    assert torch.equal(answer.weights[[0, 2]], without.weights)
    assert torch.equal(answer.state["router"][0], without.state["router"][0])
    nothing = o.aggregate(StepView(losses=torch.zeros(3)), state)
    assert nothing.weights.tolist() == [0.0, 0.0, 0.0]
    assert torch.equal(nothing.state["router"][0], state["router"][0])


def test_zero_first_loss_under_rescaled_waits_for_a_positive_one() -> None:
    o = method(normalisation="rescaled")
    answer = o.aggregate(StepView(losses=torch.tensor([0.0, 3.0])), o.init(2))
    assert answer.weights[0] == 0.0
    answer = o.aggregate(StepView(losses=torch.tensor([2.0, 3.0]), step=1), answer.state)
    assert answer.state["reference"][0].tolist() == [2.0, 3.0]
    answer = o.aggregate(StepView(losses=torch.tensor([0.0, 3.0]), step=2), answer.state)
    assert "left_out" not in answer.diagnostics
    assert bool(torch.isfinite(answer.weights).all())


# --- state, purity, shapes ----------------------------------------------------------------------------------


def run(
    o: mtlcore.Aggregator, state: dict[str, Tensor], steps: range, n: int = 3
) -> tuple[dict[str, Tensor], list[Tensor]]:
    weights = []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        features = [torch.randn(4, 3, 2, generator=generator)]
        losses = torch.rand(n, generator=generator, dtype=torch.float64) + 0.1
        answer = o.aggregate(StepView(losses=losses, features=features, step=step, generator=step), state)
        state = answer.state
        weights.append(answer.weights)
    return state, weights


@pytest.mark.parametrize("preset", [None, "cityscapes", "nyuv2", "celeba", "qm9"])
def test_resumed_equals_uninterrupted(preset: str | None, tmp_path: Any) -> None:
    o = method(preset=preset, log_reference_every=4)
    _, straight = run(o, o.init(3), range(12))
    half, first = run(o, o.init(3), range(5))
    torch.save(half, tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    _, second = run(method(preset=preset, log_reference_every=4), loaded, range(5, 12))
    for got, want in zip(first + second, straight):
        assert torch.equal(got, want)


def test_pure_deterministic_and_blind_to_the_global_random_state() -> None:
    o = method(router="mlp", init_low=-1.0)
    torch.manual_seed(1)
    state, _ = run(o, o.init(3), range(3))
    copies = {k: v.clone() for k, v in state.items()}
    before = torch.get_rng_state()
    features = [torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))]
    view = StepView(losses=torch.rand(3, generator=torch.Generator().manual_seed(1)), features=features, step=3)
    one, two = o.aggregate(view, state), o.aggregate(view, state)
    assert torch.equal(one.weights, two.weights)
    assert all(torch.equal(one.state[k], two.state[k]) for k in one.state)
    assert all(torch.equal(state[k], copies[k]) for k in copies), "the state handed in was written to"
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    again, _ = run(o, o.init(3), range(3))
    assert all(torch.equal(again[k], copies[k]) for k in copies)


@pytest.mark.parametrize("n", [1, 2, 40, 100])
@pytest.mark.parametrize("preset", [None, "cityscapes", "nyuv2", "celeba", "qm9"])
def test_any_number_of_tasks(n: int, preset: str | None) -> None:
    o = method(preset=preset)
    state, weights = run(o, o.init(n), range(4), n)
    assert all(w.shape == (n,) and bool(torch.isfinite(w).all()) for w in weights)
    if n == 1:
        assert float(weights[-1][0]) > 0
    numbers = sum(v.numel() for v in state.values())
    features = 3 if preset in ("cityscapes", "nyuv2") else 0
    assert numbers <= 4 * n * (features + 1) + 2 * n + 2, "state is O(K) plus the router"


def test_absent_tasks_keep_their_router_and_moments() -> None:
    for router in ("free", "linear"):
        o = method(router=router, normalisation="identical", router_lr=0.1)
        state, _ = run(o, o.init(3), range(3))
        generator = torch.Generator().manual_seed(9)
        features = [torch.randn(4, 3, 2, generator=generator)]
        view = StepView(losses=torch.tensor([1.0, 2.0, 3.0]), features=features, step=3)
        after = o.aggregate(view.restricted(torch.tensor([True, False, True])), state).state
        rows = [slice(1, 2)] if router == "free" else [slice(3, 6), slice(10, 11)]
        changed = state["router"] != after["router"]
        for row in range(4):  # parameters and Adam's moments
            assert not any(bool(changed[row, r].any()) for r in rows), (router, row)
            assert bool(changed[row].any()), (router, row)


def test_order_matters_for_adjacent_differences_only() -> None:
    losses = torch.tensor([1.0, 4.0, 2.0, 3.0, 7.0], dtype=torch.float64)
    order = torch.tensor([3, 1, 4, 0, 2])
    same = {}
    for discrepancy in ("adjacent", "all-pairs", "sorted-adjacent"):
        o = method(normalisation="identical", discrepancy=discrepancy, lamb=0.1)
        plain = o.aggregate(StepView(losses=losses), o.init(5))
        shuffled = o.aggregate(StepView(losses=losses[order]), o.init(5))
        same[discrepancy] = torch.allclose(plain.weights[order], shuffled.weights, rtol=1e-12) and torch.allclose(
            plain.state["router"][0][order], shuffled.state["router"][0], rtol=1e-12
        )
        assert ("permutation-equivariant" in o.claims) == same[discrepancy]
    assert same == {"adjacent": False, "all-pairs": True, "sorted-adjacent": True}


def test_ties_pull_nobody() -> None:
    for discrepancy in ("adjacent", "all-pairs", "sorted-adjacent"):
        o = method(normalisation="identical", discrepancy=discrepancy)
        answer = o.aggregate(StepView(losses=torch.full((4,), 0.7)), o.init(4))
        assert answer.diagnostics["pull"].tolist() == [0.0] * 4
        assert float(answer.diagnostics["discrepancy"]) == 0.0


def test_low_precision_features() -> None:
    o = method(router="linear", detach_features=False, pareto_safe=False)
    features = [torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)]
    answer = o.aggregate(StepView(losses=torch.tensor([1.0, 2.0]), features=features), o.init(2))
    assert answer.feature_gradient[0].dtype == torch.bfloat16
    assert answer.feature_gradient[0].shape == (4, 3, 2)


# --- options ------------------------------------------------------------------------------------------------


def test_presets_are_the_published_table_and_yield_to_options() -> None:
    published = {
        # set: (normalisation, tau, lambda, learning rate, squash, router, clamp)
        "cityscapes": ("identical", "one", 0.1, 3e-4, "softmax", "linear", 0.2),
        "nyuv2": ("rescaled", "sigma", 0.05, 8e-5, "softmax", "linear", 0.2),
        "celeba": ("identical", "sigma", 0.01, 1e-3, "sigmoid", "free", None),
        "qm9": ("log", "sigma", 0.05, 1e-3, "relu-sigmoid", "free", None),
    }
    for name, row in published.items():
        o = method(preset=name)
        assert (o.normalisation, o.tau, o.lamb, o.router_lr, o.squash, o.router, o.clamp_low) == row
        assert not o.pareto_safe
    # An option given beside a preset wins, also when its value is the class default.
    assert method(preset="qm9", lamb=0.3).lamb == 0.3
    assert method(preset="qm9", normalisation="rescaled").normalisation == "rescaled"
    safe = method(preset="cityscapes", pareto_safe=True, detach_features=True)
    assert safe.pareto_safe
    assert "conic-combination" in safe.claims


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lamb": -1.0}, "lamb"),
        ({"preset": "mnist"}, "preset"),
        ({"clamp_low": 0.9, "clamp_high": 0.1}, "clamp_low"),
        ({"init_low": 2.0}, "init_low"),
        ({"router": "linear", "detach_features": False}, "pareto_safe"),
        ({"lambda_": 1.0}, "lamb"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        method(**options)


@pytest.mark.parametrize("router", ["linear", "mlp"])
def test_features_that_are_no_floats_are_read_as_numbers(router: str) -> None:
    o = method(router=router)
    counts = torch.tensor([[1, 0, 7], [2, 0, 1]])
    want = o.aggregate(StepView(losses=torch.ones(2), features=[counts.double()]), o.init(2)).weights
    assert torch.equal(o.aggregate(StepView(losses=torch.ones(2), features=[counts]), o.init(2)).weights, want)
    o.aggregate(StepView(losses=torch.ones(2), features=[counts > 0]), o.init(2))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(0, 4), "is empty"),
        (torch.ones(5, 0), "is empty"),
        (torch.ones(5, 4, dtype=torch.complex64), "is complex"),
        (torch.full((5, 4), float("nan")), "NaN or infinite"),
        (torch.tensor([[1.0, float("inf")]]), "NaN or infinite"),
    ],
)
def test_features_that_have_no_mean_are_named(bad: Tensor, message: str) -> None:
    for router in ("linear", "mlp"):
        o = method(router=router)
        with pytest.raises(FeaturesError, match=rf"features\[1\].*{message}"):
            o.aggregate(StepView(losses=torch.ones(2), features=[torch.ones(3, 2), bad]), o.init(2))


def test_features_missing_or_of_another_shape() -> None:
    o = method(router="linear")
    with pytest.raises(FeaturesError, match="router='free'"):
        o.aggregate(StepView(losses=torch.ones(2)), o.init(2))
    with pytest.raises(FeaturesError, match="channel_dim"):
        o.aggregate(StepView(losses=torch.ones(2), features=[torch.ones(3)]), o.init(2))
    state = o.aggregate(StepView(losses=torch.ones(2), features=[torch.ones(3, 4)]), o.init(2)).state
    with pytest.raises(FeaturesError, match="5 channels"):
        o.aggregate(StepView(losses=torch.ones(2), features=[torch.ones(3, 5)]), state)
    last = method(router="linear", channel_dim=-1)
    last.aggregate(StepView(losses=torch.ones(2), features=[torch.ones(3, 7, 5)]), last.init(2))
