"""A task missing from a batch is not a zero gradient: the step is that of the problem without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from mtlcore import Aggregation, Aggregator, MultiTask, create
from mtlcore.errors import ConfigurationError, FeaturesError
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


class Branches(torch.nn.Module):
    """A shared layer, and a feature for each task."""

    def __init__(self):
        super().__init__()
        self.base = torch.nn.Linear(4, 6)
        self.own = torch.nn.ModuleDict({t: torch.nn.Linear(6, 3) for t in "abc"})

    def forward(self, x):
        h = torch.tanh(self.base(x))
        return {t: torch.tanh(layer(h)) for t, layer in self.own.items()}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("source", ["auto", "sequential", "batched", "streaming", "features", "losses"])
@pytest.mark.parametrize("accumulated", [False, True])
def test_the_features_of_an_absent_task_may_be_handed_over(source, accumulated):
    method = "sum" if source == "losses" else "upgrad"

    def step(handed):
        torch.manual_seed(0)
        trunk, heads = Branches(), torch.nn.ModuleDict({t: torch.nn.Linear(3, 1) for t in "abc"})
        mt = MultiTask(trunk, method, gradients=source, tasks=[*"abc"])
        for batch in range(1 + accumulated):
            z = trunk(torch.ones(5, 4))
            losses = {t: (heads[t](z[t]) - i).square().mean() for i, t in enumerate("abc") if t != "b"}
            features = {t: z[t] for t in handed}
            report = mt.backward(losses, features) if batch == accumulated else mt.accumulate(losses, features)
        return report, gradients([*trunk.parameters(), *heads.parameters()])

    if source == "features" and not accumulated:
        with pytest.raises(ConfigurationError, match="'a' and 'c' have no number of them in common"):
            step("abc")
        return
    report, found = step("abc")
    other, expected = step("ac")
    assert torch.equal(report.weights, other.weights)
    assert all((a is None) == (b is None) and (a is None or torch.equal(a, b)) for a, b in zip(found, expected))
    assert found[2] is not None
    assert found[4] is None, "the absent task's own layer"


def test_a_feature_that_nobody_reads_is_an_error_when_all_tasks_are_there():
    trunk = Branches()
    z = trunk(torch.ones(5, 4))
    with pytest.raises(FeaturesError, match=r"features\[1\] .* is not in the graph"):
        MultiTask(trunk, "upgrad").backward({"a": z["a"].sum(), "c": z["c"].exp().sum()}, z)
    copies = {t: f * 1.0 for t, f in z.items()}
    with pytest.raises(FeaturesError, match=r"is not in the graph"):
        MultiTask(trunk, "upgrad", tasks=[*"abc"]).backward({"a": z["a"].sum(), "c": z["c"].exp().sum()}, copies)


def test_a_router_sees_the_features_of_an_absent_task_too():
    trunk = Branches()
    mt = MultiTask(trunk, create("aggregator", "bilb4mtl", router="linear"), tasks=[*"abc"])
    for missing in ("", "b"):
        z = trunk(torch.ones(5, 4))
        report = mt.backward({t: z[t].square().sum() for t in "abc" if t != missing}, z)
    assert report.weights[1] == 0
