"""Tasks side by side in threads: the same numbers every time, and refused wherever Python runs in the backward pass."""

from __future__ import annotations

import gc
import signal
import sys

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mtlcore import MultiTask
from mtlcore.errors import ConfigurationError
from mtlcore.gradients import graph, planner
from mtlcore.gradients.threaded import Threaded
from support.architectures import build
from support.jacobians import make, shared_gradient
from support.methods import Fixed, FixedOnRows
from support.shapes import SHAPES

WEIGHTS = (1.0, -0.5, 2.0)

pytestmark = pytest.mark.usefixtures("two_threads")


def network(wrap=lambda layer: layer):
    """(trunk, evaluate) with the middle layer wrapped."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trunk = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 8))
        heads = nn.ModuleList(nn.Linear(8, 2) for _ in WEIGHTS)
        x = torch.randn(6, 12)
    middle = wrap(trunk[2])

    def evaluate():
        z = trunk[4](trunk[3](middle(trunk[1](trunk[0](x)))))
        return [h(z).square().mean() * (i + 1) for i, h in enumerate(heads)], z

    return trunk, evaluate


class _Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g


def hooked(layer):
    def forward(x):
        y = layer(x)
        y.register_hook(lambda g: 2.0 * g)
        return y

    return forward


WRAPS = {
    "checkpoint": lambda layer: lambda x: checkpoint(layer, x, use_reentrant=False),
    "hook": lambda layer: hooked(layer),
    "custom function": lambda layer: lambda x: _Own.apply(layer(x)),
}


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("method", [Fixed, FixedOnRows])
def test_python_in_the_backward_pass_is_refused_by_name(wrap, method):
    trunk, evaluate = network(WRAPS[wrap])
    losses, z = evaluate()
    with pytest.raises(ConfigurationError, match=r'runs Python code \(.+\)\. Use gradients="auto"'):
        MultiTask(trunk, aggregator=method(WEIGHTS), gradients="threaded").backward(losses, features=z)
    assert all(p.grad is None for p in trunk.parameters())


@pytest.mark.parametrize("wrap", WRAPS)
def test_auto_goes_on_without_threads(wrap, monkeypatch):
    monkeypatch.setattr(planner, "_SMALL", 0)
    trunk, evaluate = network(WRAPS[wrap])
    mt = MultiTask(trunk, aggregator=FixedOnRows(WEIGHTS))
    for _ in range(2):
        losses, z = evaluate()
        report = mt.backward(losses, features=z)
    assert "threaded refused: this network's tasks cannot be differentiated side by side" in report.gradient_source


def test_a_hook_that_comes_later_is_noticed():
    """The graph has another size, so it is watched again."""
    extra = []
    trunk, evaluate = network(lambda layer: lambda x: _Own.apply(layer(x)) if extra else layer(x))
    mt = MultiTask(trunk, aggregator=Fixed(WEIGHTS), gradients="threaded")
    for _ in range(2):
        losses, z = evaluate()
        mt.backward(losses, features=z)
    extra.append(True)
    losses, z = evaluate()
    with pytest.raises(ConfigurationError, match="runs Python code"):
        mt.backward(losses, features=z)


def test_every_head_is_watched():
    """Not the first task's only: one that computes again with the global random state set back disturbs the others."""
    trunk = nn.Linear(8, 8)
    heads = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)) for _ in WEIGHTS)
    for calm in range(3):
        z = trunk(torch.randn(4, 8))
        outputs = [h(z) if i == calm else checkpoint(h, z, use_reentrant=False) for i, h in enumerate(heads)]
        with pytest.raises(ConfigurationError, match="runs Python code"):
            MultiTask(trunk, aggregator=Fixed(WEIGHTS), gradients="threaded").backward(
                [y.square().mean() for y in outputs], features=z
            )


@pytest.mark.parametrize("source", ["threaded", "auto"])
def test_a_task_that_was_absent_is_watched_when_it_comes(source):
    """A graph of the same size, with other heads in it."""
    trunk = nn.Linear(8, 8)
    heads = {n: nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)) for n in "abcd"}
    mt = MultiTask(trunk, aggregator=FixedOnRows((1.0, -0.5)), gradients=source, tasks=list("abcd"))

    def step(present):
        z = trunk(torch.randn(4, 8))
        y = {n: checkpoint(heads[n], z, use_reentrant=False) if n in "cd" else heads[n](z) for n in present}
        return mt.backward({n: v.square().mean() for n, v in y.items()}, features=z)

    step("ab")
    mt.load_state_dict({**mt.state_dict(), "gradient_sources": dict.fromkeys(mt._planner._calibrations, "threaded")})
    step("ab")
    assert step("ab").gradient_source.startswith("threaded")
    for present in ("cd", "ac", "cd"):
        if source == "threaded":
            with pytest.raises(ConfigurationError, match="runs Python code"):
                step(present)
        else:
            report = step(present)
    if source == "auto":
        assert "sequential for another graph, which threaded cannot serve" in report.gradient_source


