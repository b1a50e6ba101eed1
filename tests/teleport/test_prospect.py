"""A teleport judged by what the next steps promise: the prediction, its gradient, the search, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mtlcore
from mtlcore.errors import ConfigurationError
from mtlcore.geometry.moves import pace
from mtlcore.teleporting import Teleporter
from mtlcore.teleporting.outlook import outlook
from mtlcore.teleporting.problem import Problem
from mtlcore.teleporting.transaction import Transaction
from mtlplugins.teleports.lora.field import Field, inner
from mtlplugins.teleports.lora.prospect import Progress
from support.teleport_nets import TASKS, problem, teleport

HORIZON = 7
OPTIMIZERS = [
    (torch.optim.SGD, {}),
    (torch.optim.SGD, {"momentum": 0.9, "dampening": 0.3}),
    (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    (torch.optim.Adam, {"betas": (0.9, 0.99)}),
    (torch.optim.AdamW, {"betas": (0.9, 0.99), "weight_decay": 0.0}),
    (torch.optim.RMSprop, {"momentum": 0.8, "alpha": 0.9}),
    (torch.optim.RMSprop, {"centered": False, "alpha": 0.9}),
]


@pytest.mark.parametrize(("optimizer", "options"), OPTIMIZERS)
def test_the_pace_is_that_of_a_gradient_that_stays(optimizer, options):
    p = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    gradient = torch.tensor([3.0, -1e-3, 0.5, 100.0], dtype=torch.float64)
    one = optimizer([p], lr=1e-2, **options)
    for _ in range(500):
        before, p.grad = p.detach().clone(), gradient.clone()
        one.step()
    (found,) = pace(one, [p])
    torch.testing.assert_close(before - p.detach(), found * gradient, rtol=1e-4, atol=0.0)


def test_no_pace_where_nothing_is_known():
    p = nn.Parameter(torch.zeros(4))
    assert pace(torch.optim.Adam([p]), [p]) is None, "no step behind it"
    assert pace(torch.optim.NAdam([p]), [p]) is None
    assert pace(None, [p]) is None
    assert torch.equal(pace(torch.optim.SGD([p], lr=0.5), [p])[0], torch.full((4,), 0.5, dtype=torch.float64))


@pytest.fixture
def opened():
    """A problem of a trained network with an optimizer that has a history, frozen as in a transaction."""
    frozen = []

    def make(kind):
        made = problem(kind)
        optimizer = made.optimizer(lr=1e-3)
        made.train(optimizer, 5)
        transaction = Transaction(made.trunk, made.heads, optimizer, frozen_statistics=True)
        frozen.append((transaction, transaction.frozen()))
        frozen[-1][1].__enter__()
        view = mtlcore.StepView(losses=torch.ones(3), task_names=TASKS)
        return Problem(transaction, made.batch(0), view, None)

    yield make
    for transaction, one in frozen:
        one.__exit__()
        transaction.roll_back()


def test_the_outlook_is_the_loss_where_the_steps_arrive(opened):
    asked = opened("lstm")
    parameters = list(asked.parameters().values())
    start = [p.detach().clone() for p in parameters]
    losses = asked.evaluate()[0]
    before = {n: float(v.detach()) for n, v in losses.items()}
    found = outlook(asked, losses, asked.pace(), HORIZON)
    assert all(map(torch.equal, start, [p.detach() for p in parameters]))
    mean = torch.autograd.grad(sum(asked.evaluate()[0].values()) / 3, parameters)
    with torch.no_grad():
        for p, d, g in zip(parameters, asked.pace(), mean):
            p -= HORIZON * d.view_as(p) * g
    after = {n: float(v) for n, v in asked.losses().items()}
    assert found == pytest.approx(max(after[n] / before[n] - 1 for n in TASKS), abs=1e-12)


@pytest.mark.parametrize("kind", ["embedding", "lstm", "plain"])  # smooth networks
def test_the_gradient_is_that_of_the_value(kind, opened):
    asked = opened(kind)
    field = Field(asked)
    measure = Progress(asked.pace(), HORIZON)
    value, ascent = measure.ascent(field, torch.Generator())
    here = field.current()

    def decrease():
        mean = torch.full((3,), 1 / 3, dtype=torch.float64)
        place, now = field.current(), field.losses()
        _, (g,) = field.gradients(mean)
        field.place(place, [-HORIZON * d.view_as(x) * x for d, x in zip(asked.pace(), g)])
        later = field.losses()
        field.place(place)
        return (now - later) / field.unit

    weights = measure._weights(decrease())
    assert value == pytest.approx(float(weights @ decrease()) / measure.unit)
    generator = torch.Generator().manual_seed(1)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in field.start]
    ends = []
    for sign in (1.0, -1.0):
        field.place(here, [sign * 1e-5 * d for d in direction])
        ends.append(float(weights @ decrease()) / measure.unit)
    field.place(here)
    assert inner(ascent, direction) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4)


@pytest.mark.parametrize("kind", ["conv", "attention", "lstm", "mlp", "plain"])
def test_an_accepted_one_promises_more_and_keeps_the_losses(kind):
    made = problem(kind)
    torch.manual_seed(0)  # of the dropout in the five steps
    optimizer = made.optimizer(lr=1e-3)
    made.train(optimizer, 5)
    # Not every proposal is an improvement, and every version of torch draws other networks: of some batches, one is.
    tried = (
        teleport(
            made, "lora", {"objective": "progress"}, optimizer=optimizer, accept="progress",
            closure=made.batch(seed, 384), probe=made.batch(seed + 1, 384),
        )
        for seed in range(0, 8, 2)
    )  # fmt: skip
    result = next(r for r in tried if r.accepted)
    assert result.conflict_after < result.conflict_before
    assert "the worst task's change in 10 steps" in result.reason
    assert max(abs(c) for c in result.relative_loss_change.values()) <= 0.02


def test_what_cannot_be_foretold_is_refused():
    with pytest.raises(ConfigurationError, match="exact teleport changes the metric"):
        Teleporter("relu-rescaling", accept="progress")
    with pytest.raises(ConfigurationError, match="horizon=0"):
        Teleporter("lora", accept="progress", horizon=0)
    with pytest.raises(ConfigurationError, match="by differences"):
        mtlcore.create("teleport", "lora", objective="progress", estimator="double-backward")
    made = problem("mlp")
    for options in ({}, {"objective": "progress"}):
        result = teleport(made, "lora", options, optimizer=made.optimizer(), accept="progress")
        assert not result.accepted
        assert "next steps of the optimizer are not known" in result.reason
