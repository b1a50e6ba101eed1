"""What people wrap a trunk in: equal to the plain path, or refused with the way out."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mtlcore import MultiTask
from mtlcore.errors import ConfigurationError, LossError
from support.methods import Fixed, FixedOnLosses

SOURCES = ("auto", "sequential", "batched", "streaming", "streaming-together")
WEIGHTS = (1.0, -0.5, 2.0)


def network(convolutional=False):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if convolutional:
            trunk = nn.Sequential(
                nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten()
            )
            return trunk, nn.ModuleList(nn.Linear(128, 2) for _ in WEIGHTS), torch.randn(5, 3, 6, 6)
        trunk = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 30), nn.Tanh(), nn.Linear(30, 8))
        return trunk, nn.ModuleList(nn.Linear(8, 2) for _ in WEIGHTS), torch.randn(6, 40)


def step(source, wrap=None, convolutional=False, method=Fixed, prepare=None):
    """(Gramian, every .grad) of one step through ``wrap(trunk)``."""
    trunk, heads, x = network(convolutional)
    if prepare is not None:
        trunk, x = prepare(trunk, x)
    z = (trunk if wrap is None else wrap(trunk))(x)
    losses = [h(z.float()).square().mean() * (i + 1) for i, h in enumerate(heads)]
    report = MultiTask(trunk, aggregator=method(WEIGHTS), gradients=source).backward(losses, features=z)
    return report.gramian, torch.cat([p.grad.flatten() for p in [*trunk.parameters(), *heads.parameters()]])


def close(got, expected, tolerance=1e-5):
    for a, b in zip(got, expected):
        assert float((a - b).norm()) <= tolerance * float(b.norm())


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("part", [slice(0, 5), slice(0, 2), slice(2, 5)])
def test_checkpoints(source, part):
    def wrap(trunk):
        def forward(x):
            x = trunk[: part.start](x)
            x = checkpoint(trunk[part], x, use_reentrant=False)
            return trunk[part.stop :](x)

        return forward

    close(step(source, wrap), step("sequential"))


@pytest.mark.parametrize("source", SOURCES)
def test_reentrant_checkpoints_are_refused(source):
    def wrap(trunk):
        return lambda x: checkpoint(trunk, x.requires_grad_(), use_reentrant=True)

    with pytest.raises(ConfigurationError, match="use_reentrant=False"):
        step(source, wrap)


def test_reentrant_checkpoints_work_for_methods_on_losses():
    trunk, heads, x = network()
    z = checkpoint(trunk, x.requires_grad_(), use_reentrant=True)
    losses = [h(z).square().mean() * (i + 1) for i, h in enumerate(heads)]
    MultiTask(trunk, aggregator=FixedOnLosses(WEIGHTS)).backward(losses)
    reference, plain_heads, x = network()
    z = reference(x)
    sum(w * h(z).square().mean() * (i + 1) for i, (w, h) in enumerate(zip(WEIGHTS, plain_heads))).backward()
    for p, q in zip([*trunk.parameters(), *heads.parameters()], [*reference.parameters(), *plain_heads.parameters()]):
        torch.testing.assert_close(p.grad, q.grad)


def autocast(trunk):
    def forward(x):
        with torch.autocast("cpu", torch.bfloat16):
            return trunk(x)

    return forward


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("convolutional", [False, True])
def test_autocast(source, convolutional):
    expected = step("sequential", autocast, convolutional)
    if source in ("batched", "streaming-together") and convolutional:
        # vmap mixes up the two precisions of a convolution's backward; auto notices at its first step.
        with pytest.raises(ConfigurationError, match='gradients="sequential"'):
            step(source, autocast, convolutional)
        return
    close(step(source, autocast, convolutional), expected, 1e-2)
    plain = step("sequential", None, convolutional)
    assert float((plain[1] - expected[1]).norm()) > 1e-4 * float(plain[1].norm())  # autocast did something


@pytest.mark.parametrize("source", SOURCES)
def test_channels_last(source):
    def prepare(trunk, x):
        return trunk.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)

    close(step(source, convolutional=True, prepare=prepare), step("sequential", convolutional=True))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("source", SOURCES)
def test_compiled_trunk(source):
    """aot_eager traces forward and backward as the real compiler does, without needing one."""
    torch._dynamo.reset()
    wrap = lambda trunk: torch.compile(trunk, backend="aot_eager")
    if source in ("batched", "streaming-together"):
        with pytest.raises(ConfigurationError, match='gradients="sequential"'):
            step(source, wrap)
        return
    close(step(source, wrap), step("sequential"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("source", ["auto", "sequential", "streaming"])
def test_trunk_compiled_by_inductor(source):
    torch._dynamo.reset()
    close(step(source, torch.compile), step("sequential"))


def test_a_freed_graph_is_explained():
    trunk, heads, x = network()
    z = trunk(x)
    losses = [h(z).square().mean() for h in heads]
    losses[0].backward()
    with pytest.raises(LossError, match="fresh forward pass"):
        MultiTask(trunk, aggregator=Fixed(WEIGHTS)).backward(losses, features=z)


def test_a_module_that_vmap_refuses_is_named_with_the_way_out():
    class Odd(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return torch.full_like(g, float(g.abs().max()))  # needs the number: vmap cannot

    def wrap(trunk):
        return lambda x: Odd.apply(trunk(x))

    with pytest.raises(ConfigurationError, match='Use gradients="auto" or gradients="sequential"'):
        step("batched", wrap)
    close(step("streaming", wrap), step("sequential", wrap))
