"""Detectors and listeners look on: what the method sees and draws is the same with and without them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from mtlcore import Aggregation, Aggregator, Conflict, ConflictDetector, MultiTask, Needs, hookimpl
from mtlcore.errors import PluginError
from mtlcore.registry import registry
from support.architectures import build


@dataclass(frozen=True)
class Draws(Aggregator):
    """Random weights, scaled by what it sees."""

    needs: ClassVar[Needs] = Needs.JACOBIAN

    def aggregate(self, view, state):
        weights = torch.rand(view.n_tasks, generator=view.generator, dtype=torch.float64)
        return Aggregation(weights=weights * view.gramian.diagonal(), state=state)


@dataclass(frozen=True)
class Busy(ConflictDetector):
    """Draws, and on request writes into the rows; always finds a conflict."""

    writes: bool = False
    needs: ClassVar[Needs] = Needs.JACOBIAN

    def detect(self, view):
        torch.rand(5, generator=view.generator)
        if self.writes:
            view.jacobian.zero_()
        k = view.n_tasks
        return Conflict(True, 1.0, torch.zeros(k, k, dtype=torch.bool), torch.zeros(k, dtype=torch.bool))


class Vandal:
    """Writes into all that it is shown."""

    @hookimpl
    def mtlcore_conflict_detected(self, conflict, report):
        report.gramian.zero_()
        report.losses.zero_()

    @hookimpl
    def mtlcore_step_finished(self, report):
        report.gramian.zero_()
        report.weights.zero_()


@pytest.fixture
def work():
    return build("mlp")


def gradients(work, detector=None):
    """Of the trunk, after two steps."""
    for p in work.parameters():
        p.grad = None
    mt = MultiTask(work.trunk, Draws(), detector=detector, gradients="sequential")
    for _ in range(2):
        losses, z = work.evaluate()
        mt.backward(losses, features=z)
    return torch.cat([p.grad.flatten().clone() for p in work.trunk.parameters()])


def test_what_a_detector_draws_is_not_taken_from_the_method(work):
    assert torch.equal(gradients(work), gradients(work, Busy()))


def test_what_a_listener_writes_reaches_nobody(work):
    without = gradients(work, Busy())
    vandal = Vandal()
    registry().add(vandal)
    try:
        assert torch.equal(without, gradients(work, Busy()))
    finally:
        registry().remove(vandal)


def test_a_detector_that_writes_into_the_rows_is_refused(work):
    losses, z = work.evaluate()
    with pytest.raises(PluginError, match="detector .*Busy.* wrote into view.jacobian"):
        MultiTask(work.trunk, Draws(), detector=Busy(writes=True)).backward(losses, features=z)
    assert all(p.grad is None for p in work.parameters())
