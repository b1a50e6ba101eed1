"""What the processes run; imported there by name."""

# ruff: noqa: B023 (closures are called in the step that made them)

from __future__ import annotations

import dataclasses
import os
from typing import ClassVar

import torch
from torch import nn

from mtlcore import Aggregation, Aggregator, Displacement, MultiTask, Needs, TeleportStrategy, create
from mtlcore.distributed.checkpoint import Whole
from mtlcore.distributed.hook import Rounded
from mtlcore.step.prepare import members
from mtlcore.teleporting import Brakes

TASKS = ("a", "b", "c")


@dataclasses.dataclass(frozen=True)
class OwnPoint(TeleportStrategy):
    """Follows gradients of its own process."""

    def propose(self, problem, generator):
        found, _ = problem.evaluate()
        parameters = problem.parameters()
        gradients = torch.autograd.grad(sum(found.values()), list(parameters.values()))
        return Displacement({n: p.detach() - 0.01 * g for (n, p), g in zip(parameters.items(), gradients)})


@dataclasses.dataclass(frozen=True)
class ByRow(Aggregator):
    """The sum of the rows without their mean sign disagreement: reads every row, answers with a direction."""

    needs: ClassVar[Needs] = Needs.JACOBIAN

    def aggregate(self, view, state):
        rows = view.jacobian
        return Aggregation(direction=rows.sum(0) * (rows.sign().sum(0).abs() / len(rows)), state=state)


class Net(nn.Module):
    """A trunk and a head for each task."""

    def __init__(self, kind: str = "mlp", dtype=torch.float64) -> None:
        super().__init__()
        generator_state = torch.random.get_rng_state()
        torch.manual_seed(7)
        if kind == "mlp":
            self.trunk = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8))
        elif kind == "relu":
            self.trunk = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8))
        elif kind == "cnn":
            self.trunk = nn.Sequential(
                nn.Unflatten(1, (1, 6, 1)), nn.Conv2d(1, 3, (3, 1)), nn.Tanh(), nn.Flatten(), nn.Linear(12, 8)
            )
        elif kind == "thin":  # no dimension divides among three
            self.trunk = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1), nn.Tanh(), nn.Linear(1, 8))
        elif kind == "transformer":
            layer = nn.TransformerEncoderLayer(6, 2, 12, dropout=0.0, batch_first=True)
            self.trunk = nn.Sequential(
                nn.Unflatten(1, (1, 6)), nn.TransformerEncoder(layer, 1), nn.Flatten(), nn.Linear(6, 8)
            )
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
    if name == "by-row":
        return ByRow()
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
    return {
        n.replace("trunk.module.", "trunk."): None if p.grad is None else p.grad.clone()
        for n, p in net.named_parameters()
    }


def train(rank, size, how, kind, name, steps=1, dtype=torch.float64, frozen=False, **options):
    """Some steps of backward and Adam; ``size`` 1 is the whole batch on one process. Gradients of the last step,
    weights, parameters, state and report.
    """
    torch.manual_seed(rank)
    net = Net(kind, dtype)
    net.trunk.requires_grad_(not frozen)
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
    state = dict(mt._run.progress.state or {})
    return {
        "grads": grads(net),
        "weights": report.weights,
        "losses": report.losses,
        "gramian": report.gramian,
        "parameters": {n: p.detach().clone() for n, p in net.named_parameters()},
        "state": state,
        "source": report.gradient_source,
        "bytes": dict(mt._run.processes.wire.bytes) if mt._run.processes.wire else {},
    }


def each(rank, size, names, case, *args):
    """``case(rank, size, name, *args)`` for each name; of one that raised, its class and text."""
    found = {}
    for name in names:
        try:
            found[name] = case(rank, size, name, *args)
        except Exception as error:
            found[name] = (type(error).__name__, str(error))
    return found


def replicated(rank, size, name, how, kind, dtype):
    """Two steps of :func:`train`."""
    return train(rank, size, how, kind, name, 2, dtype)


def in_shards(rank, size, name, how, kind, dtype):
    """Two steps of :func:`sharded`."""
    return sharded(rank, size, name, how, 2, dtype, None, kind)


def having(rank):
    """The tasks of a process, where some are on some processes only: c on process 0, b on the others."""
    return ("a", "c") if rank == 0 else ("a", "b")


