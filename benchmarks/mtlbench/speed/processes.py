"""Steps of two processes with half of a batch each, and of one process with all of it."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import mtlcore
from mtlbench.speed import wire
from mtlbench.speed.workloads import Workload, mlp
from mtlcore.distributed.hook import Rounded

ONE = "one process, whole batch"
DDP = "DDP, plain sum"
NAIVE = "all rows summed"
SHARES = "shares of columns"
FEATURES = "at the features"
ROUNDED = "shares, bfloat16"
LOSSES = "losses (imtl-l)"
BARE = "shares by hand"
OVERLAPPED = "shares by hand, overlapped"
METHOD = "upgrad"
_RATE = 1e-4


def whole(k: int, width: int) -> Workload:
    """The same on every process."""
    torch.manual_seed(0)
    return mlp(k, width, batch=128)


def part(workload: Workload, rank: int, size: int) -> Workload:
    """The samples of one process; the modules stay."""
    n = len(workload.inputs[0]) // size
    mine = slice(rank * n, (rank + 1) * n)
    each: tuple[Any, ...] = workload.losses  # with targets
    losses = tuple([dataclasses.replace(one, target=one.target[mine]) for one in each])
    return dataclasses.replace(workload, inputs=tuple(x[mine] for x in workload.inputs), losses=losses)


Step = Callable[[], Any]


def _sgd(workload: Workload) -> torch.optim.Optimizer:
    return torch.optim.SGD([*workload.trunk.parameters(), *workload.heads.parameters()], _RATE)


def multitask(workload: Workload, method: str = METHOD, hook: bool = False, **options: Any) -> Step:
    """A step of mtlcore."""
    optimizer = _sgd(workload)
    mt = mtlcore.MultiTask(workload.trunk, method, heads=workload.heads, **options)
    if hook:
        mt.register_comm_hook(Rounded(measure=False))

    def step() -> None:
        optimizer.zero_grad()
        losses, z = workload.forward()
        mt.backward(losses, features=z)
        optimizer.step()

    return step


class _Whole(nn.Module):
    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.trunk, self.heads = workload.trunk, workload.heads
        self._workload = workload

    def forward(self) -> list[Tensor]:
        return self._workload.forward()[0]


def ddp(workload: Workload) -> Step:
    """DistributedDataParallel, the sum of the losses."""
    model, optimizer = nn.parallel.DistributedDataParallel(_Whole(workload)), _sgd(workload)

    def step() -> None:
        optimizer.zero_grad()
        total: Any = sum(model())
        total.backward()
        optimizer.step()

    return step


def naive(workload: Workload) -> Step:
    """What one writes by hand: a backward pass per task, every row summed over the processes, then the method."""
    optimizer, method = _sgd(workload), mtlcore.create("aggregator", METHOD)
    shared, heads = list(workload.trunk.parameters()), list(workload.heads.parameters())

    def step() -> None:
        optimizer.zero_grad()
        losses, _ = workload.forward()
        size, rows = dist.get_world_size(), []
        for i, loss in enumerate(losses):
            own = list(workload.heads[i].parameters())
            found = torch.autograd.grad(loss, [*shared, *own], retain_graph=i + 1 < len(losses))
            row = torch.cat([g.flatten() for g in found[: len(shared)]])
            dist.all_reduce(row)
            rows.append(row / size)
            for p, g in zip(own, found[len(shared) :]):
                p.grad = g
        together = torch.cat([p.grad.flatten() for p in heads if p.grad is not None])
        dist.all_reduce(together)
        for p, g in zip(heads, (together / size).split([p.numel() for p in heads])):
            p.grad = g.view_as(p)
        direction = mtlcore.aggregate(method, torch.stack(rows))
        for p, d in zip(shared, direction.split([p.numel() for p in shared])):
            p.grad = d.view_as(p)
        optimizer.step()

    return step


def by_hand(workload: Workload, overlap: bool) -> Step:
    """Shares of columns with nothing around them: no verdict, no absent task, the mean in place of a method, one
    exchange per row. With ``overlap`` a row is under way while the next one is made: what that could save at most."""
    optimizer = _sgd(workload)
    shared, heads = list(workload.trunk.parameters()), list(workload.heads.parameters())
    sizes, size = [p.numel() for p in shared], dist.get_world_size()
    width = -(-sum(sizes) // size)

    def sent(row: Tensor) -> tuple[Any, Tensor]:
        blocks = nn.functional.pad(row, (0, size * width - len(row))).view(size, width)
        out = torch.empty_like(blocks)
        return dist.all_to_all_single(out, blocks, async_op=True), out

    def step() -> None:
        optimizer.zero_grad()
        losses, _ = workload.forward()
        made, under_way = [], []
        for i, loss in enumerate(losses):
            own = list(workload.heads[i].parameters())
            found = torch.autograd.grad(loss, [*shared, *own], retain_graph=i + 1 < len(losses))
            row = torch.cat([g.flatten() for g in found[: len(shared)]])
            under_way.append(sent(row)) if overlap else made.append(row)
            for p, g in zip(own, found[len(shared) :]):
                p.grad = g
        under_way += [sent(row) for row in made]
        for work, _ in under_way:
            work.wait()
        share = torch.stack([out.sum(0) for _, out in under_way]) / size
        gram = share.double() @ share.double().T
        dist.all_reduce(gram)
        gathered = [torch.empty(width) for _ in range(size)]
        dist.all_gather(gathered, share.mean(0))
        together = torch.cat([p.grad.flatten() for p in heads if p.grad is not None])
        dist.all_reduce(together)
        for parameters, flat in ((shared, torch.cat(gathered)[: sum(sizes)]), (heads, together / size)):
            for p, g in zip(parameters, flat.split([p.numel() for p in parameters])):
                p.grad = g.view_as(p)
        optimizer.step()

    return step


def contenders(rank: int, size: int, k: int, width: int) -> dict[str, tuple[Step | None, Workload]]:
    """Each on a network of its own; None where this process has nothing to do."""
    make: dict[str, Callable[[Workload], Step]] = {
        DDP: ddp,
        NAIVE: naive,
        SHARES: lambda w: multitask(w, gradients="sequential"),
        FEATURES: lambda w: multitask(w, gradients="features"),
        ROUNDED: lambda w: multitask(w, hook=True, gradients="sequential"),
        LOSSES: lambda w: multitask(w, "imtl-l"),
        BARE: lambda w: by_hand(w, overlap=False),
        OVERLAPPED: lambda w: by_hand(w, overlap=True),
    }
    alone = whole(k, width)
    out: dict[str, tuple[Step | None, Workload]] = {
        ONE: (multitask(alone, process_group=None) if rank == 0 else None, alone)
    }
    for name, maker in make.items():
        mine = part(whole(k, width), rank, size)
        out[name] = (maker(mine), mine)
    return out


@dataclasses.dataclass(frozen=True)
class Found:
    """Of one contender on one process.

    Args:
        seconds: median of a step, until the slowest process is done.
        rounds: of each round, for ratios within a round.
        bytes: sent per step and process, as the system counts them; None where it does not.
        gradients: after the first step.
    """

    seconds: float
    rounds: list[float]
    bytes: float | None
    gradients: Tensor


def measured(rank: int, size: int, k: int, width: int, rounds: int) -> dict[str, Found]:
    """All contenders, turn by turn."""
    steps = contenders(rank, size, k, width)
    first: dict[str, Tensor] = {}
    for name, (step, workload) in steps.items():
        for i in range(2):
            if step is not None:
                step()
            if i == 0:
                first[name] = workload.gradients().clone()
    times: dict[str, list[float]] = {name: [] for name in steps}
    bytes_: dict[str, list[int]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, (step, _) in steps.items():
            dist.barrier()
            before, start = wire.sent(), time.perf_counter()
            if step is not None:
                step()
            after = wire.sent()
            dist.barrier()
            times[name].append(time.perf_counter() - start)
            if before is not None and after is not None:
                bytes_[name].append(after - before)
    return {
        name: Found(
            statistics.median(times[name]),
            times[name],
            statistics.median(bytes_[name]) if bytes_[name] else None,
            first[name],
        )
        for name in steps
    }
