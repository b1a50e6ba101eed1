"""The double-loop form inside a real training step, against the penalty form written out with autograd."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mtlcore
from mtlcore.errors import LossError, NonFiniteError, PluginWarning

NAMES = ("a", "b", "c")


class Net(nn.Module):
    def __init__(self, features_in: int = 4) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.trunk = nn.Sequential(nn.Linear(features_in, 6), nn.Tanh(), nn.Linear(6, 5))
        self.heads = nn.ModuleDict({n: nn.Linear(5, 1) for n in NAMES})
        for p in self.parameters():
            p.data = 0.5 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
        self.x = torch.randn(16, features_in, generator=generator, dtype=torch.float64)
        self.y = torch.randn(16, len(NAMES), generator=generator, dtype=torch.float64)

    def forward(self) -> tuple[dict[str, Tensor], Tensor]:
        z = self.trunk(self.x)
        losses = {n: (10.0**i) * (self.heads[n](z)[:, 0] - self.y[:, i]).square().mean() for i, n in enumerate(NAMES)}
        return losses, z


def training(net: Net, name: str, lr: float = 0.0, **options: Any) -> mtlcore.MultiTask:
    method = mtlcore.create("aggregator", name, **options)
    return mtlcore.MultiTask(net.trunk, method, torch.optim.SGD(net.parameters(), lr=lr), heads=net.heads)


def lower(method: Any, losses: Tensor, first: Tensor, flat: Tensor, features: Tensor) -> Tensor:
    """g(W, x), written out."""
    if method.router == "linear":
        n = len(NAMES)
        flat = features.mean(0).detach() @ flat[: n * 5].view(n, 5).T + flat[n * 5 :]
    sigma = torch.sigmoid(flat)
    normalised = {
        "identical": lambda: losses,
        "rescaled": lambda: losses / first * first.min(),
        "log": lambda: torch.log(losses / first),
    }[method.normalisation]()
    return (sigma * normalised).sum() / sigma.sum().detach()


@pytest.mark.parametrize("router", ["free", "linear"])
@pytest.mark.parametrize("normalisation", ["identical", "rescaled", "log"])
def test_router_step_is_that_of_the_penalty_form(normalisation: str, router: str) -> None:
    net = Net()
    options = {"normalisation": normalisation, "router": router, "router_optimizer": "sgd", "router_lr": 0.1}
    steps, beta = 4, 0.01
    double = training(net, "bilb4mtl-double-loop", **options, inner_steps=steps, inner_lr=beta)
    single = training(net, "bilb4mtl", **options)
    double.step(net.forward)
    single.step(net.forward)
    # Away from the first step, so that references and losses differ; the two states are made equal.
    for p in net.parameters():
        p.data.mul_(1.1)
    with pytest.warns(PluginWarning, match="aggregator was 'bilb4mtl-double-loop', is 'bilb4mtl'"):
        single.load_state_dict({**double.state_dict(), "aggregator": "bilb4mtl"})
    state = double.state_dict()["state"]
    flat = state["router"][0].clone().requires_grad_()
    losses, z = net.forward()
    values = torch.stack(list(losses.values())).detach()
    first = state["reference"][0] if "reference" in state else values

    twin = copy.deepcopy(net)
    for _ in range(steps):
        inner, features = twin.forward()
        g = lower(double.aggregator, torch.stack(list(inner.values())), first, flat.detach(), features)
        for p, gradient in zip(twin.parameters(), torch.autograd.grad(g, list(twin.parameters()))):
            p.data -= beta * gradient
    inner, features = twin.forward()
    at_end = torch.stack(list(inner.values())).detach()
    dropped = torch.autograd.grad(lower(double.aggregator, at_end, first, flat, features), flat)[0]
    kept = torch.autograd.grad(lower(double.aggregator, values, first, flat, z), flat)[0]

    one, two = single.step(net.forward), double.step(net.forward)
    difference = double.state_dict()["state"]["router"][0] - single.state_dict()["state"]["router"][0]
    assert float(dropped.norm()) > 1e-3
    torch.testing.assert_close(difference, 0.1 * dropped, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(two.weights, one.weights, rtol=0, atol=0)
    torch.testing.assert_close(two.diagnostics["inner_losses"], at_end)
    assert two.diagnostics["dropped_ratio"] == pytest.approx(float(dropped.norm() / kept.norm()))


def test_inner_steps_leave_no_trace_in_network_and_gradients() -> None:
    """With lambda, weights and network the same, single and double loop hand the optimizer the same gradients."""
    one, two = Net(), Net()
    training(one, "bilb4mtl").step(one.forward)
    report = training(two, "bilb4mtl-double-loop", inner_steps=5, inner_lr=0.05).step(two.forward)
    for a, b in zip(one.parameters(), two.parameters()):
        assert torch.equal(a, b)
        assert torch.equal(a.grad, b.grad)
    assert float((report.diagnostics["inner_losses"] - report.losses).abs().max()) > 1e-3


def test_the_dropped_term_vanishes_with_good_inner_solutions_only_if_the_losses_do() -> None:
    """What the single loop assumes, measured: the ratio falls with N where the inner problem can be solved to zero."""
    ratios = []
    for steps in (1, 30, 300):
        net = Net(features_in=16)  # 16 equations in 16 inputs: every target can be met
        mt = training(net, "bilb4mtl-double-loop", normalisation="identical", inner_steps=steps, inner_lr=5e-3)
        ratios.append(float(mt.step(net.forward).diagnostics["dropped_ratio"]))
    assert ratios[0] > ratios[1] > ratios[2]
    assert ratios[2] < 0.1 < ratios[0]
    # Irreducible losses: the ratio is about l(z*) / l(x), which tends to 1, not to 0, as x itself gets there.
    net = Net()
    mt = training(net, "bilb4mtl-double-loop", lr=5e-3, normalisation="identical", inner_steps=30, inner_lr=1e-3)
    ratios = [float(mt.step(net.forward).diagnostics["dropped_ratio"]) for _ in range(80)]
    assert ratios[0] < ratios[-1]
    assert ratios[-1] > 0.8


def test_absent_tasks_stay_out_of_the_inner_problem() -> None:
    net = Net()
    mt = training(net, "bilb4mtl-double-loop", inner_steps=3)
    mt.step(net.forward)

    def without_b() -> tuple[dict[str, Tensor], Tensor]:
        losses, z = net.forward()
        del losses["b"]
        return losses, z

    before = mt.state_dict()["state"]["router"][0]
    report = mt.step(without_b)
    after = mt.state_dict()["state"]["router"][0]
    assert report.diagnostics["inner_losses"].shape == (2,)
    assert (after == before).tolist() == [False, True, False]


def test_without_a_second_evaluation_it_says_what_it_dropped() -> None:
    net = Net()
    losses, z = net.forward()
    report = training(net, "bilb4mtl-double-loop").backward(losses, z)
    assert "MultiTask.step" in report.diagnostics["inner"]


def test_presets_reach_the_double_loop() -> None:
    method = mtlcore.create("aggregator", "bilb4mtl-double-loop", preset="nyuv2", inner_steps=2)
    assert (method.normalisation, method.lamb, method.inner_steps) == ("rescaled", 0.05, 2)


def test_gradient_through_the_router_reaches_the_trunk_in_one_backward() -> None:
    """detach_features=False, in a real step: .grad of the trunk is autograd's gradient of TOTAL, features included."""
    net = Net()
    options = {"preset": "cityscapes", "tau": "sigma", "lamb": 0.3}
    mt = training(net, "bilb4mtl", **options)
    mt.step(net.forward)
    flat = mt.state_dict()["state"]["router"][0]
    twin = copy.deepcopy(net)
    losses, z = twin.forward()
    pooled = z.mean(0)
    sigma = torch.softmax(pooled @ flat[:15].view(3, 5).T + flat[15:], 0).clamp(0.2, 0.8)
    v = sigma * torch.stack(list(losses.values()))
    total = v.sum() + 0.3 * (v[:-1] - v[1:]).abs().sum()
    total.backward()
    mt.step(net.forward)
    for (name, got), want in zip(net.named_parameters(), twin.parameters()):
        torch.testing.assert_close(got.grad, want.grad, msg=lambda m, name=name: f"{name}: {m}")
    detached = training(net, "bilb4mtl", **options, detach_features=True)
    with pytest.warns(PluginWarning, match="detach_features was False, is True"):
        detached.load_state_dict(mt.state_dict())
    detached.step(net.forward)
    assert not torch.allclose(net.trunk[0].weight.grad, twin.trunk[0].weight.grad)