def absent(rank, size, name, how="plain", heads=True, steps=3, features=True, shape=None):
    """Tasks on some processes only; process-wise means, then over those that have a task."""
    net = Net("mlp")
    if how.startswith("sharded"):
        cut(net, size, how.removeprefix("sharded "), shape)
        trunk, call = net.trunk, net
    else:
        trunk, call = wrapped(net, how)
    held = dict(net.named_parameters())
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    mt = MultiTask(trunk, method(name), tasks=TASKS, heads=net.heads if heads else None)
    for step in range(steps):
        optimizer.zero_grad()
        x, y = part(rank, size, *data(step, 12))
        z, out = call(x)
        report = mt.backward(losses(out, y, having(rank)), features=z if features else None)
        optimizer.step()
    plain = lambda n: n.replace("trunk.module.", "trunk.").removeprefix("module.")
    return {
        "grads": {plain(n): None if p.grad is None else full(p.grad).clone() for n, p in held.items()},
        "parameters": {n: full(p.detach()).clone() for n, p in held.items()},
        "state": {},
        "weights": report.weights,
        "losses": report.losses,
        "source": report.gradient_source,
    }


def absent_alone(size, name, steps=3):
    """The same on one process: the loss of a task is the mean over the parts that have it."""
    net = Net("mlp")
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    mt = MultiTask(net.trunk, method(name), tasks=TASKS, process_group=None)
    for step in range(steps):
        optimizer.zero_grad()
        z, out = net(data(step, 12)[0])
        total: dict = {}
        for rank in range(size):
            _, y = part(rank, size, *data(step, 12))
            outs = {t: part(rank, size, v)[0] for t, v in out.items()}
            for t, v in losses(outs, y, having(rank)).items():
                total.setdefault(t, []).append(v)
        report = mt.backward({t: torch.stack(v).mean() for t, v in total.items()}, features=z)
        optimizer.step()
    return {"grads": grads(net), "losses": report.losses}


OTHER = {
    "other metric": ({}, {"metric": "step"}),
    "other taken": ({"taken": True}, {}),
    "other refresh": ({}, {"refresh": 2}),
    "other tolerance": ({"teleport": "random"}, {"teleport": "random", "tolerance": 0.5}),
    "other brakes": ({}, {"brakes": Brakes(detect_every=2)}),
    "other lr": ({}, {}),
}
"""Options of the two processes."""


def curved(rank, size, steps=3):
    """Steps of a method that asks for second derivatives; task c is on process 0 only, task b on the others only. With
    rank None the same on one process: the loss of a task is the mean over the parts that have it."""
    net = Net("mlp")
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    aggregator = create("aggregator", "emtl", form="exact")
    group = None if rank is None else "auto"
    mt = MultiTask(net.trunk, aggregator, optimizer, tasks=TASKS, heads=net.heads, process_group=group)

    def found(r, step):
        x, y = part(r, size, *data(step, 12))
        return losses(net(x)[1], y, having(r))

    def closure(step):
        if rank is not None:
            return found(rank, step)
        parts = [found(r, step) for r in range(size)]
        return {t: torch.stack([p[t] for p in parts if t in p]).mean() for t in TASKS}

    for step in range(steps):
        report = mt.step(lambda: closure(step))
    parameters = {n: p.detach().clone() for n, p in net.named_parameters()}
    return {"grads": grads(net), "losses": report.losses, "weights": None, "state": {}, "parameters": parameters}


