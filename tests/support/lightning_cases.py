"""What runs under Lightning; imported in the processes of :mod:`support.launcher`."""

from __future__ import annotations

import warnings

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from mtlcore import MultiTask
from mtlcore.errors import MtlError
from mtlcore.integrations.lightning import MultiTaskModule
from support.trainer_nets import TASKS, Parts, losses, table, values

warnings.filterwarnings("ignore")


class Network(MultiTaskModule):
    def __init__(self, method="upgrad", manual="", late=False, **options):
        super().__init__()
        self.parts = Parts()
        self.automatic_optimization = not manual
        self.manual, self.method, self.late, self.options = manual, method, late, options
        self.steps = []
        if not late:
            self.mt = self.made(None)

    def made(self, optimizer):
        parts = self.parts
        return MultiTask(
            parts.trunk, self.method, optimizer, tasks=TASKS, heads=parts.heads, seed=1, **self.options
        )  # fmt: skip

    def training_step(self, batch, batch_idx):
        found = lambda: losses(self.parts, *batch)
        if self.manual == "step":
            self.multitask_step(found)
            return None
        values_, z = found()
        loss = self.joint(values_, features=z)
        if not self.manual:
            return loss
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return None

    def on_after_backward(self):
        self.steps.append(None if self.report is None else self.report.step)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)
        if self.late:
            self.mt = self.made(optimizer)
        return optimizer


def loader(size, part=None):
    data = TensorDataset(*table())
    sampler = None if part is None else DistributedSampler(data, part[1], part[0], shuffle=False)
    return DataLoader(data, batch_size=size, sampler=sampler)


def trainer(epochs=1, **options):
    quiet = {
        "logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu",
        "enable_checkpointing": False, "max_epochs": epochs, "devices": 1,
    }  # fmt: skip
    return pl.Trainer(**{**quiet, **options})


def fit(rank, size, network=None, part=None, **options):
    net = Network(**(network or {}))
    chief = trainer(**options)
    chief.fit(net, loader(size, part))
    state = net.mt.state_dict()
    return {
        "parameters": values(net.parts),
        "step": state["step"],
        "global_step": chief.global_step,
        "reports": net.steps,
        "method_state": state["state"],
    }


def ddp(rank, size, network=None, strategy="ddp", **options):
    return fit(rank, size, network, (rank, 2), devices=2, strategy=strategy, use_distributed_sampler=False, **options)


def resumed(rank, late):
    """Two epochs, or one and one from Lightning's own checkpoint."""
    options = {"method": "nash-mtl", "late": late}
    if late:
        options["metric"] = "optimizer"
    whole = Network(**options)
    trainer(2).fit(whole, loader(12))
    first = Network(**options)
    chief = trainer(1)
    chief.fit(first, loader(12))
    chief.save_checkpoint("half.ckpt")
    second = Network(**options)
    trainer(2).fit(second, loader(12), ckpt_path="half.ckpt")
    return {
        "same": all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters())),
        "step": second.mt.state_dict()["step"],
        "weights_only": "_extra_state" in torch.load("half.ckpt", weights_only=True)["state_dict"],
    }


def refused(rank):
    """The words of what is refused."""
    said = {}

    def attempt(what, network, **options):
        try:
            trainer(**options).fit(network, loader(12))
            said[what] = "nothing"
        except MtlError as error:
            said[what] = f"{type(error).__name__}: {error}"

    attempt("teleport", Network(teleport="relu-rescaling"))
    attempt("twice", Network("famo"))
    attempt("several", Network("modo"))
    bare = Network()
    del bare.mt
    attempt("none", bare)
    network = Network()

    def nan(batch, batch_idx):
        found, z = losses(network.parts, *batch)
        return network.joint({**found, "b": found["b"] * float("nan")}, features=z)

    network.training_step = nan
    attempt("nan", network)
    network = Network()
    network.training_step = lambda batch, batch_idx: network.multitask_step(lambda: losses(network.parts, *batch))
    attempt("automatic", network)
    return said


def teleported(rank):
    """A teleport in manual optimisation."""
    net = Network("fairgrad", manual="step", detector="dominated", teleport="random")
    net.mt = MultiTask(
        net.parts.trunk, "fairgrad", tasks=TASKS, heads=net.parts.heads, teleport="relu-rescaling", tolerance=0.5
    )
    chief = trainer()
    chief.fit(net, loader(12))
    return net.report.teleport is not None, chief.global_step


def accumulated(rank, method="upgrad"):
    return fit(rank, 10, {"method": method}, accumulate_grad_batches=2, gradient_clip_val=0.5)


def bf16(rank):
    return fit(rank, 12, precision="bf16-mixed")


def ddp_accumulated(rank):
    return ddp(rank, 6, accumulate_grad_batches=2, gradient_clip_val=0.5)
