"""A task missing from a batch is not a zero gradient: the step is that of the problem without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from mtlcore import Aggregation, Aggregator, MultiTask
from support.architectures import build, gradients


@dataclass(frozen=True)
class NeedsAll(Aggregator):
    """Weights from the inverse Gramian: a zero row would make it singular."""

    def aggregate(self, view, state):
        gram = view.gramian
        return Aggregation(weights=torch.linalg.solve(gram, torch.ones(len(gram), dtype=gram.dtype)), state=state)


@dataclass(frozen=True)
class Remembers(Aggregator):
    """Counts how often each task was seen; knows its tasks by index."""

    def init(self, n_tasks):
        return {"seen": torch.zeros(n_tasks)}

    def aggregate(self, view, state):
        seen = state["seen"].clone()
        seen[list(view.task_index)] += 1
        return Aggregation(weights=torch.ones(view.n_tasks), state={"seen": seen})


@dataclass(frozen=True)
class SeesAll(Aggregator):
    handles_absent: ClassVar[bool] = True

    def aggregate(self, view, state):
        assert view.losses.isnan().tolist() == (~view.present).tolist()
        assert view.gramian.isnan().any() == (~view.present).any()
        return Aggregation(weights=torch.where(view.present, 1.0, 5.0), state=state)


@pytest.mark.parametrize("style", ["left out", "None", "list"])
def test_equals_the_problem_without_it(style):
    full, part = build("mlp", torch.float64), build("mlp", torch.float64)
    mt = MultiTask(full.trunk, aggregator=NeedsAll(), tasks=["t0", "t1", "t2"])
    losses, z = full.evaluate()
    if style == "left out":
        del losses["t1"]
    else:
        losses["t1"] = None
    report = mt.backward(list(losses.values()) if style == "list" else losses, features=z)
    losses, z = part.evaluate()
    del losses["t1"]
    MultiTask(part.trunk, aggregator=NeedsAll()).backward(losses, features=z)
    for a, b in zip(gradients(full.parameters()), gradients(part.parameters())):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)
    assert report.weights[1] == 0.0
    assert report.losses[1].isnan()
    assert report.gramian[1].isnan().all()
    assert full.heads[1].weight.grad is None


def test_state_is_indexed_by_task():
    work = build("mlp")
    mt = MultiTask(work.trunk, aggregator=Remembers(), tasks=["t0", "t1", "t2"])
    for missing in ("t1", "t1", "t0"):
        losses, z = work.evaluate()
        del losses[missing]
        mt.backward(losses, features=z)
    assert mt.state_dict()["state"]["seen"].tolist() == [2, 1, 3]


def test_a_method_may_ask_for_the_full_view():
    work = build("mlp")
    mt = MultiTask(work.trunk, aggregator=SeesAll(), tasks=["t0", "t1", "t2"])
    losses, z = work.evaluate()
    del losses["t2"]
    assert mt.backward(losses, features=z).weights.tolist() == [1.0, 1.0, 0.0]