class Once(torch.autograd.Function):
    """The identity with one derivative."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, cotangent):
        return cotangent


def trouble(rank, what, name):
    """A run that goes wrong on process 1."""
    net = Net("relu" if what == "probe raises" else "mlp")
    x, y = part(rank, 2, *data(0, 12))
    mt = MultiTask(net.trunk, method(name), tasks=TASKS, optimizer=torch.optim.SGD(net.parameters(), 0.1))
    step = lambda: mt.backward(losses((o := net(x))[1], y), features=o[0])
    if what == "nan loss":
        y = y * float("nan") if rank == 1 else y
    elif what == "nan trunk gradient" or what == "nan head gradient":
        step()
        where = net.trunk[2] if "trunk" in what else net.heads["b"]

        def poisoned():
            _, out = net(x)
            found = losses(out, y)
            if rank == 1:
                found["b"] = found["b"] + (where.weight.sum() - where.weight.sum().detach()).sqrt()
            return mt.backward(found)

        step = poisoned
    elif what == "other method":
        mt = MultiTask(net.trunk, name if rank == 0 else "mgda", tasks=TASKS)
    elif what == "other option":
        mt = MultiTask(net.trunk, create("aggregator", "cagrad", c=0.4 + rank / 10), tasks=TASKS)
    elif what in OTHER:
        mt = MultiTask(
            net.trunk, name, torch.optim.SGD(net.parameters(), 0.2 if what == "other lr" and rank else 0.1),
            tasks=TASKS, **({} if what == "other lr" else OTHER[what][rank]),
        )  # fmt: skip
    elif what == "other tasks":
        mt = MultiTask(net.trunk, name)
        step = lambda: mt.backward({t: v for t, v in losses(net(x)[1], y).items() if rank == 0 or t != "c"})
    elif what == "other values":
        with torch.no_grad():
            net.trunk[0].bias[3] += rank
    elif what == "other step":
        step()
        if rank == 1:
            state = mt.state_dict()
            mt.load_state_dict({**state, "step": 5})
    elif what == "closure raises":
        mt.step(lambda: (losses((o := net(x))[1], y), o[0]))

        def closure():
            if rank == 1:
                raise KeyError("the disk is full")
            z, out = net(x)
            return losses(out, y), z

        step = lambda: mt.step(closure)
    elif what in ("second evaluation raises", "no second derivative"):
        calls = []

        def evaluated():
            calls.append(1)
            if rank == 1 and what == "second evaluation raises" and len(calls) == 2:
                raise KeyError("the disk is full")
            found = losses(net(x)[1], y)
            return {**found, "b": Once.apply(found["b"])} if rank == 1 and what == "no second derivative" else found

        step = lambda: mt.step(evaluated)
    elif what == "find unused":
        whole = nn.parallel.DistributedDataParallel(net, find_unused_parameters=True)
        step = lambda: mt.backward(losses((o := whole(x))[1], y), features=o[0])
    elif what == "own point":
        mt = MultiTask(net.trunk, name, torch.optim.SGD(net.parameters(), 0.1), teleport=OwnPoint(), heads=net.heads)
        step = lambda: mt.step(lambda: (losses((o := net(x))[1], y), o[0]))
    elif what == "probe raises":
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        looks = []

        def probe():
            looks.append(1)
            if rank == 1 and len(looks) == 2:
                raise KeyError("the probe is gone")
            z, out = net(x)
            return losses(out, y), z

        mt = MultiTask(net.trunk, name, optimizer, teleport="random", heads=net.heads, probe=probe)
        step = lambda: mt.step(lambda: (losses((o := net(x))[1], y), o[0]))
    elif what == "other scale":
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0 ** (8 + rank))
        step = lambda: mt.backward(losses((o := net(x))[1], y), features=o[0], scaler=scaler)
    before = [p.detach().clone() for p in net.parameters()]
    try:
        step()
    except Exception as error:
        assert all(torch.equal(a, b) for a, b in zip(before, net.parameters())), "parameters moved"
        return type(error).__name__, str(error)
    return "none", ""


def refused(rank, how):
    """A step of a network in a wrapper that is not served."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    net, options = Net("mlp", torch.float32), {}
    call, trunk = net, net.trunk
    fsdp1 = lambda module: FullyShardedDataParallel(
        module, device_id=torch.device("cpu"), use_orig_params="original" in how
    )
    if how.startswith("fsdp1 trunk"):
        net.trunk = trunk = fsdp1(net.trunk)
    elif how.startswith("fsdp1"):
        call = fsdp1(net)
        trunk = list(call.module.trunk.parameters() if "original" in how else call.parameters())
        trunk = trunk if "list" in how else call.module.trunk
    elif how == "deepspeed":
        for p in net.trunk.parameters():
            p.ds_id = 0
    elif how == "ddp alone":
        call, options = nn.parallel.DistributedDataParallel(net), {"process_group": None}
    elif how == "outsider":
        options = {"process_group": torch.distributed.new_group([0])}
    x, y = part(rank, 2, *data(0, 12, torch.float32))
    z, out = call(x)
    MultiTask(trunk, "imtl-l", **options).backward(losses(out, y), features=z)


