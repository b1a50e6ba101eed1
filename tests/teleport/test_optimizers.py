"""Histories across teleports, optimizer by optimizer: what is carried, and how that is known to be right."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mtlcore
from mtlcore import MatrixMap, trajectory
from mtlcore.errors import TeleportError
from support.teleport_nets import Falling, problem, teleport


def run(make, options, start, gradients):
    """A parameter and its optimizer after some steps with given gradients."""
    parameter = nn.Parameter(start.clone())
    optimizer = make([parameter], **options)
    for g in gradients:
        parameter.grad = g.clone()
        optimizer.step()
    return parameter, optimizer


def numbers(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_adadelta_takes_the_same_step_in_the_new_coordinates():
    """The one optimizer of these that a diagonal map commutes with, but for eps: the next step is D times the old."""
    start, (*gradients, g) = numbers(6), numbers(5, 6)
    d = 0.5 + torch.rand(6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    options = {"lr": 1.0, "eps": 1e-30}
    here, _ = run(torch.optim.Adadelta, options, start, [*gradients, g])
    there, optimizer = run(torch.optim.Adadelta, options, start, gradients)
    there.data.mul_(d)
    trajectory.transport(optimizer, there, d)
    there.grad = g / d
    optimizer.step()
    torch.testing.assert_close(there.detach(), d * here.detach(), rtol=1e-12, atol=1e-14)


def test_the_mean_of_points_that_asgd_keeps_goes_with_them():
    start, gradients = numbers(4, 3), numbers(3, 4, 3)
    parameter, optimizer = run(torch.optim.ASGD, {"lr": 0.1, "t0": 0}, start, gradients)
    before = optimizer.state[parameter]["ax"].clone()
    matrix = numbers(4, 4)
    trajectory.transport(optimizer, parameter, MatrixMap(matrix, 0))
    torch.testing.assert_close(optimizer.state[parameter]["ax"], matrix @ before)
    trajectory.reuse(optimizer, [parameter], 0.25)
    there, state = parameter.detach().clone(), optimizer.state[parameter]
    mean, mu = state["ax"].clone(), state["mu"].clone()
    parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    blended = 0.25 * mean + 0.75 * there
    torch.testing.assert_close(state["ax"], blended + mu * (parameter.detach() - blended))


def estimate(state):
    """The second moment that Adafactor divides by."""
    row, column = state["row_var"], state["col_var"]
    return row * column / row.mean(dim=-2, keepdim=True)


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 4, 5)])
def test_the_second_moment_that_adafactor_uses_is_transported(shape):
    """Exactly, for a map that is a factor per row times a factor per column, as those of rescalings are."""
    start, gradients = numbers(*shape), numbers(3, *shape)
    parameter, optimizer = run(torch.optim.Adafactor, {"lr": 0.1}, start, gradients)
    rows, columns = 0.5 + numbers(shape[-2]).abs()[:, None], 0.5 + numbers(shape[-1] + 1)[1:].abs()
    d = rows / columns
    before = estimate(optimizer.state[parameter])
    trajectory.transport(optimizer, parameter, d.expand(shape))
    torch.testing.assert_close(estimate(optimizer.state[parameter]), before / d**2, rtol=1e-10, atol=0)


def test_adafactor_over_a_constant_is_that_of_the_same_path():
    """A map that is constant where it averages: row and column means are those of the gradients g / D."""
    start, gradients = numbers(5, 2, 3, 3), numbers(4, 5, 2, 3, 3)
    d = (0.5 + numbers(5).abs()).view(5, 1, 1, 1)
    (p, one), (q, two) = (run(torch.optim.Adafactor, {"lr": 0.0}, start, g) for g in (gradients, gradients / d))
    trajectory.transport(one, p, d.expand_as(p))
    for key in ("row_var", "col_var"):
        torch.testing.assert_close(one.state[p][key], two.state[q][key], rtol=1e-12, atol=0)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has no Muon before 2.9")
def test_muon_and_adam_side_by_side_follow_each_its_own():
    made = problem("mlp")
    made.trunk.eval()
    matrices = [p for p in made.parameters() if p.dim() == 2]
    others = [p for p in made.parameters() if p.dim() != 2]

    def both():
        return [torch.optim.Muon(matrices, lr=0.0), torch.optim.AdamW(others, lr=0.0)]

    def train(optimizers):
        for step in range(3):
            made.trunk.zero_grad()
            made.heads.zero_grad()
            sum(made.batch(1000 + step)()[0].values()).backward()
            for optimizer in optimizers:
                optimizer.step()

    optimizers = both()
    train(optimizers)
    assert teleport(made, "random", optimizer=optimizers).accepted
    fresh = both()
    train(fresh)
    compared = []
    for carried, made_new in zip(optimizers, fresh):
        for p, state in made_new.state.items():
            for key, value in state.items():
                torch.testing.assert_close(carried.state[p][key], value, rtol=1e-9, atol=1e-25, msg=key)
                compared.append(key)
    assert {"momentum_buffer", "exp_avg", "exp_avg_sq"} <= set(compared)


@pytest.mark.parametrize("make", [torch.optim.Adafactor, torch.optim.Adadelta, torch.optim.ASGD])
@pytest.mark.parametrize("name", ["lora", "linear-boundary"])
def test_jumps_and_matrices_are_followed_too(make, name):
    made = problem("mlp")
    optimizer = made.optimizer(make, lr=1e-3)
    made.train(optimizer, 3)
    result = teleport(made, name, optimizer=optimizer, detector=Falling())
    assert result.accepted, result.reason
    assert result.diagnostics["history"] in ("reused", "transported")
    made.train(optimizer, 2)
    state = [v for p in made.parameters() for v in optimizer.state[p].values() if isinstance(v, torch.Tensor)]
    assert all(torch.isfinite(v).all() for v in (*state, *made.parameters()))


@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_blended_factors_are_those_of_the_papers_decay(sigma):
    start, (*gradients, g) = numbers(4, 3), numbers(4, 4, 3)
    parameter, optimizer = run(torch.optim.Adafactor, {"lr": 0.0}, start, gradients)
    row, step = optimizer.state[parameter]["row_var"].clone(), 4.0 if sigma else 1.0
    trajectory.reuse(optimizer, [parameter], sigma)
    parameter.grad = g.clone()
    optimizer.step()
    beta = sigma * (1 - step**-0.8)
    expected = beta * row + (1 - beta) * g.square().mean(dim=-1, keepdim=True)
    torch.testing.assert_close(optimizer.state[parameter]["row_var"], expected, rtol=1e-10, atol=0)


def test_accelerates_wrapper_is_looked_into():
    accelerate = pytest.importorskip("accelerate")
    made = problem("mlp")
    inner = made.optimizer()
    optimizer = accelerate.Accelerator(cpu=True).prepare(inner)
    made.train(inner, 2)
    mt = mtlcore.MultiTask(
        made.trunk, "ls", optimizer, detector=Falling(), teleport="lora", heads=made.heads, probe=made.batch(1)
    )
    report = mt.step(made.batch(0))
    assert report.teleport.accepted, report.teleport.reason
    assert report.teleport.diagnostics["history"] == "reused"
    assert trajectory.waiting(inner) == {}, "the wrapped optimizer's own step has blended"


def test_an_unknown_entry_names_two_ways_out():
    made = problem("mlp")
    optimizer = made.optimizer()
    made.train(optimizer, 1)
    optimizer.state[made.trunk[0].weight]["mystery"] = torch.ones(10, 6)
    with pytest.raises(TeleportError, match=r"'mystery'.*use the optimizer that it extends; or let it forget.*reset"):
        teleport(made, "random", optimizer=optimizer)
