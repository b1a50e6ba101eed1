"""Under another default device (``torch.set_default_device``) a step is what it is without one.

Draws from a step's generator, which is one of the processor, and small numbers kept there must say so: they follow the
default otherwise. The device without numbers stands for an accelerator here: whatever lands on it by default fails.
"""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from mtlcore import MultiTask, available, create
from support.architectures import build


@pytest.fixture
def elsewhere():
    def switch(on):
        torch.set_default_device("meta" if on else None)

    yield switch
    torch.set_default_device(None)


def begin(optimizer):
    """Make the optimizer's state by a step that moves nothing: torch 2.6 puts Adam's counters on the default device."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.zero_grad()


def train(method, switch, on, **options):
    """Parameters after steps with all tasks, with one missing, and with all again."""
    work = build("mlp")
    optimizer = torch.optim.Adam(work.parameters(), lr=1e-2)
    begin(optimizer)
    switch(on)
    mt = MultiTask(work.trunk, method, optimizer, tasks=work.evaluate()[0].keys(), heads=work.heads, **options)

    def closure(names):
        losses, features = work.evaluate()
        return {n: losses[n] for n in names}, features

    for names in (mt._run.progress.tasks, mt._run.progress.tasks, mt._run.progress.tasks[1:], mt._run.progress.tasks):
        mt.step([functools.partial(closure, names)] * mt.aggregator.batches)
    restored = MultiTask(work.trunk, method, heads=work.heads, **options)
    restored.load_state_dict(mt.state_dict())
    switch(False)
    return torch.cat([p.detach().flatten() for p in work.parameters()])


def same(method, switch, **options):
    return torch.equal(train(method, switch, True, **options), train(method, switch, False, **options))


@pytest.mark.parametrize("name", available("aggregator"))
def test_aggregator(name, elsewhere):
    assert same(create("aggregator", name), elsewhere)


@pytest.mark.parametrize("router", ["linear", "mlp"])
def test_routers_that_read_features(router, elsewhere):
    assert same(create("aggregator", "bilb4mtl", router=router), elsewhere)


def test_a_router_that_begins_at_random(elsewhere):
    assert same(create("aggregator", "bilb4mtl", init_low=0.0, init_high=1.0), elsewhere)


@pytest.mark.parametrize("name", available("detector"))
def test_detector(name, elsewhere):
    assert same("mgda", elsewhere, detector=name)


@pytest.mark.parametrize("name", available("teleport"))
def test_teleport(name, elsewhere):
    assert same("mgda", elsewhere, teleport=name, tolerance=10.0)


def test_attention(elsewhere):
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    x, heads = torch.randn(4, 3, 8), nn.ModuleList(nn.Linear(8, 1) for _ in range(2))
    before = [p.detach().clone() for p in layer.parameters()]
    optimizer = torch.optim.SGD([*layer.parameters(), *heads.parameters()], lr=0.0)
    teleport = create("teleport", "attention-qk", maps="full")
    mt = MultiTask(layer, "mgda", optimizer, heads=heads, teleport=teleport)

    def closure():
        z = layer(x, x, x, need_weights=False)[0]
        return {"a": heads[0](z).square().mean(), "b": heads[1](z).sin().mean()}, z

    elsewhere(True)
    assert mt.step(closure).teleport.accepted
    assert not all(torch.equal(a, b) for a, b in zip(before, layer.parameters()))


def test_weights_kept_for_some_steps(elsewhere):
    assert same("cagrad", elsewhere, refresh=3)