def looked_up(rank, size, name):
    """A table with sparse gradients in the trunk; its gradient, and that of the first head."""
    generator = torch.Generator().manual_seed(3)
    table = nn.Embedding(7, 4, sparse=True)
    heads = nn.ModuleList([nn.Linear(4, 1) for _ in range(2)])
    for p in (*table.parameters(), *heads.parameters()):
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64)
    mt = MultiTask(table, name, heads=heads, process_group=None if size == 1 else "auto")
    z = table(part(rank, size, torch.tensor([0, 3, 4, 1, 3, 3]))[0])
    mt.backward([head(z).square().mean() * 5**i for i, head in enumerate(heads)], features=z)
    return table.weight.grad, heads[0].weight.grad


def death(rank, size):
    """Process 1 leaves without a word."""
    net = Net("mlp")
    x, y = part(rank, size, *data(0, 12))
    mt = MultiTask(net.trunk, "upgrad")
    for step in range(3):
        if rank == 1 and step == 1:
            os._exit(3)
        z, out = net(x)
        mt.backward(losses(out, y), features=z)


def resumed(rank, size, name, stop):
    """Eight steps, or ``stop`` and the rest from checkpoints that went through torch.save."""
    import io

    net = Net("mlp")

    def made():
        optimizer = torch.optim.Adam(net.parameters(), 0.01)
        return optimizer, MultiTask(net.trunk, method(name), optimizer, tasks=TASKS, seed=3)

    optimizer, mt = made()
    for step in range(8):
        if step == stop:
            memory = io.BytesIO()
            torch.save([net.state_dict(), optimizer.state_dict(), mt.state_dict()], memory)
            memory.seek(0)
            a, b, c = torch.load(memory, weights_only=True)
            net = Net("mlp")
            net.load_state_dict(a)
            optimizer, mt = made()
            optimizer.load_state_dict(b)
            mt.load_state_dict(c)
        x, y = part(rank, size, *data(step, 12))
        mt.step(lambda: (losses((o := net(x))[1], y), o[0]))
    return {n: p.detach().clone() for n, p in net.named_parameters()}


def micro(rank, size, name, how=None, lacking=True):
    """Two steps of two micro-batches per process; the second lacks task c on the processes after the first. One of a
    trunk in shards where ``how`` says which (:func:`cut`). Alone: the same for each part of the batch."""
    net = Net("mlp")
    if how is not None:
        cut(net, size, how)
    held = dict(net.named_parameters())
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    mt = MultiTask(
        net.trunk, method(name), tasks=TASKS, heads=net.heads, process_group=None if rank is None else "auto"
    )

    def found(r, step, i):
        x, y = part(r, size, *data(step, 12))
        z, out = net(x[i::2])
        lacks = lacking and i == 1 and r > 0
        return {t: v / 2 for t, v in losses(out, y[i::2], TASKS[:2] if lacks else TASKS).items()}, z

    for step in range(2):
        optimizer.zero_grad()
        if rank is None:
            parts = [found(r, step, i)[0] for r in range(size) for i in range(2)]
            report = mt.backward({t: sum(p[t] for p in parts if t in p) / size for t in TASKS})
        for i in range(2) if rank is not None else ():
            values, z = found(rank, step, i)
            report = (mt.accumulate if i == 0 else mt.backward)(values, features=z)
        optimizer.step()
    return outcome(report, held, source=report.gradient_source)


def micro_in_trouble(rank, what, name):
    """Class and text of what goes wrong with two micro-batches in shards, and whether a step succeeds afterwards."""
    net = Net("mlp")
    cut(net, 2, "whole")
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    mt = MultiTask(net.trunk, method(name), tasks=TASKS, heads=net.heads)
    x, y = part(rank, 2, *data(0, 12))

    def take(first, call):
        z, out = net(x)
        return call(losses(out, first), features=z)

    optimizer.zero_grad()
    wrong = ("none", "")
    try:
        take(y * float("nan") if what == "nan" and rank == 1 else y, mt.accumulate)
        if what == "moved":
            for p in mt._run.parameters:
                p.grad = torch.ones_like(p)
            optimizer.step()
        take(y, mt.backward)
    except Exception as error:
        wrong = type(error).__name__, str(error)
    again = take(y, mt.backward)
    return *wrong, bool(torch.isfinite(again.losses).all())


