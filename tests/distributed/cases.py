"""What the processes run; imported there by name."""

from __future__ import annotations

import os

import torch
from torch import nn

from mtlcore import MultiTask, create

TASKS = ("a", "b", "c")


class Net(nn.Module):
    """A trunk and a head for each task."""

    def __init__(self, kind: str = "mlp", dtype=torch.float64) -> None:
        super().__init__()
        generator_state = torch.random.get_rng_state()
        torch.manual_seed(7)
        if kind == "mlp":
            self.trunk = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8))
        elif kind == "cnn":
            self.trunk = nn.Sequential(nn.Unflatten(1, (1, 6, 1)), nn.Conv2d(1, 3, (3, 1)), nn.Tanh(), nn.Flatten(), nn.Linear(12, 8))
        elif kind == "transformer":
            layer = nn.TransformerEncoderLayer(6, 2, 12, dropout=0.0, batch_first=True)
            self.trunk = nn.Sequential(nn.Unflatten(1, (1, 6)), nn.TransformerEncoder(layer, 1), nn.Flatten(), nn.Linear(6, 8))
        self.heads = nn.ModuleDict({t: nn.Linear(8, 2) for t in TASKS})
        if kind == "tied":
            self.trunk = nn.Linear(8, 8)
            self.heads["a"].weight = nn.Parameter(torch.randn(2, 8))
            self.heads["b"].weight = self.trunk.weight
            self.heads["b"].bias = nn.Parameter(torch.zeros(8))
        self.to(dtype)
        torch.random.set_rng_state(generator_state)

    def forward(self, x):
        z = self.trunk(x)
        return z, {t: head(z) for t, head in self.heads.items()}


def data(step: int, n: int, dtype=torch.float64, width: int = 6):
    """The global batch of a step: ``n`` samples."""
    g = torch.Generator().manual_seed(100 + step)
    x = torch.randn(n, width, generator=g, dtype=torch.float64)
    y = torch.randn(n, 8, generator=g, dtype=torch.float64)
    return x.to(dtype), y.to(dtype)


def losses(out, y, tasks=TASKS):
    scale = dict(zip(TASKS, (1.0, -2.0, 3.0)))
    return {t: ((out[t] - scale[t] * y[:, : out[t].shape[1]]) ** 2).mean() for t in tasks}


def part(rank, size, *tensors):
    """The samples of one process."""
    n = len(tensors[0]) // size
    return tuple(t[rank * n : (rank + 1) * n] for t in tensors)


def method(name):
    return name if isinstance(name, str) else create("aggregator", name[0], **name[1])


def wrapped(net, how):
    """The network to call, what MultiTask is given as trunk, and a forward pass."""
    ddp = nn.parallel.DistributedDataParallel
    if how == "plain":
        return net.trunk, net
    if how == "list":
        return list(net.trunk.parameters()), net
    if how == "ddp-trunk":
        net.trunk = ddp(net.trunk)
        return net.trunk, net
    whole = ddp(net)
    if how == "ddp-module-trunk":
        return whole.module.trunk, whole
    assert how == "ddp-list"
    return list(whole.module.trunk.parameters()), whole


def grads(net):
    return {n.replace("trunk.module.", "trunk."): None if p.grad is None else p.grad.clone() for n, p in net.named_parameters()}


def train(rank, size, how, kind, name, steps=1, dtype=torch.float64, **options):
    """Some steps of backward and SGD; ``size`` 1 is the whole batch on one process. Gradients of the last step, weights,
    parameters, state and report."""
    torch.manual_seed(rank)
    net = Net(kind, dtype)
    trunk, call = wrapped(net, how)
    width = 8 if kind == "tied" else 6
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    mt = MultiTask(trunk, method(name), tasks=TASKS, **{"process_group": None if size == 1 else "auto", **options})
    report = None
    for step in range(steps):
        optimizer.zero_grad()
        x, y = part(rank, size, *data(step, 12, dtype, width))
        z, out = call(x)
        report = mt.backward(losses(out, y), features=z)
        if step + 1 < steps:
            optimizer.step()
            if mt.aggregator.looks_twice():
                mt.observe({t: v.detach() for t, v in losses(call(x)[1], y).items()})
    state = {k: v for k, v in (mt._progress.state or {}).items()}
    return {
        "grads": grads(net),
        "weights": report.weights,
        "losses": report.losses,
        "gramian": report.gramian,
        "parameters": {n: p.detach().clone() for n, p in net.named_parameters()},
        "state": state,
        "source": report.gradient_source,
        "bytes": dict(mt._processes.wire.bytes) if mt._processes.wire else {},
    }
