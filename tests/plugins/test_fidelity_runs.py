"""Runs of the methods with a memory against transcriptions of the published rules, step by step, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import mtlcore
from mtlcore import StepView
from mtlcore.errors import ConfigurationError, LossError
from mtlplugins.solvers.cosines import Array

STEPS, K = 100, 4


def losses_at(step: int, k: int = K) -> Array:
    rng = np.random.default_rng(step)
    return (0.2 + rng.random(k)) * np.exp(-0.01 * step * np.arange(1, k + 1)) * 10.0 ** np.arange(k)


def rows_at(step: int, k: int = K, p: int = 7) -> Array:
    return np.random.default_rng(step).normal(size=(k, p))


def run(name: str, steps: int = STEPS, rows: Callable[[int], Array] | None = None, **options: Any) -> list[Any]:
    method = mtlcore.create("aggregator", name, **options)
    state, out = method.init(K), []
    for step in range(steps):
        jacobian = None if rows is None else torch.from_numpy(rows(step))
        answer = method.aggregate(StepView(losses=losses_at(step).tolist(), jacobian=jacobian, step=step), state)
        state = answer.state
        out.append(answer)
    return out


# --- dynamic weight average -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [3, 25])
def test_dwa_with_sliding_windows(window):
    """A memory of 2 W losses, ones at first; from step W + 2 on the ratio of its halves' means; weights sum to 1."""
    memory = [np.ones(K)] * (2 * window)
    for step, answer in enumerate(run("dwa", window=window, windows="sliding", total="one")):
        memory = [*memory[1:], losses_at(step)]
        expected = np.ones(K) / K
        if step > window:
            ratio = np.mean(memory[window:], axis=0) / np.mean(memory[:window], axis=0)
            expected = np.exp(ratio / 2.0 - (ratio / 2.0).max())
            expected /= expected.sum()
        np.testing.assert_allclose(answer.weights.numpy(), expected, rtol=1e-12)


def test_dwa_with_sliding_windows_of_a_task_that_is_away():
    """Its losses stay in the memory, in their order, and only those that it had count."""
    method = mtlcore.create("aggregator", "dwa", window=1, windows="sliding")
    state = method.init(2)
    for step, (here, losses) in enumerate([(3, (4, 1)), (3, (2, 1)), (1, (1, 9)), (3, (1, 3))]):
        present = torch.tensor([bool(here & 1), bool(here & 2)])
        view = StepView(losses=losses, step=step).restricted(present)
        answer = method.aggregate(view, state)
        state = answer.state
    assert answer.diagnostics["ratio"].tolist() == [1.0, 3.0]


# --- parameters that the published code keeps in the network's optimizer --------------------------------------------