def looked(rank, size, name, steps=3):
    """Steps with closures: second looks and inner loops."""
    net = Net("mlp")
    mt = MultiTask(
        net.trunk,
        method(name),
        torch.optim.SGD(net.parameters(), 0.05),
        tasks=TASKS,
        heads=net.heads,
        process_group=None if size == 1 else "auto",
    )
    for step in range(steps):
        x, y = part(rank, size, *data(step, 12))
        closure = lambda: (losses((o := net(x))[1], y), o[0])
        report = mt.step([closure] * mt.aggregator.batches if mt.aggregator.batches > 1 else closure)
    return {
        "grads": grads(net),
        "losses": report.losses,
        "weights": report.weights,
        "state": dict(mt._run.progress.state),
        "parameters": {n: p.detach().clone() for n, p in net.named_parameters()},
    }


def own_input(rank, size):
    """An input that requires gradients belongs to its process."""
    net = Net("mlp")
    mt = MultiTask(net.trunk, "upgrad")
    x, y = part(rank, size, *data(0, 12))
    x = x.clone().requires_grad_()
    z, out = net(x)
    mt.backward(losses(out, y), features=z)
    return x.grad is not None


def refreshed(rank, size, name="upgrad", how=None, lacking=False, steps=5, **options):
    """Weights kept for three steps, unless ``options`` say otherwise; of a trunk in shards where ``how`` says which
    (:func:`cut`). On one process ``lacking`` takes the same parts of the batch."""
    net = Net("mlp")
    if how is not None:
        cut(net, size, how)
    held = dict(net.named_parameters())
    options = {"refresh": 3} | options
    mt = MultiTask(
        net.trunk, method(name), tasks=TASKS, heads=net.heads, process_group=None if rank is None else "auto", **options
    )
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    for step in range(steps):
        optimizer.zero_grad()
        z, out = net(data(step, 12)[0] if rank is None else part(rank, size, data(step, 12)[0])[0])
        total: dict = {}
        for r in range(size):
            if rank in (None, r):
                y = part(r, size, data(step, 12)[1])[0]
                outs = {t: part(r, size, v)[0] if rank is None else v for t, v in out.items()}
                for t, v in losses(outs, y, having(r) if lacking else TASKS).items():
                    total.setdefault(t, []).append(v)
        report = mt.backward({t: torch.stack(v).mean() for t, v in total.items()}, features=z)
        optimizer.step()
    return outcome(report, held, gramian=report.gramian, source=report.gradient_source, notes=report.diagnostics)


def tuned(rank, size, how=None):
    net = Net("mlp")
    if how is not None:
        cut(net, size, how)
    mt = MultiTask(net.trunk, "upgrad")
    x, y = part(rank, size, *data(0, 12))
    closure = lambda: (losses((o := net(x))[1], y), o[0])
    return mt.tune(closure, repeats=1).fastest, dict(mt._run.planner.pins)


