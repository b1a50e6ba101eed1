"""The exact form of ``emtl``: the gradient of its whole objective, on networks and on quadratics."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mtlcore
from mtlcore import MultiTask, StepView
from mtlcore.errors import ConfigurationError, NonFiniteError

NAMES = ("a", "b", "c")


def method(**options: Any) -> Any:
    return mtlcore.create("aggregator", "emtl", form="exact", **options)


class Net(nn.Module):
    """A trunk with BatchNorm and dropout, and losses of different size and shape."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 5))
        self.heads = nn.ModuleDict({n: nn.Linear(5, 2) for n in NAMES})
        self.x, self.y = torch.randn(8, 4), torch.randn(8, 2)
        self.double()
        self.x, self.y = self.x.double(), self.y.double()

    def forward(self, tasks: tuple[str, ...] = NAMES) -> tuple[dict[str, Tensor], Tensor]:
        z = self.trunk(self.x)
        out = {n: (self.heads[n](z) - self.y).square().mean() * 3.0**i for i, n in enumerate(NAMES)}
        out["c"] = torch.nn.functional.cross_entropy(self.heads["c"](z), self.y.softmax(1))
        return {n: out[n] for n in tasks}, z

    def shared(self) -> list[nn.Parameter]:
        return list(self.trunk.parameters())


def objective_gradient(losses: list[Tensor], shared: list[nn.Parameter], lamb: float, variance: str) -> Tensor:
    """grad of sum_i L_i + lambda V by autograd, through the lengths of the gradients."""
    rows = [torch.autograd.grad(loss, shared, create_graph=True) for loss in losses]
    norms = torch.stack([torch.cat([g.flatten() for g in r]).norm() for r in rows])
    stacked = torch.stack(losses)
    r = stacked / norms
    spread = r.var(unbiased=False)
    if variance == "relative":
        spread = spread / r.mean() ** 2 * stacked.sum().detach()
    found = torch.autograd.grad(stacked.sum() + lamb * spread, shared)
    return torch.cat([g.flatten() for g in found])


def stepped(net: Net, aggregator: Any, tasks: tuple[str, ...] = NAMES, **options: Any) -> tuple[Tensor, Any]:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    mt = MultiTask(net.trunk, aggregator, optimizer, tasks=NAMES, heads=net.heads)
    report = mt.step(lambda: net(tasks), **options)
    return torch.cat([p.grad.flatten() for p in net.shared()]), report


@pytest.mark.parametrize("variance", ["relative", "plain"])
@pytest.mark.parametrize("lamb", [0.1, 30.0])  # the latter makes a weight negative
@pytest.mark.parametrize("tasks", [NAMES, ("a", "c")])
def test_the_direction_is_the_gradient_of_the_whole_objective(tasks, lamb, variance):
    net = Net()
    torch.manual_seed(5)
    losses, _ = net(tasks)
    right = objective_gradient(list(losses.values()), net.shared(), lamb, variance)
    torch.manual_seed(5)
    found, report = stepped(net, method(lamb=lamb, variance=variance), tasks)
    torch.testing.assert_close(found, right * report.diagnostics["scale"], rtol=1e-10, atol=1e-12)
    torch.manual_seed(5)
    fast, _ = stepped(net, mtlcore.create("aggregator", "emtl", lamb=lamb, variance=variance), tasks)
    assert not torch.allclose(found, fast, rtol=1e-2), "second derivatives matter here, so that the test can fail"


def test_heads_take_the_weights_of_the_fast_form():
    net, heads = Net(), []
    for form in ("fast", "exact"):
        torch.manual_seed(5)
        net.zero_grad()
        stepped(net, mtlcore.create("aggregator", "emtl", form=form))
        heads.append(torch.cat([p.grad.flatten() for p in net.heads.parameters()]))
    torch.testing.assert_close(*heads, rtol=1e-12, atol=0)


def test_in_float32_and_with_a_scaler_it_is_the_same_to_rounding():
    net = Net()
    net.trunk[3].p = 0.0
    right = objective_gradient(list(net()[0].values()), net.shared(), 0.1, "relative")
    net.float()
    net.x, net.y = net.x.float(), net.y.float()
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=1024.0)):
        found, report = stepped(net, method(), **({} if scaler is None else {"scaler": scaler}))
        torch.testing.assert_close(found.double(), right * report.diagnostics["scale"], rtol=1e-4, atol=1e-5)


class Quadratics:
    """L_i = |A_i (x - c_i)|^2 / 2 + b_i: constant Hessians, or none with ``linear``."""

    def __init__(self, seed: int, k: int = 3, p: int = 5, linear: bool = False) -> None:
        g = torch.Generator().manual_seed(seed)
        a = torch.randn(k, p, p, generator=g, dtype=torch.float64)
        self.hessians = a @ a.mT * (0.0 if linear else 1.0) / p
        self.slopes = torch.randn(k, p, generator=g, dtype=torch.float64)
        self.offsets = 20.0 * torch.rand(k, generator=g, dtype=torch.float64) + 20.0

    def losses(self, x: Tensor) -> Tensor:
        return 0.5 * torch.einsum("p,kpq,q->k", x, self.hessians, x) + self.slopes @ x + self.offsets

    def rows(self, x: Tensor) -> Tensor:
        return self.hessians @ x + self.slopes

    def view(self, x: Tensor) -> StepView:
        def curvature(_: StepView, vectors: Tensor) -> Tensor:
            return torch.einsum("kpq,kq->p", self.hessians, vectors)

        return StepView(losses=self.losses(x), jacobian=self.rows(x), curvature=curvature)

    def variance(self, x: Tensor) -> float:
        return float((self.losses(x) / self.rows(x).norm(dim=1)).var(unbiased=False))


