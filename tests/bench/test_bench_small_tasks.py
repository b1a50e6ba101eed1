"""Small problems of the kind people bring: a physics-informed network, policies from logged steps, LoRA."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import mtlcore
from mtlbench import protocol
from mtlbench.suite import MethodEntry
from mtlbench.tasks import gridworlds, heat_pinn
from mtlbench.tasks.base import Budget, Network, closure, evaluate


def test_the_residual_of_the_pinn_is_what_autograd_finds():
    torch.manual_seed(0)
    trunk = heat_pinn._Jet(8).double()
    points = torch.rand(6, 2, dtype=torch.float64, requires_grad=True)
    value, residual = trunk(points).T
    first = torch.autograd.grad(value.sum(), points, create_graph=True)[0]
    second = torch.autograd.grad(first[:, 0].sum(), points)[0][:, 0]
    torch.testing.assert_close(residual, first[:, 1] - 0.1 * second)


def test_the_exact_solution_solves_the_equation_and_meets_both_conditions():
    points = torch.rand(20, 2, dtype=torch.float64, requires_grad=True)
    value = heat_pinn.exact(points)
    first = torch.autograd.grad(value.sum(), points, create_graph=True)[0]
    second = torch.autograd.grad(first[:, 0].sum(), points)[0][:, 0]
    torch.testing.assert_close(first[:, 1], 0.1 * second)
    ends = torch.tensor([[0.0, 0.3], [1.0, 0.7]], dtype=torch.float64)
    torch.testing.assert_close(heat_pinn.exact(ends), torch.zeros(2, dtype=torch.float64), atol=1e-12, rtol=0.0)
    start = heat_pinn.exact(torch.tensor([[0.5, 0.0]], dtype=torch.float64))
    assert float(start) == pytest.approx(1.0 - 0.5)


def test_the_value_of_a_policy_is_what_walking_finds():
    goal = gridworlds._GOALS["north-east"]
    n = len(gridworlds._cells())
    generator = np.random.default_rng(0)
    policy = generator.dirichlet([1.0] * 4, size=n)
    policy[:, 3] += 3.0  # eastwards, so that walks end
    policy /= policy.sum(axis=1, keepdims=True)
    values, after, at = gridworlds._values(goal, policy), gridworlds._next_states(), gridworlds._cells().index(goal)
    # Bellman's equation, in every state but the goal.
    outcome = np.where(after == at, 1.0, gridworlds._DISCOUNT * values[after])
    expected = (policy * outcome).sum(axis=1)
    assert np.allclose(np.delete(values, at), np.delete(expected, at))
    assert values.min() > 0.0
    assert values[at] == 1.0


def test_one_improvement_of_the_random_policy_finds_every_goal():
    for goal in gridworlds._GOALS.values():
        greedy = np.eye(4)[gridworlds._advantages(goal).argmax(axis=1)]
        random = np.full_like(greedy, 0.25)
        assert gridworlds._values(goal, greedy).min() > 0.95**40
        assert gridworlds._values(goal, greedy).mean() > 5 * gridworlds._values(goal, random).mean()


def test_start_states_of_validation_and_test_are_different():
    splits = mtlcore.create("task", "gridworlds").load()
    starts = {
        part: set(np.flatnonzero(split.targets["north-west"][:, 1].numpy()))
        for part, split in (("validation", splits.validation), ("test", splits.test))
    }
    assert not starts["validation"] & starts["test"]
    assert len(starts["validation"] | starts["test"]) == len(gridworlds._cells())


@pytest.mark.parametrize("name", ["heat-pinn", "gridworlds"])
def test_a_short_training_helps(name):
    task = mtlcore.create("task", name)
    torch.manual_seed(0)
    before = evaluate(task, Network(task), task.load().test)
    budget = Budget(steps=60, batch_size=128, learning_rate=task.budget.learning_rate, evaluations=2)
    found = protocol.train(name, task, MethodEntry.model_validate("upgrad"), 0, budget, before).metrics
    signs = [1.0 if m.higher_is_better else -1.0 for m in task.metrics]
    gains = [s * (found[m.key] - before[m.key]) for s, m in zip(signs, task.metrics)]
    assert all(math.isfinite(v) for v in found.values())
    assert min(gains) > 0


@pytest.mark.slow
def test_only_adapters_and_heads_of_the_language_model_learn():
    pytest.importorskip("peft")
    pytest.importorskip("transformers")
    task = mtlcore.create("task", "instructions")
    torch.manual_seed(0)
    network = Network(task)
    frozen = {n: p.clone() for n, p in network.named_parameters() if not p.requires_grad}
    assert len(frozen) > 10
    assert all("lora" in n for n, p in network.trunk.named_parameters() if p.requires_grad)
    inputs, targets = task.load().train.batch(torch.arange(16))
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=1e-2)
    mt = mtlcore.MultiTask(
        network.trunk, aggregator="upgrad", optimizer=optimizer, tasks=task.tasks, heads=network.heads
    )
    losses = [sum(mt.step(closure(task, network, inputs, targets)).losses) for _ in range(20)]
    assert losses[-1] < 0.9 * losses[0]
    assert all(torch.equal(p, frozen[n]) for n, p in network.named_parameters() if n in frozen)