def cut(net, size, how, shape=None, **options):
    """FSDP2, where the trunk, layer by layer, is in shards ("at once": not layer by layer), or the "whole" network, or
    the whole network with its "heads" one by one."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", shape or (size,), mesh_dim_names=("copies", "shards") if shape else None)
    for layer in net.trunk.children() if how != "at once" else ():
        if list(layer.parameters()):
            fully_shard(layer, mesh=mesh, **options)
    fully_shard(net.trunk, mesh=mesh, **options)
    if how == "heads":
        for head in net.heads.values():
            fully_shard(head, mesh=mesh, **options)
    if how in ("whole", "heads"):
        fully_shard(net, mesh=mesh, **options)


def full(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def outcome(report, held, **more):
    """What a case hands back of its last step: gradients and values of the parameters that it held, whole."""
    return {
        "grads": {n: None if p.grad is None else full(p.grad).clone() for n, p in held.items()},
        "losses": report.losses,
        "weights": report.weights,
        "parameters": {n: full(p.detach()).clone() for n, p in held.items()},
        "state": {},
        **more,
    }


def sharded(rank, size, name, how, steps=2, dtype=torch.float64, shape=None, kind="mlp", frozen=False):
    """A trunk in shards."""
    net = Net(kind, dtype)
    net.trunk.requires_grad_(not frozen)
    width = 8 if kind == "tied" else 6
    cut(net, size, how, shape)
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    mt = MultiTask(net.trunk, method(name), optimizer, tasks=TASKS, heads=net.heads)
    for step in range(steps):
        x, y = part(rank, size, *data(step, 12, dtype, width))
        optimizer.zero_grad()
        z, out = net(x)
        report = mt.backward(losses(out, y), features=z)
        if step + 1 < steps:
            optimizer.step()
            if mt.aggregator.looks_twice():
                mt.observe({t: v.detach() for t, v in losses(net(x)[1], y).items()})
    return {
        "grads": {
            n: None if p.grad is None else full(p.grad).clone()
            for n, p in zip(dict(Net(kind).named_parameters()), _held(mt, net))
        },
        "losses": report.losses,
        "weights": report.weights,
        "gramian": report.gramian,
        "state": dict(mt._run.progress.state),
        "parameters": {},
        "source": report.gradient_source,
    }


def stepped(rank, size, name, how=None, steps=1, dtype=torch.float64, kind="mlp", shape=None, **options):
    """Whole steps with closures, each batch of a step another one; ``how`` as :func:`cut` takes it, None: whole."""
    net = Net(kind, dtype)
    if how is not None:
        cut(net, size, how, shape)
    held = dict(net.named_parameters())  # after a forward pass FSDP may have whole ones in their place
    mt = MultiTask(
        net.trunk, method(name), torch.optim.SGD(net.parameters(), 0.01, momentum=0.5), tasks=TASKS, heads=net.heads,
        process_group=None if size == 1 else "auto", **options,
    )  # fmt: skip
    for step in range(steps):
        parts = [part(rank, size, *data(10 * step + i, 12, dtype)) for i in range(mt.aggregator.batches)]
        closures = [lambda x=x, y=y: _closure(net, x, y) for x, y in parts]
        report = mt.step(closures if len(closures) > 1 else closures[0])
    return outcome(
        report,
        held,
        state=dict(mt._run.progress.state),
        source=report.gradient_source,
        bytes=dict(mt._run.processes.wire.bytes) if mt._run.processes.wire else {},
    )


def misplaced(rank, what):
    """A trunk sharded over one process, in a step of two; or a MultiTask that does not have the shards."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    net = Net("mlp")
    made = lambda: MultiTask(net.trunk, "upgrad", heads=net.heads)
    mt = made()
    if what == "other mesh":
        fully_shard(net.trunk, mesh=init_device_mesh("cpu", (2, 1), mesh_dim_names=("others", "shards"))["shards"])
    else:
        cut(net, 2, "at once")
    mt = mt if what == "before fully_shard" else made()
    x, y = part(rank, 2, *data(0, 12))
    z, out = net(x)
    mt = made() if what == "after the forward pass" else mt
    mt.backward(losses(out, y), features=z)


def detached(rank, name):
    """No loss reaches the trunk in shards."""
    net = Net("mlp")
    cut(net, 2, "trunk")
    mt = MultiTask(net.trunk, method(name), tasks=TASKS, heads=net.heads)
    x, y = part(rank, 2, *data(0, 12))
    z = net.trunk(x).detach()
    mt.backward(losses({t: head(z) for t, head in net.heads.items()}, y))


def nan_in_shards(rank, where, name, lacking):
    """The gradient of task c is not finite on process 0, though its loss is; class, text, and whether nothing moved."""
    net = Net("mlp")
    cut(net, 2, "whole")
    held = list(net.parameters())
    mt = MultiTask(net.trunk, method(name), tasks=TASKS, heads=net.heads)
    x, y = part(rank, 2, *data(0, 12))
    z, out = net(x)
    found = losses(out, y, having(rank) if lacking else TASKS)
    if rank == 0:
        source = z if where == "trunk" else net.heads["c"].weight
        found["c"] = found["c"] + (source.sum() - source.sum().detach()).sqrt()
    try:
        mt.backward(found, features=z)
    except Exception as error:
        return type(error).__name__, str(error), all(p.grad is None for p in held)
    return "none", "", False


def _held(mt, net):
    return [*mt._run.parameters, *(p for p in members(mt._run, []).told)]


