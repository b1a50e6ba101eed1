"""One small problem for all trainers: two tasks that pull apart, and steps of a loop of one's own to compare with."""

from __future__ import annotations

import torch
from torch import nn

from mtlcore import MultiTask

TASKS = ("a", "b")
ROWS = 48


class Parts(nn.Module):
    """Trunk and heads from one seed."""

    def __init__(self) -> None:
        super().__init__()
        before = torch.random.get_rng_state()
        torch.manual_seed(5)
        self.trunk = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 8))
        self.heads = nn.ModuleDict({t: nn.Linear(8, 1) for t in TASKS})
        torch.random.set_rng_state(before)


def table():
    """(x, a, b) of all samples."""
    g = torch.Generator().manual_seed(11)
    x = torch.randn(ROWS, 6, generator=g)
    y = x.sum(1, keepdim=True) + 0.1 * torch.randn(ROWS, 1, generator=g)
    return x, y, -2.0 * y


def losses(parts, x, a, b):
    z = parts.trunk(x)
    targets = {"a": a, "b": b}
    return {t: nn.functional.mse_loss(head(z).float(), targets[t]) for t, head in parts.heads.items()}, z


def by_hand(method, batches, *, accumulate=1, clip=None, rate=0.05, autocast=False, second=False):
    """The parameters after steps over these batches, in a loop of one's own."""
    parts = Parts()
    optimizer = torch.optim.SGD(parts.parameters(), rate, momentum=0.9)
    mt = MultiTask(parts.trunk, method, optimizer, tasks=TASKS, heads=parts.heads, process_group=None, seed=1)
    for start in range(0, len(batches), accumulate):
        group = batches[start : start + accumulate]
        if second:
            mt.step(lambda: losses(parts, *group[0]))  # noqa: B023
            continue
        optimizer.zero_grad()
        for i, batch in enumerate(group):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                found, z = losses(parts, *batch)
            found = {t: v / accumulate for t, v in found.items()}
            (mt.backward if i + 1 == len(group) else mt.accumulate)(found, features=z)
        if clip is not None:
            nn.utils.clip_grad_norm_(parts.parameters(), clip)
        optimizer.step()
    return values(parts)


def values(module):
    return {n: p.detach().clone() for n, p in module.named_parameters()}


def batches(size, n=None, part=(0, 1)):
    """Consecutive batches of ``size`` samples; of process r among R those with the index r modulo R."""
    rank, world = part
    rows = [t[rank::world] for t in table()]
    return [tuple(t[i : i + size] for t in rows) for i in range(0, len(rows[0]), size)][:n]


def whole_batches(size, world):
    """What the processes have together in each step."""
    parts = [batches(size, part=(r, world)) for r in range(world)]
    return [tuple(torch.cat(ts) for ts in zip(*step)) for step in zip(*parts)]


def apart(one, other):
    """The distance between two sets of parameters, relative to all of them."""
    strip = lambda d: {n.replace("module.", "").replace("parts.", ""): v for n, v in d.items()}
    one, other = strip(one), strip(other)
    assert one.keys() == other.keys()
    total = lambda tensors: sum(float(t.double().square().sum()) for t in tensors) ** 0.5
    return total(one[n] - other[n] for n in one) / total(other.values())