@pytest.mark.parametrize("seed", range(20))
def test_a_step_with_a_large_lambda_does_not_increase_the_variance(seed):
    problem = Quadratics(seed)
    x = torch.randn(5, generator=torch.Generator().manual_seed(seed + 100), dtype=torch.float64)
    answer = method(lamb=1e9, variance="plain").aggregate(problem.view(x), {})
    step = 1e-4 * answer.direction / answer.direction.norm()
    assert problem.variance(x - step) < problem.variance(x)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("variance", ["relative", "plain"])
def test_without_curvature_both_forms_agree(seed, variance):
    problem, x = Quadratics(seed, linear=True), torch.zeros(5, dtype=torch.float64)
    fast = mtlcore.create("aggregator", "emtl", lamb=1e-3, variance=variance)
    weights = fast.aggregate(problem.view(x), {}).weights
    assert float(weights.min()) > 0.0, "nothing is clipped"
    assert float(weights.max() - weights.min()) > 1e-4
    answer = method(lamb=1e-3, variance=variance).aggregate(problem.view(x), {})
    torch.testing.assert_close(answer.direction, weights @ problem.rows(x), rtol=1e-12, atol=1e-14)


def test_equal_contributions_or_no_lambda_give_the_plain_sum_and_ask_no_second_derivative():
    rows = torch.tensor([[3.0, 0.0, 4.0], [0.0, 5.0, 0.0]], dtype=torch.float64)  # of one length

    def direction(losses: list[float], lamb: float) -> Tensor:
        view = StepView(losses=losses, jacobian=rows, curvature=lambda *_: pytest.fail("asked"))
        answer = method(lamb=lamb).aggregate(view, {})
        assert answer.diagnostics["scale"] == 1.0
        return answer.direction

    torch.testing.assert_close(direction([2.0, 2.0], 0.1), rows.sum(0))
    torch.testing.assert_close(direction([2.0, 7.0], 0.0), rows.sum(0))


@pytest.mark.parametrize("size", [1e-100, 1e100])
def test_the_unit_of_the_losses_is_a_factor_of_the_direction(size):
    problem, x = Quadratics(1), torch.zeros(5, dtype=torch.float64)
    plain = problem.view(x)

    def curvature(_: StepView, vectors: Tensor) -> Tensor:
        return torch.einsum("kpq,kq->p", size * problem.hessians, vectors)

    scaled = StepView(losses=size * plain.losses, jacobian=size * plain.jacobian, curvature=curvature)
    one, other = (method().aggregate(v, {}).direction for v in (plain, scaled))
    torch.testing.assert_close(other / size, one, rtol=1e-12, atol=0)


def test_a_task_without_a_gradient_takes_no_part():
    problem, x = Quadratics(2), torch.zeros(5, dtype=torch.float64)
    problem.slopes[1] = 0.0
    both = torch.tensor([True, False, True])
    one = method().aggregate(problem.view(x), {})
    view = StepView(
        losses=problem.losses(x)[both],
        jacobian=problem.rows(x)[both],
        curvature=lambda _, v: torch.einsum("kpq,kq->p", problem.hessians[both], v),
    )
    other = method().aggregate(view, {})
    ratio = one.diagnostics["scale"] / other.diagnostics["scale"]
    torch.testing.assert_close(one.direction, other.direction * ratio, rtol=1e-12, atol=0)


def test_refusals_name_the_way_out():
    net = Net()
    losses, z = net()
    with pytest.raises(ConfigurationError, match=r"step\(closure\), or form='fast'"):
        MultiTask(net.trunk, method()).backward(losses, features=z)
    with pytest.raises(ConfigurationError, match=r"step\(closure\)"):
        mtlcore.aggregate(method(), torch.ones(2, 3))
    problem, x = Quadratics(0), torch.zeros(5, dtype=torch.float64)
    far = StepView(
        losses=problem.losses(x),
        jacobian=problem.rows(x),
        curvature=lambda _, v: torch.full((5,), 1e308, dtype=torch.float64),
    )
    with pytest.raises(NonFiniteError, match="overflows"):
        method(lamb=1e9, variance="plain").aggregate(far, {})


def test_it_trains_and_the_contributions_come_closer():
    """Thirty steps of gradient descent on a small network: the relative variance falls, and less with lambda = 0."""

    def run(lamb: float) -> float:
        torch.manual_seed(1)
        net = Net()
        net.trunk[3].p = 0.0
        optimizer = torch.optim.SGD(net.trunk.parameters(), lr=5e-3)
        mt = MultiTask(net.trunk, method(lamb=lamb), optimizer, tasks=NAMES)
        for _ in range(30):
            report = mt.step(net)
        r = report.diagnostics["relative_contribution"]
        return float(r.var(unbiased=False) / r.mean() ** 2)

    assert run(1.0) < 0.8 * run(0.0)