def teleported(rank, size, strategy, how="plain", steps=3, options=None, detector=None):
    """Steps that teleport whenever they can."""
    net = Net("relu")
    trunk, call = wrapped(net, how)
    # The share of the history that is used again jumps where the cosine of jump and gradient is rounding around zero.
    kind = torch.optim.SGD if strategy == "lora" else torch.optim.Adam
    optimizer = kind(net.parameters(), 0.01)
    mt = MultiTask(
        trunk, "fairgrad", optimizer, tasks=TASKS, heads=net.heads, detector=detector,
        teleport=create("teleport", strategy, **(options or {})), tolerance=0.5,
        probe=lambda: _closure(call, *part(rank, size, *data(99, 12))), process_group=None if size == 1 else "auto",
    )  # fmt: skip
    reports = []
    for step in range(steps):
        x, y = part(rank, size, *data(step, 12))
        reports.append(mt.step(lambda: _closure(call, x, y)))
    last = reports[-1]
    return {
        "grads": grads(net),
        "losses": last.losses,
        "weights": last.weights,
        "state": dict(mt._run.progress.state),
        "parameters": {n: p.detach().clone() for n, p in net.named_parameters()},
        "history": {
            n: optimizer.state[p]["exp_avg"].clone() for n, p in net.named_parameters() if optimizer.state.get(p)
        },
        "teleports": [None if r.teleport is None else (r.teleport.accepted, r.teleport.reason) for r in reports],
    }


def _closure(call, x, y):
    z, out = call(x)
    return losses(out, y), z


def lacking(rank):
    """Task c is on process 0 only, in a step that would teleport."""
    net = Net("relu")
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    mt = MultiTask(net.trunk, "fairgrad", optimizer, tasks=TASKS, heads=net.heads, teleport="random")
    x, y = part(rank, 2, *data(0, 12))
    report = mt.step(lambda: (losses((o := net(x))[1], y, TASKS if rank == 0 else TASKS[:2]), o[0]))
    return report.teleport.accepted, report.teleport.reason


MOVERS = {
    "adam": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1, amsgrad=True),
    "sgd": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.01),
}


def measured(rank, size, metric, name, taken=True, how=None, mover="adam"):
    """The optimizer's metric, and what its steps did; of a trunk in shards where ``how`` says which (:func:`cut`)."""
    net = Net("mlp")
    if how is not None:
        cut(net, size, how)
    held = dict(net.named_parameters())
    mt = MultiTask(
        net.trunk, method(name), MOVERS[mover](net.parameters()), tasks=TASKS, heads=net.heads, metric=metric,
        taken=taken, process_group=None if size == 1 else "auto",
    )  # fmt: skip
    for step in range(3):
        x, y = part(rank, size, *data(step, 12))
        report = mt.step(lambda: _closure(net, x, y))
    return outcome(report, held, gramian=report.gramian, taken=report.taken, notes=report.diagnostics)


def scaled(rank, size, name, overflow=(), how=None, micro=False):
    """Steps under a GradScaler; those in ``overflow`` are infinite on the last process. Of a trunk in shards where
    ``how`` says which (:func:`cut`); in two micro-batches, where asked for."""
    net = Net("mlp", torch.float32)
    if how is not None:
        cut(net, size, how)
    held = dict(net.named_parameters())
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    mt = MultiTask(
        net.trunk, method(name), optimizer, tasks=TASKS, heads=net.heads, process_group=None if size == 1 else "auto"
    )
    skipped = []
    for step in range(4):
        x, y = part(rank, size, *data(step, 12, torch.float32))
        optimizer.zero_grad()
        for i in range(2 if micro else 1):
            z, out = net(x[i::2] if micro else x)
            found = {t: v / (2 if micro else 1) for t, v in losses(out, y[i::2] if micro else y).items()}
            if step in overflow and rank == size - 1 and i == 0:
                found["b"] = found["b"] * float("inf")
            call = mt.accumulate if micro and i == 0 else mt.backward
            report = call(found, features=z, scaler=scaler)
        skipped.append(report.skipped)
        scaler.step(optimizer)
        scaler.update()
    return outcome(report, held, skipped=skipped, scale=scaler.get_scale())


