"""The constructed problem of COST's study as a training, and the figure of what happens around a teleport."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

import mtlcore
from mtlbench.studies import cost, cost_figure
from mtlbench.studies.cost_arms import ARMS
from mtlbench.studies.cost_problem import EXCESS, NAME, SCALES, BadCoordinates, task_of
from mtlbench.studies.cost_trace import Trace
from mtlbench.tasks.base import Network, closure
from support.bench_tiny import Tiny


def rows_of(network, seed=0):
    task = BadCoordinates()
    batch = task.load().validation.batch(torch.arange(64))
    losses, _ = closure(task, network, *batch)()
    parameters = list(network.trunk.parameters())
    found = [torch.autograd.grad(v, parameters, retain_graph=True) for v in losses.values()]
    return [[g.flatten().double() for g in row] for row in found]


def test_the_conflict_is_one_of_coordinates():
    """By the formulas of its docstring, and after the rescaling that removes it."""
    torch.manual_seed(3)
    network = Network(BadCoordinates())
    small, large = rows_of(network)
    agreement, conflict = float(small[1] @ large[1]), float(small[0] @ large[0])
    assert agreement > 0.0
    assert -conflict / agreement == pytest.approx(EXCESS, rel=0.1)
    size = sum(float(g @ g) for g in small)
    assert size + agreement + conflict < 0.0, "the mean gradient raises the first loss"
    with torch.no_grad():
        network.trunk[0].weight.mul_(1.5)
        network.trunk[2].weight.div_(1.5)
    small, large = rows_of(network)
    assert sum(float(a @ b) for a, b in zip(small, large)) > 0.0
    assert max(SCALES.values()) > 3.4


def test_a_teleport_helps_where_it_must():
    """In a whole training, both losses; more than what the plain steps of its price give to the task that is harmed."""
    metrics = {}
    for arm in ("alone", "exact", "extra steps"):
        found = cost.Run(BadCoordinates(), "ls", ARMS[arm], seed=1, steps=240).go()
        metrics[arm] = [found["metrics"][m.key] for m in BadCoordinates().metrics]
        assert bool(found["notes"]["accepted"]) == (arm == "exact")
    assert metrics["exact"][0] < 0.7 * metrics["alone"][0]
    assert metrics["exact"][1] < 1.02 * metrics["alone"][1]
    assert metrics["exact"][0] < 0.7 * metrics["extra steps"][0]


def test_it_is_found_by_its_name_and_others_too():
    assert isinstance(task_of(NAME), BadCoordinates)
    assert task_of("rf1").tasks
    usual = task_of(NAME).budget
    assert task_of(f"{NAME}-x10").budget == dataclasses.replace(usual, learning_rate=10 * usual.learning_rate)
    with pytest.raises(mtlcore.errors.ConfigurationError, match="rate must be"):
        BadCoordinates(rate=0.0)


def test_looking_changes_nothing():
    ends = [cost.Run(Tiny(), "ls", ARMS["random"], 1, 10, trace).go()["metrics"] for trace in (None, Trace())]
    assert ends[0] == ends[1]


def test_the_figure_is_made_of_the_records(tmp_path):
    jobs = list(cost.wanted([NAME], ["ls"], ["exact"], 2))
    file = tmp_path / cost_figure.FILE
    assert cost.train_missing(file, jobs, 40, cost_figure.traced) == 4
    assert cost.train_missing(file, jobs, 40, cost_figure.traced) == 0
    rows = cost.finished(file)
    found = cost_figure.windows(rows, NAME, "exact")
    at = cost_figure.BEFORE // cost_figure.EVERY
    with_, alone = (found["cosine"][key][:, at] for key in ("with", "alone"))
    assert np.array_equal(with_, alone), "the same until the teleport"
    assert (with_ < 0.0).all()
    assert (found["cosine"]["with"][:, at + 1] > 0.2).all()
    assert (found["loss"]["with"][:, at + 10] < 0.0).all()
    assert np.nanmax(np.abs(found["loss"]["alone"])) == 0.0
    files = [cost_figure.draw(tmp_path, tmp_path / f"{n}.svg").read_text() for n in "ab"]
    assert files[0] == files[1]
    assert f"{NAME}, exact" in files[0]
    assert json.loads(file.read_text().split("\n")[0])["trace"]["steps"][:2] == [0, 2]