def published(
    objective: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], lr: float, start: float, how: str
) -> Any:
    """The parameters in a torch optimizer with a torch scheduler, as loops have them; values before each step."""
    s = torch.full((K,), start, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([s], lr=lr)
    scheduler: Any = {
        "constant": lambda: torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
        "step": lambda: torch.optim.lr_scheduler.StepLR(optimizer, 30, 0.4),
        "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS),
    }[how]()
    out = []
    for step in range(STEPS):
        out.append(s.detach().clone())
        optimizer.zero_grad()
        objective(s, torch.from_numpy(losses_at(step))).backward()
        optimizer.step()
        scheduler.step()
    return out


SCHEDULES = {
    "constant": {},
    "step": {"lr_schedule": "step", "lr_steps": 30, "lr_factor": 0.4},
    "cosine": {"lr_schedule": "cosine", "lr_steps": STEPS},
}


@pytest.mark.parametrize("how", SCHEDULES)
def test_uw_follows_the_schedule_of_an_optimizer(how):
    expected = published(lambda s, losses: 0.5 * (torch.exp(-s) * losses + s).sum(), 0.025, 0.3, how)
    for s, answer in zip(expected, run("uw", start=0.3, **SCHEDULES[how])):
        torch.testing.assert_close(answer.weights, 0.5 * torch.exp(-s), rtol=1e-9, atol=0)


@pytest.mark.parametrize("how", SCHEDULES)
def test_imtl_l_follows_the_schedule_of_an_optimizer(how):
    expected = published(lambda s, losses: (torch.exp(s) * losses - s).sum(), 0.025, 0.0, how)
    for s, answer in zip(expected, run("imtl-l", **SCHEDULES[how])):
        torch.testing.assert_close(answer.weights, torch.exp(s), rtol=1e-9, atol=0)


def celeba(w: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
    sigma = torch.sigmoid(w)
    scaled = sigma * losses
    return scaled.sum() / sigma.sum().detach() + 0.01 * (scaled[1:] - scaled[:-1]).abs().sum()


@pytest.mark.parametrize("how", SCHEDULES)
def test_bilb4mtl_follows_the_schedule_of_an_optimizer(how):
    """The published settings for CelebA: TOTAL = sum sigma_i l_i / S + 0.01 sum |sigma_i l_i - sigma_i+1 l_i+1|."""
    routers = published(celeba, 1e-3, 1.0, how)
    for step, answer in enumerate(run("bilb4mtl", preset="celeba", **SCHEDULES[how])):
        losses = torch.from_numpy(losses_at(step)).requires_grad_()
        expected = torch.autograd.grad(celeba(routers[step], losses), losses)[0]
        torch.testing.assert_close(answer.weights, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["uw", "imtl-l", "bilb4mtl", "bilb4mtl-double-loop"])
def test_a_schedule_needs_its_length(name):
    with pytest.raises(ConfigurationError, match="lr_schedule='cosine' needs lr_steps"):
        mtlcore.create("aggregator", name, lr_schedule="cosine")
    with pytest.raises(ConfigurationError, match="lr_steps=10 has no effect"):
        mtlcore.create("aggregator", name, lr_steps=10)


@pytest.mark.parametrize("name", ["uw", "imtl-l"])
def test_a_loss_that_drives_a_learned_weight_to_infinity_is_named_at_once(name):
    method = mtlcore.create("aggregator", name)
    view = StepView(losses=[1.0, -0.5], task_names=["seg", "nll"])
    with pytest.raises(LossError, match=rf"'nll' \(-0.5\) is negative, but {name}.*shift the loss"):
        method.aggregate(view, method.init(2))
    answer = method.aggregate(StepView(losses=[1.0, 0.0]), method.init(2))
    assert answer.weights[1] == 0.0
    assert answer.diagnostics["left_out"].startswith("task1")
    key = "log_variance" if name == "uw" else "log_scale"
    for _ in range(50):
        answer = method.aggregate(StepView(losses=[2.0, 0.0]), answer.state)
    assert answer.state[key][1] == 0.0
    assert answer.state[key][0] != 0.0


# --- Nash-MTL with weights held over steps ----------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 3])
def test_nash_mtl_clips_the_trunk_in_every_step(every):
    """Weights of every third step; clip_grad_norm_ on the trunk alone, each time. The rows grow a hundredfold."""
    rows = lambda step: rows_at(step) * 10.0 ** (2.0 * step / 30)
    lengths = []
    for step, answer in enumerate(run("nash-mtl", 30, rows, update_every=every, max_norm=1.0)):
        if step % every == 0:
            a = run("nash-mtl", 1, lambda _, step=step: rows(step))[0].weights
            np.testing.assert_allclose(rows(step) @ (rows(step).T @ a.numpy()), 1 / a.numpy(), rtol=1e-8)
        trunk = rows(step).T @ a.numpy()
        found = rows(step).T @ answer.weights.numpy()
        np.testing.assert_allclose(found, trunk * min(1.0, 1.0 / np.linalg.norm(trunk)), rtol=1e-9)
        torch.testing.assert_close(answer.head_weights, a)
        lengths.append(np.linalg.norm(trunk))
    assert max(lengths) > (5.0 if every > 1 else 1.9)


# --- M-ConFIG ---------------------------------------------------------------------------------------------------------


def m_config(tasks: list[list[int]], beta1: float, beta2: float, eps: float, divide: bool) -> list[Array]:
    """Algorithm 2: averages of the tasks met in a step, ConFIG of all, the gradient that made it an average."""
    averages, met = np.zeros((K, 7)), np.zeros(K)
    before, second, t, out = np.zeros(7), np.zeros(7), 0, []
    for step, some in enumerate(tasks):
        for i in some:
            averages[i] = beta1 * averages[i] + (1 - beta1) * rows_at(step)[i]
            met[i] += 1
        if not met.all():
            out.append(np.zeros(7))
            continue
        t += 1
        corrected = averages / (1 - beta1**met)[:, None]
        x = np.linalg.pinv(corrected / np.linalg.norm(corrected, axis=1, keepdims=True)) @ np.ones(K)
        x = x / np.linalg.norm(x)
        d = (corrected @ x).sum() * x
        average = d * (1 - beta1**t)
        pseudo = (average - beta1 * before) / (1 - beta1)
        before, second = average, beta2 * second + (1 - beta2) * pseudo**2
        out.append(d / (np.sqrt(second / (1 - beta2**t)) + eps) if divide else d)
    return out


@pytest.mark.parametrize("divide", [True, False])
@pytest.mark.parametrize("turn", [lambda step: [step % K], lambda step: list(range(K)), lambda step: [step % 2, 2, 3]])
def test_m_config(divide, turn):
    tasks = [turn(step) for step in range(60)]
    method = mtlcore.create("aggregator", "m-config", second_moment=divide)
    state = method.init(K)
    for step, expected in enumerate(m_config(tasks, 0.9, 0.999, 1e-8, divide)):
        present = torch.tensor([i in tasks[step] for i in range(K)])
        rows = torch.from_numpy(np.where(present.numpy()[:, None], rows_at(step), 0.0))
        losses = torch.where(present, 1.0, torch.nan)
        answer = method.aggregate(StepView(losses=losses, jacobian=rows, present=present, step=step), state)
        state = answer.state
        np.testing.assert_allclose(answer.direction.numpy(), expected, rtol=1e-6, atol=1e-7)
        assert ("waiting" in answer.diagnostics) == (not expected.any())


def test_m_config_holds_gradients_whose_squares_leave_their_dtype():
    """float32 rows of 1e20 and 1e-20: the answer is that of ordinary ones, as far as eps lets it be."""
    method = mtlcore.create("aggregator", "m-config", eps=0.0)
    found = []
    for scale in (1.0, 2.0**66, 2.0**-66):
        state = method.init(K)
        for step in range(4):
            rows = torch.from_numpy(rows_at(step)).float() * scale
            answer = method.aggregate(StepView(losses=[1.0] * K, jacobian=rows, step=step), state)
            state = answer.state
        assert bool(state["root"].isfinite().all())
        assert bool((state["root"] > 0).all())
        found.append(answer.direction)
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


def test_m_config_without_memory_is_config():
    rows = torch.from_numpy(rows_at(3))
    for options in ({}, {"preferences": (1.0, 2.0, 3.0, 4.0), "length": "minimum"}):
        expected = mtlcore.aggregate(mtlcore.create("aggregator", "config", **options), rows)
        found = mtlcore.create("aggregator", "m-config", beta1=0.0, second_moment=False, **options)
        torch.testing.assert_close(mtlcore.aggregate(found, rows), expected)


def test_m_config_trains_one_task_at_a_time():
    """Three tasks in turn, one backward pass each step: all losses fall, resumed or not."""
    torch.manual_seed(0)
    x = torch.randn(64, 5)
    y = torch.tanh(x @ torch.randn(5, 3))

    def train(cut: int | None) -> list[float]:
        torch.manual_seed(1)
        trunk, heads = torch.nn.Linear(5, 8), torch.nn.ModuleList(torch.nn.Linear(8, 1) for _ in range(3))
        optimizer = torch.optim.SGD([*trunk.parameters(), *heads.parameters()], lr=0.01)
        make = lambda: mtlcore.MultiTask(trunk, "m-config", optimizer)
        mt, names = make(), ("a", "b", "c")

        def loss(i: int) -> torch.Tensor:
            return (heads[i](torch.tanh(trunk(x))).squeeze() - y[:, i]).square().mean()

        for step in range(150):
            if step == 0:
                mt.backward({name: loss(i) for i, name in enumerate(names)})
            else:
                mt.backward({names[step % 3]: loss(step % 3)})
            optimizer.step()
            optimizer.zero_grad()
            if step == cut:
                saved, mt = mt.state_dict(), make()
                mt.load_state_dict(saved)
        return [loss(i).item() for i in range(3)]

    straight = train(None)
    assert max(straight) < 0.35
    assert train(40) == straight


def test_m_config_refuses_another_trunk():
    method = mtlcore.create("aggregator", "m-config")
    rows = torch.from_numpy(rows_at(0))
    state = method.aggregate(StepView(losses=[1.0] * K, jacobian=rows), method.init(K)).state
    with pytest.raises(ConfigurationError, match="remembers gradients of 7 parameters, but the trunk has 6"):
        method.aggregate(StepView(losses=[1.0] * K, jacobian=rows[:, :6]), state)
