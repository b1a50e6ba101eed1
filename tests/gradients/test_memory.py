"""How many numbers a step holds, from torch's own record of allocations."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd.profiler import profile

from mtlcore import MultiTask
from support.architectures import _standard, _x
from support.jacobians import make
from support.methods import Fixed

K = 40


def mlp():
    trunk = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 128))
    return _standard(trunk, _x(32, 256), 128, k=K)


def cnn():
    """Half of the parameters in convolutions with many sites, half in a linear layer."""
    trunk = nn.Sequential(
        nn.Conv2d(3, 48, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(48, 96, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4),
        nn.Flatten(), nn.Linear(384, 96),
    )  # fmt: skip
    return _standard(trunk, _x(16, 3, 16, 16), 96, k=K)


def convolutions_only():
    """No factor saves anything here: many sites everywhere. Parameters must be taken in blocks."""
    layers = [nn.Conv2d(3, 96, 3, padding=1)]
    for _ in range(3):
        layers += [nn.ReLU(), nn.Conv2d(96, 96, 3, padding=1)]
    return _standard(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), _x(8, 3, 8, 8), 96, k=K)


def peak(function):
    """Most bytes allocated at once during ``function``."""
    with profile(profile_memory=True, use_kineto=True) as trace:
        kept = function()
    del kept
    events = [e for e in trace.kineto_results.events() if e.name() == "[memory]"]
    level = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        level += event.nbytes()
        most = max(most, level)
    return most


def extra(factory, source):
    """Peak of a first backward above that of a plain one, in units of K x P numbers."""
    work = make(factory, torch.float32)
    losses, z = work.evaluate()
    plain = peak(lambda: torch.stack(list(losses.values())).sum().backward())
    work = make(factory, torch.float32)
    mt = MultiTask(work.trunk, aggregator=Fixed((0.5,) * K), gradients=source)
    losses, z = work.evaluate()
    ours = peak(lambda: mt.backward(losses, features=z))
    return (ours - plain) / (4 * K * sum(p.numel() for p in work.trunk.parameters()))


@pytest.mark.parametrize("factory", [mlp, cnn, convolutions_only])
def test_streaming_takes_a_quarter_of_the_rows(factory):
    assert extra(factory, "streaming") < 0.25


def test_a_look_at_the_step_keeps_no_rows():
    """It used to take all of them, and everything in float64 besides."""
    peaks = []
    for taken in (False, True):
        work = make(mlp, torch.float32)
        optimizer = torch.optim.Adam(work.trunk.parameters())
        mt = MultiTask(work.trunk, Fixed((0.5,) * K), optimizer, taken=taken, gradients="streaming-together")
        peaks.append(peak(lambda mt=mt, work=work: mt.step(work.evaluate)))
    rows = 4 * K * sum(p.numel() for p in work.trunk.parameters())
    assert peaks[1] - peaks[0] < 0.25 * rows


@pytest.mark.parametrize("factory", [mlp, cnn])
def test_rows_take_little_more_than_themselves(factory):
    used = extra(factory, "sequential")
    assert 0.95 < used < 1.1  # below, the measurement would be broken


def test_a_second_step_allocates_no_rows():
    work = make(mlp, torch.float32)
    mt = MultiTask(work.trunk, aggregator=Fixed((0.5,) * K), gradients="sequential")
    for _ in range(2):
        losses, z = work.evaluate()
        used = peak(lambda losses=losses, z=z: mt.backward(losses, features=z))
    assert used < 0.2 * 4 * K * sum(p.numel() for p in work.trunk.parameters())
