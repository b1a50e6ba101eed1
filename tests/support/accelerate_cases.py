"""What runs under accelerate; imported in the processes of :mod:`support.launcher`."""

from __future__ import annotations

import warnings

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

from mtlcore import MultiTask
from mtlcore.errors import MtlError
from mtlcore.integrations.accelerate import Accelerated
from support.trainer_nets import TASKS, Parts, losses, table, values

warnings.filterwarnings("ignore")


class Network(Parts):
    def forward(self, *batch):
        return losses(self, *batch)


def made(method, size, *, accumulate=1, precision="no", **options):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate, mixed_precision=precision)
    net = Network()
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
    loader = DataLoader(TensorDataset(*table()), batch_size=size)
    model, optimizer, loader = accelerator.prepare(net, optimizer, loader)
    inner = accelerator.unwrap_model(model)
    mt = MultiTask(inner.trunk, method, tasks=TASKS, heads=inner.heads, seed=1, **options)
    return accelerator, model, optimizer, loader, Accelerated(accelerator, mt, optimizer)


def train(rank, method, size, closure=False, clip=None, epochs=1, **options):
    accelerator, model, optimizer, loader, multitask = made(method, size, **options)
    reports = []
    for _ in range(epochs):
        for batch in loader:
            if closure:
                reports.append(multitask.step(lambda: model(*batch)).step)  # noqa: B023
                continue
            with accelerator.accumulate(model):
                found, z = model(*batch)
                report = multitask.backward(found, features=z)
                reports.append(None if report is None else report.step)
                if clip is not None and accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()
    return {"parameters": values(model), "reports": reports, "kind": type(model).__name__}


def resumed(rank):
    """Two epochs; or one, ``save_state``, and one after ``load_state`` in new objects."""
    from accelerate.state import AcceleratorState

    whole = train(rank, "nash-mtl", 6, epochs=2)["parameters"]
    AcceleratorState._reset_state()
    accelerator, model, optimizer, loader, multitask = made("nash-mtl", 6)

    def epoch():
        for batch in loader:
            multitask.backward(*model(*batch))
            optimizer.step()
            optimizer.zero_grad()

    epoch()
    accelerator.save_state("half")
    steps = multitask.mt.state_dict()["step"]
    AcceleratorState._reset_state()
    accelerator, model, optimizer, loader, multitask = made("nash-mtl", 6)
    accelerator.load_state("half")
    assert multitask.mt.state_dict()["step"] == steps
    epoch()
    return all(torch.equal(v, whole[n]) for n, v in values(model).items())


def refused(rank):
    said = {}
    for what, method, options in (
        ("twice", "famo", {}),
        ("several", "modo", {}),
        ("teleport", "upgrad", {"teleport": "relu-rescaling"}),
    ):
        *_, model, _, loader, multitask = made(method, 12, **options)
        try:
            multitask.backward(*model(*next(iter(loader))))
        except MtlError as error:
            said[what] = str(error)
    accelerator, model, _, _, multitask = made("upgrad", 12, accumulate=2)
    try:
        with accelerator.accumulate(model):
            multitask.step(lambda: model(*table()))
    except MtlError as error:
        said["accumulate"] = str(error)
    try:
        Accelerated(accelerator, multitask.mt, torch.optim.SGD(model.parameters(), 0.1))
    except MtlError as error:
        said["bare"] = str(error)
    return said


def poisoned(rank):
    """A NaN on the last process ends all, and says whose it is."""
    *_, model, _, loader, multitask = made("upgrad", 6)
    found, z = model(*next(iter(loader)))
    if rank == 1:
        found["b"] = found["b"] * float("nan")
    try:
        multitask.backward(found, z)
    except MtlError as error:
        return type(error).__name__, str(error)
    return "none", ""


def accumulated(rank, method="upgrad", size=12):
    return train(rank, method, size, clip=0.5, accumulate=2)


def bf16(rank):
    return train(rank, "upgrad", 12, precision="bf16")