def test_one_backward_pass_whatever_k() -> None:
    """Counted: the trunk's backward runs once per step, for 2 and for 100 tasks."""
    for n in (2, 100):
        trunk = nn.Linear(3, 4)
        heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(n))
        calls: list[int] = []
        trunk.register_full_backward_hook(lambda *_args, calls=calls: calls.append(1))
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
        mt = mtlcore.MultiTask(trunk, "bilb4mtl")
        z = trunk(x)
        report = mt.backward([h(z).square().mean() for h in heads], z)
        assert len(calls) == 1
        assert report.gramian is None
        assert trunk.weight.grad is not None


def sinking(floor: float) -> tuple[Net, Any]:
    """Two tasks, the first with a loss that inner steps take from 5 down to ``floor`` and not further."""
    net = Net()

    def closure() -> tuple[dict[str, Tensor], Tensor]:
        z = net.trunk(net.x)
        fall = net.heads["a"](z).mean() + 5.0
        return {"seg": fall.clamp_min(floor), "b": (net.heads["b"](z) - 1.0).square().mean()}, z

    return net, closure


def test_inner_loss_that_becomes_negative_names_task_and_inner_step_size() -> None:
    net, closure = sinking(-1e9)
    mt = training(net, "bilb4mtl-double-loop", normalisation="log", inner_steps=60, inner_lr=0.1)
    with pytest.raises(LossError, match=r"'seg' \(-.*inner step.*lower inner_lr"):
        mt.step(closure)


def test_inner_loss_that_becomes_zero_has_weight_zero_there() -> None:
    net, closure = sinking(0.0)
    mt = training(net, "bilb4mtl-double-loop", normalisation="log", inner_steps=60, inner_lr=0.1)
    report = mt.step(closure)
    assert report.diagnostics["inner_losses"][0] == 0.0
    assert bool(report.weights.isfinite().all())
    assert bool(mt.state_dict()["state"]["router"].isfinite().all())


def test_inner_steps_that_diverge_are_not_the_plugins_fault() -> None:
    net = Net()
    mt = training(net, "bilb4mtl-double-loop", normalisation="identical", inner_steps=400, inner_lr=1e3)
    with pytest.raises(NonFiniteError, match="lower the inner step size"):
        mt.step(net.forward)
