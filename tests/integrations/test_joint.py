"""The scalar that stands for all losses: its backward pass is a step, whatever a trainer multiplied it by."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch

from mtlcore import MultiTask
from mtlcore.errors import ConfigurationError, LossError, MissingExtraError, NonFiniteError
from mtlcore.integrations._joint import Step, Through, joint
from support.trainer_nets import TASKS, Parts, apart, batches, losses, values


def made(method="upgrad", **options):
    parts = Parts()
    optimizer = torch.optim.SGD(parts.parameters(), 0.05)
    return parts, optimizer, MultiTask(parts.trunk, method, optimizer, tasks=TASKS, heads=parts.heads, **options)


def grads(parts):
    return {n: p.grad.clone() for n, p in parts.named_parameters()}


@pytest.mark.parametrize("method", ["upgrad", "imtl-l", "pcgrad"])
@pytest.mark.parametrize("form", ["dict", "list"])
def test_its_backward_is_the_step(method, form):
    (batch,) = batches(12, 1)
    parts, _, mt = made(method)
    found, z = losses(parts, *batch)
    mt.backward(found, features=z)
    right = grads(parts)
    parts, _, mt = made(method)
    found, z = losses(parts, *batch)
    reports = []
    loss = joint(Step(mt, found if form == "dict" else [*found.values()], z, told=reports.append), "")
    assert float(loss.detach()) == pytest.approx(sum(v.item() for v in found.values()))
    loss.backward()
    assert apart(grads(parts), right) <= 1e-7
    assert [r.step for r in reports] == [0]


def test_what_the_loss_was_multiplied_by_is_what_the_losses_are():
    """Not the gradients: a method need not be linear in the losses."""
    (batch,) = batches(12, 1)
    parts, _, mt = made("nash-mtl")
    found, z = losses(parts, *batch)
    report = mt.backward({t: v / 4 for t, v in found.items()}, features=z)
    right = grads(parts)
    parts, _, mt = made("nash-mtl")
    found, z = losses(parts, *batch)
    seen = []
    (joint(Step(mt, found, z, told=seen.append), "") / 4).backward()
    assert apart(grads(parts), right) <= 1e-6
    assert torch.allclose(seen[0].losses, report.losses)


def test_micro_batches_with_a_scaler_and_an_overflow():
    first, second = batches(12, 2)
    parts, _, mt = made("cagrad")
    for i, batch in enumerate((first, second)):
        found, z = losses(parts, *batch)
        (mt.accumulate if i == 0 else mt.backward)({t: v / 2 for t, v in found.items()}, features=z)
    right = grads(parts)
    parts, optimizer, mt = made("cagrad")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaler.scale(torch.ones(()))
    for i, batch in enumerate((first, second)):
        found, z = losses(parts, *batch)
        scaler.scale(joint(Step(mt, found, z, lambda: i == 1, scaler), "") / 2).backward()  # noqa: B023
    scaler.unscale_(optimizer)
    assert apart(grads(parts), right) <= 1e-6
    before = values(parts)
    optimizer.zero_grad()
    scaler.update()
    found, z = losses(parts, *first)
    reports = []
    loss = joint(Step(mt, {**found, "a": found["a"] * float("inf")}, z, scaler=scaler, told=reports.append), "")
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert reports[0].skipped
    assert apart(values(parts), before) == 0.0
    assert scaler.get_scale() == 2.0**9


def test_errors_come_through_the_backward_pass_as_they_are():
    (batch,) = batches(12, 1)
    parts, _, mt = made()
    found, z = losses(parts, *batch)
    with pytest.raises(NonFiniteError, match="'b'"):
        joint(Step(mt, {**found, "b": found["b"] * float("nan")}, z), "").backward()
    assert all(p.grad is None for p in parts.parameters())
    loss = joint(Step(mt, *losses(parts, *batch)), "")
    loss.backward()
    with pytest.raises(LossError, match="differentiated already"):
        loss.backward()


def test_without_gradients_it_is_a_number():
    (batch,) = batches(12, 1)
    parts, _, mt = made()
    with torch.no_grad():
        assert not joint(Step(mt, *losses(parts, *batch)), "").requires_grad


@pytest.mark.parametrize(
    ("method", "options"), [("famo", {}), ("modo", {}), ("upgrad", {"teleport": "relu-rescaling"})]
)
def test_what_needs_the_closure_is_refused(method, options):
    parts, _, mt = made(method, **options)
    with pytest.raises(ConfigurationError, match="within a step.*: use another way"):
        joint(Step(mt, *losses(parts, *batches(12, 1)[0])), "use another way")


class Held:
    """A trainer's optimizer around the user's."""

    def __init__(self, optimizer, scaler):
        self.optimizer, self.scaler, self.steps = optimizer, scaler, 0

    def step(self):
        self.steps += 1
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()


@pytest.mark.parametrize("scaled", [False, True])
def test_a_whole_step_through_the_trainers_optimizer(scaled):
    (batch,) = batches(12, 1)
    parts, _, mt = made("famo")
    mt.step(lambda: losses(parts, *batch))
    right = values(parts)
    parts, optimizer, mt = made("famo")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8) if scaled else None
    held = Held(optimizer, scaler)
    mt.step(lambda: losses(parts, *batch), scaler=Through([held], scaler))
    assert held.steps == 1
    assert apart(values(parts), right) <= 1e-6


@pytest.mark.parametrize("name", ["lightning", "transformers", "accelerate"])
def test_a_missing_library_names_the_extra(name, monkeypatch):
    module = f"mtlcore.integrations.{name}"
    for known in [m for m in sys.modules if m == module]:
        monkeypatch.delitem(sys.modules, known)
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, f"{name}.pytorch", None)
    with pytest.raises(MissingExtraError, match=rf"'{name}'.*mtlcore\[train\]"):
        importlib.import_module(module)