def test_autocast_and_profilers_are_refused():
    trunk, evaluate = network()
    losses, z = evaluate()
    mt = MultiTask(trunk, aggregator=Fixed(WEIGHTS), gradients="threaded")
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ConfigurationError, match="autocast"):
        mt.backward(losses, features=z)
    sys.setprofile(lambda *a: None)
    try:
        with pytest.raises(ConfigurationError, match="profiler"):
            mt.backward(losses, features=z)
    finally:
        sys.setprofile(None)


def test_a_garbage_collection_is_not_the_backward_pass():
    """Its callbacks and finalizers are Python too, and it comes when it will."""
    calls = []

    def callback(phase, info):
        calls.append(phase)

    threshold = gc.get_threshold()
    gc.callbacks.append(callback)
    gc.set_threshold(1)
    try:
        trunk, evaluate = network()
        losses, z = evaluate()
        MultiTask(trunk, aggregator=Fixed(WEIGHTS), gradients="threaded").backward(losses, features=z)
        assert gc.isenabled()
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(callback)
    assert calls


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer signals on this system")
def test_a_signal_is_not_the_backward_pass():
    calls = []

    def handler(number, frame):
        calls.append(frame.f_code is graph._engine.__code__ and sys.getprofile() is not None)

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)
    try:
        for _ in range(500):  # until one comes within a pass that is watched
            trunk, evaluate = network()
            losses, z = evaluate()
            MultiTask(trunk, aggregator=Fixed(WEIGHTS), gradients="threaded").backward(losses, features=z)
            if any(calls):
                break
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert any(calls)


def test_many_runs_agree_bit_for_bit():
    """Each task's pass is its own; which thread takes it changes nothing."""
    results = []
    for _ in range(20):
        work = make(SHAPES["small_image_convolutions"], torch.float32)
        losses, z = work.evaluate()
        report = MultiTask(work.trunk, aggregator=FixedOnRows(WEIGHTS), gradients="threaded").backward(losses, z)
        results.append((report.gramian, shared_gradient(work)))
    assert all(torch.equal(g, results[0][0]) and torch.equal(d, results[0][1]) for g, d in results)


@pytest.mark.parametrize("with_features", [True, False])
@pytest.mark.parametrize("name", ["cnn_batchnorm", "gru", "residual", "forty_tasks"])
def test_the_graph_is_freed_although_every_pass_retained_it(name, with_features):
    work = build(name)
    losses, z = work.evaluate()
    weights = tuple(1.0 for _ in losses)
    mt = MultiTask(work.trunk, aggregator=Fixed(weights), gradients="threaded")
    mt.backward(losses, features=z if with_features else None)
    with pytest.raises(RuntimeError, match="second time"):
        z.sum().backward()


def test_freeing_computes_nothing():
    x = torch.randn(4, 3, requires_grad=True)
    z = torch.tanh(x) @ torch.randn(3, 2, requires_grad=True)
    graph.free([z], [x])
    assert x.grad is None
    with pytest.raises(RuntimeError, match="second time"):
        z.sum().backward()


def test_candidates_depend_on_threads_and_device(monkeypatch):
    monkeypatch.setattr(planner, "_SMALL", 0)
    work = make(SHAPES["wide_mlp"])
    for threads, expected in ((2, True), (1, False)):
        torch.set_num_threads(threads)
        losses, z = work.evaluate()
        report = MultiTask(work.trunk, aggregator=FixedOnRows(WEIGHTS)).backward(losses, features=z)
        assert ("threaded" in report.gradient_source) == expected


def test_threaded_is_the_sequential_source_in_another_order():
    work = make(SHAPES["wide_mlp"])
    assert Threaded.provides == planner.SOURCES["sequential"].provides
    losses, z = work.evaluate()
    one = MultiTask(work.trunk, aggregator=Fixed(WEIGHTS), gradients="threaded").backward(losses, features=z)
    losses, z = work.evaluate()
    two = MultiTask(work.trunk, aggregator=Fixed(WEIGHTS), gradients="sequential").backward(losses, features=z)
    torch.testing.assert_close(one.gramian, two.gramian, rtol=1e-12, atol=0.0)
    assert one.gradient_source == "threaded: forced"


def test_a_hook_on_a_parameter_that_comes_later_is_noticed():
    """It is no part of the graph."""
    trunk, evaluate = network()
    mt = MultiTask(trunk, aggregator=Fixed(WEIGHTS), gradients="threaded")
    losses, z = evaluate()
    mt.backward(losses, features=z)
    trunk[0].weight.register_hook(lambda g: 2.0 * g)
    losses, z = evaluate()
    with pytest.raises(ConfigurationError, match="runs Python code"):
        mt.backward(losses, features=z)
