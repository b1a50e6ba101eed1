"""Resumed equals uninterrupted; a state that does not fit is refused before anything changes."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from mtlcore import Aggregation, Aggregator, MultiTask
from mtlcore.errors import StateError
from support.architectures import build
from support.methods import Fixed


@dataclass(frozen=True)
class Momentum(Aggregator):
    """Random weights with memory: state, randomness and step all matter."""

    def init(self, n_tasks):
        return {"w": torch.ones(n_tasks, dtype=torch.float64), "t": torch.zeros((), dtype=torch.int64)}

    def aggregate(self, view, state):
        w = 0.5 * state["w"] + torch.rand(view.n_tasks, generator=view.generator, dtype=torch.float64)
        return Aggregation(weights=w, state={"w": w, "t": state["t"] + 1})

    def observe(self, view, state):
        return {**state, "w": state["w"] + view.losses.cpu() / view.losses.sum().cpu()}


def train(work, optimizer, mt, steps):
    return [mt.step(work.evaluate).weights for _ in range(steps)]


def start(seed=5):
    work = build("mlp")
    optimizer = torch.optim.Adam(work.parameters(), lr=1e-2)
    return work, optimizer, MultiTask(work.trunk, aggregator=Momentum(), optimizer=optimizer, seed=seed)


def test_resumed_equals_uninterrupted():
    work, optimizer, mt = start()
    train(work, optimizer, mt, 8)
    first, first_optimizer, first_mt = start()
    train(first, first_optimizer, first_mt, 3)
    file = io.BytesIO()
    torch.save(
        {"trunk": first.trunk.state_dict(), "heads": first.heads.state_dict(), "mt": first_mt.state_dict(),
         "optimizer": first_optimizer.state_dict()}, file,
    )  # fmt: skip
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second, second_optimizer, second_mt = start(seed=99)
    second.trunk.load_state_dict(saved["trunk"])
    second.heads.load_state_dict(saved["heads"])
    second_optimizer.load_state_dict(saved["optimizer"])
    second_mt.load_state_dict(saved["mt"])
    train(second, second_optimizer, second_mt, 5)
    for a, b in zip(work.parameters(), second.parameters()):
        assert torch.equal(a, b)
    assert torch.equal(mt.state_dict()["state"]["w"], second_mt.state_dict()["state"]["w"])


@pytest.mark.parametrize("seed", [np.int64(5), torch.tensor(5)])
def test_a_seed_from_elsewhere_is_the_same_seed_and_can_be_saved(seed):
    """As a number of numpy's it used to make a checkpoint that ``weights_only=True`` refuses."""
    file = io.BytesIO()
    work, optimizer, mt = start(seed)
    weights = train(work, optimizer, mt, 1)[0]
    torch.save(mt.state_dict(), file)
    file.seek(0)
    assert torch.load(file, weights_only=True)["seed"] == 5
    assert torch.equal(weights, train(*start(5), 1)[0])


def test_the_global_random_state_is_untouched():
    work, optimizer, mt = start()
    before = torch.get_rng_state()
    train(work, optimizer, mt, 2)
    assert torch.equal(before, torch.get_rng_state())


def test_saved_state_is_a_copy():
    work, optimizer, mt = start()
    train(work, optimizer, mt, 1)
    mt.state_dict()["state"]["w"].zero_()
    assert mt.state_dict()["state"]["w"].abs().sum() > 0


def test_state_of_another_method():
    work, optimizer, mt = start()
    train(work, optimizer, mt, 1)
    other = MultiTask(work.trunk, aggregator=Fixed((1.0,) * 3))
    with pytest.raises(StateError, match=r"'Momentum'; this run uses 'Fixed'"):
        other.load_state_dict(mt.state_dict())


def test_state_of_the_same_method_by_name_and_by_class():
    """Whether the class is known by its name must not depend on what was created before in the process."""
    from mtlplugins.aggregators.ls import LS

    work = build("mlp")
    mt = MultiTask(work.trunk, aggregator=LS())
    mt.backward(*work.evaluate())
    saved = mt.state_dict()
    MultiTask(work.trunk, aggregator="ls").load_state_dict(saved)
    mt.load_state_dict(saved)


def test_state_of_other_tasks():
    work, optimizer, mt = start()
    train(work, optimizer, mt, 1)
    other = MultiTask(work.trunk, aggregator=Momentum(), tasks=["a", "b"])
    with pytest.raises(StateError, match=r"3 tasks \(t0, t1, t2\); this run has 2 \(a, b\)"):
        other.load_state_dict(mt.state_dict())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("step", "x"),
        ("seed", None),
        ("tasks", 5),
        ("teleport_steps", 3),
        ("detections", [1]),
        ("gradient_sources", None),
        ("refresh", None),
        ("state", {"w": 3}),
    ],
)
def test_a_damaged_state_is_refused_before_anything_changes(key, value):
    work, optimizer, mt = start()
    train(work, optimizer, mt, 1)
    other = start(seed=7)[2]
    before = str(other.state_dict())
    with pytest.raises(StateError, match="not the state of a MultiTask, or a damaged one"):
        other.load_state_dict({**mt.state_dict(), key: value})
    assert str(other.state_dict()) == before


def test_something_else_entirely():
    work, optimizer, mt = start()
    with pytest.raises(StateError, match="not the state of a MultiTask"):
        mt.load_state_dict({"weights": 1})
    state = mt.state_dict()
    with pytest.raises(StateError, match="version 99"):
        mt.load_state_dict({**state, "version": 99})
    train(work, optimizer, mt, 1)
    broken = mt.state_dict()
    del broken["state"]["w"]
    with pytest.raises(StateError, match="lacks 'w'"):
        mt.load_state_dict(broken)