def second_look_fails(rank, size, how=None):
    """Three steps of famo; the second sees a NaN after the optimizer moved, and is undone."""
    net = Net("mlp")
    if how is not None:
        cut(net, size, how)
    held = dict(net.named_parameters())
    mt = MultiTask(
        net.trunk, "famo", torch.optim.SGD(net.parameters(), 0.05), tasks=TASKS, heads=net.heads,
        process_group=None if size == 1 else "auto",
    )  # fmt: skip
    errors = []
    for step in range(3):
        x, y = part(rank, size, *data(step, 12))
        looks = []

        def closure():
            looks.append(1)
            found, z = _closure(net, x, y)
            return {**found, "a": found["a"] * float("nan")} if step == 1 and len(looks) == 2 else found, z

        try:
            report = mt.step(closure)
        except Exception as error:
            errors.append((type(error).__name__, str(error)))
    return {
        "grads": {n: None if p.grad is None else full(p.grad).clone() for n, p in held.items()},
        "losses": report.losses,
        "errors": errors,
    }


def in_bfloat16(rank, name, lacking):
    """A step of a trunk in shards whose parameters are bfloat16 in the passes."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    net = Net("mlp", torch.float32)
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    cut(net, 2, "whole", mp_policy=policy)
    held = dict(net.named_parameters())
    mt = MultiTask(net.trunk, method(name), tasks=TASKS, heads=net.heads)
    x, y = part(rank, 2, *data(0, 12, torch.float32))
    z, out = net(x)
    report = mt.backward(losses(out, y, having(rank) if lacking else TASKS), features=z)
    return outcome(report, held, parameters={})


def rounded(rank, name, hooked=True, other=False):
    """Steps whose gradients travel as bfloat16."""
    net = Net("mlp", torch.float32)
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    mt = MultiTask(net.trunk, method(name), optimizer, tasks=TASKS, heads=net.heads)
    hook = Rounded()
    if hooked and not (other and rank):
        mt.register_comm_hook(hook)
    for step in range(3):
        x, y = part(rank, 2, *data(step, 12, torch.float32))
        report = mt.step(lambda: _closure(net, x, y))
    return {
        "grads": grads(net),
        "losses": report.losses,
        "weights": report.weights,
        "state": {},
        "parameters": {n: p.detach().clone() for n, p in net.named_parameters()},
        "error": hook.error(),
        "bytes": dict(mt._run.processes.wire.bytes),
    }


def saved_in_shards(rank, size, folder):
    """Six steps of a sharded run; or three, a DCP checkpoint, and three in new objects."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    def made():
        net = Net("mlp")
        fully_shard(net.trunk, mesh=init_device_mesh("cpu", (size,)))
        optimizer = torch.optim.Adam(net.parameters(), 0.01)
        return net, optimizer, MultiTask(net.trunk, "nash-mtl", optimizer, heads=net.heads)

    def steps(net, optimizer, mt, which):
        for step in which:
            x, y = part(rank, size, *data(step, 12))
            optimizer.zero_grad()
            z, out = net(x)
            report = mt.backward(losses(out, y), features=z)
            optimizer.step()
        return report

    run = made()
    right = steps(*run, range(6))
    net, optimizer, mt = run = made()
    steps(*run, range(3))
    model, history = get_state_dict(net, optimizer)
    dcp.save({"model": model, "optimizer": history, "multitask": Whole(mt)}, checkpoint_id=folder)
    net, optimizer, mt = run = made()
    model, history = get_state_dict(net, optimizer)
    dcp.load({"model": model, "optimizer": history, "multitask": Whole(mt)}, checkpoint_id=folder)
    set_state_dict(net, optimizer, model_state_dict=model, optim_state_dict=history)
    assert mt.state_dict()["step"] == 3
    again = steps(*run, range(3, 6))
    return torch.equal(right.weights, again.weights), torch.equal(right.losses, again.losses), again.step


def in_buckets(rank, size, name):
    """Rows that travel in several exchanges; how many there were."""
    from mtlcore.distributed import shards, wire

    bucket, exchange, count = shards._BUCKET, wire.Wire.exchange, []

    def counted(self, blocks, kind):
        count.append(kind)
        return exchange(self, blocks, kind)

    shards._BUCKET, wire.Wire.exchange = 64, counted
    try:
        return {**train(rank, size, "plain", "mlp", name), "exchanges": count.count("rows")}
    finally:
        shards._BUCKET, wire.Wire.exchange = bucket, exchange
