"""Inner gradient steps: the right losses at z_N, and no trace left behind."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mtlcore import StepView
from mtlcore.errors import LossError, NonFiniteError, PluginError
from mtlcore.inner_loop import descend

NAMES = ("a", "b")


class Net(nn.Module):
    """BatchNorm (buffers), dropout (random state), a frozen parameter, two heads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 5))
        self.trunk[0].bias.requires_grad_(False)
        self.heads = nn.ModuleDict({n: nn.Linear(5, 1) for n in NAMES})
        self.x, self.y = torch.randn(8, 4), torch.randn(8, 1)
        self.calls = 0

    def evaluate(self) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        self.calls += 1
        z = self.trunk(self.x)
        return {n: (h(z) - self.y).square().mean() * (i + 1) for i, (n, h) in enumerate(self.heads.items())}, (z,)


def view_of(losses: dict[str, Tensor]) -> StepView:
    return StepView(losses=torch.stack([v.detach() for v in losses.values()]), task_names=list(losses))


def everything(net: Net) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in net.state_dict().items()}


def run(net: Net, view: StepView, steps: int = 3, lr: float = 0.1, weigh: Any = None) -> StepView:
    weigh = weigh or (lambda point: torch.tensor([0.3, 0.7], dtype=torch.float64)[: point.n_tasks])
    return descend(
        view, weigh, steps, lr, evaluate=net.evaluate, parameters=net.parameters(), modules=[net.trunk, net.heads]
    )


def test_losses_at_the_end_are_those_of_plain_sgd_on_a_copy() -> None:
    net = Net()
    view = view_of(net.evaluate()[0])
    twin = copy.deepcopy(net)
    torch.manual_seed(5)
    end = run(net, view)
    torch.manual_seed(5)
    sgd = torch.optim.SGD([p for p in twin.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        sgd.zero_grad()
        losses, _features = twin.evaluate()
        (0.3 * losses["a"] + 0.7 * losses["b"]).backward()
        sgd.step()
    losses, features = twin.evaluate()
    torch.testing.assert_close(end.losses, torch.stack([losses["a"], losses["b"]]).detach().double(), rtol=1e-5, atol=0)
    torch.testing.assert_close(end.features[0], features[0].detach())
    assert float((end.losses - view.losses).abs().max()) > 1e-2
    assert net.calls == 1 + 3 + 1
    with pytest.raises(PluginError, match="needs"):
        _ = end.gramian


def test_everything_is_restored_bit_for_bit_and_the_outer_graph_survives() -> None:
    net = Net()
    losses, _ = net.evaluate()
    expected = torch.autograd.grad(losses["a"] + losses["b"], net.trunk[4].weight, retain_graph=True)[0]
    net.trunk[4].weight.grad = torch.full_like(net.trunk[4].weight, 7.0)
    before, buffers = everything(net), dict(net.trunk[1]._buffers)
    noise = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()

    def drawing() -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        random.random()
        np.random.random()
        net.trunk[1].running_mean = net.trunk[1].running_mean * 2.0  # replaced, not written into
        return net.evaluate()

    weigh = lambda point: torch.ones(2)
    descend(
        view_of(losses), weigh, 4, 0.05, evaluate=drawing, parameters=net.parameters(), modules=[net.trunk, net.heads]
    )
    after = everything(net)
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert all(net.trunk[1]._buffers[k] is b for k, b in buffers.items())
    assert torch.equal(noise[0], torch.get_rng_state())
    assert noise[1] == random.getstate()
    assert bool((noise[2] == np.random.get_state()[1]).all())
    assert float(net.trunk[4].weight.grad.min()) == 7.0
    again = torch.autograd.grad(losses["a"] + losses["b"], net.trunk[4].weight)[0]
    assert torch.equal(again, expected)


def test_frozen_parameters_stay_and_weights_see_the_point() -> None:
    net = Net()
    seen: list[StepView] = []
    frozen = net.trunk[0].bias.clone()

    def weigh(point: StepView) -> Tensor:
        seen.append(point)
        assert torch.equal(net.trunk[0].bias, frozen)
        return 1.0 / point.losses

    view = view_of(net.evaluate()[0])
    run(net, view, steps=3, weigh=weigh)
    assert [tuple(p.features[0].shape) for p in seen] == [(8, 5)] * 3
    assert len({float(p.losses[0]) for p in seen}) == 3


def test_restricted_view_moves_along_its_own_tasks_only() -> None:
    net = Net()
    view = view_of(net.evaluate()[0]).restricted(torch.tensor([False, True]))
    end = run(net, view, steps=1, weigh=lambda point: torch.ones(point.n_tasks))
    assert end.task_names == ("b",)
    assert end.task_index == (1,)
    assert end.losses.shape == (1,)


def test_divergence_names_the_task_and_restores() -> None:
    net = Net()
    view = view_of(net.evaluate()[0])
    before = everything(net)
    with pytest.raises(NonFiniteError, match="task 'a'.*lower the inner step size"):
        run(net, view, steps=20, lr=1e6)
    assert all(torch.equal(before[k], v) for k, v in everything(net).items())


def test_task_that_vanishes_is_named() -> None:
    net = Net()
    view = view_of(net.evaluate()[0])
    with pytest.raises(LossError, match="'b'.*same batch"):
        descend(
            view,
            lambda point: torch.ones(2),
            1,
            0.1,
            evaluate=lambda: ({"a": net.evaluate()[0]["a"]}, ()),
            parameters=net.parameters(),
        )


def test_a_closure_may_differentiate_inside() -> None:
    """Like that of a physics-informed network, whose residuals are derivatives with respect to the inputs."""
    net = Net()
    net.trunk.eval()

    def evaluate() -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        x = net.x.clone().requires_grad_()
        z = net.trunk(x)
        (slope,) = torch.autograd.grad(net.heads["a"](z).sum(), x, create_graph=True)
        return {"a": (slope - 1.0).square().mean(), "b": (net.heads["b"](z) - net.y).square().mean()}, (z,)

    view, before = view_of(evaluate()[0]), everything(net)
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    with torch.no_grad():  # whatever the caller's mode
        end = descend(view, lambda _: weights, 3, 0.1, evaluate=evaluate, parameters=net.parameters())
    assert bool((end.losses != view.losses).all())
    assert all(f.grad_fn is None for f in end._features), "the view would hold the graph"
    assert all(torch.equal(before[k], v) for k, v in everything(net).items())
