"""What runs under Hugging Face's Trainer; imported in the processes of :mod:`support.launcher`."""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import BertConfig, BertModel, TrainingArguments

from mtlcore import MultiTask
from mtlcore.errors import MtlError
from mtlcore.integrations.transformers import MultiTaskTrainer
from support.trainer_nets import TASKS, Parts, losses, table, values

warnings.filterwarnings("ignore")


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = Parts()

    def forward(self, x, a, b, labels=None):
        found, z = losses(self.parts, x, a, b)
        return {"losses": found, "features": z, "logits": self.parts.heads["a"](z)}


class Bert(nn.Module):
    """A transformer as the trunk, a classifier for each task."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        config = BertConfig(
            vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, max_position_embeddings=12,
        )  # fmt: skip
        self.trunk = BertModel(config, add_pooling_layer=False)
        self.heads = nn.ModuleDict({t: nn.Linear(16, 3) for t in TASKS})

    def forward(self, input_ids, a, b):
        z = self.trunk(input_ids).last_hidden_state[:, 0]
        targets = {"a": a, "b": b}
        found = {t: nn.functional.cross_entropy(head(z), targets[t]) for t, head in self.heads.items()}
        return {"losses": found, "features": z}


def sentences():
    g = torch.Generator().manual_seed(2)
    draw = lambda high, *shape: torch.randint(high, shape, generator=g)
    rows = zip(draw(40, 24, 8), draw(3, 24), draw(3, 24))
    return [{"input_ids": i, "a": a, "b": b} for i, a, b in rows]


def samples():
    return [{"x": x, "a": a, "b": b, "labels": a} for x, a, b in zip(*table())]


class InOrder(MultiTaskTrainer):
    def _get_train_sampler(self, *args, **kwargs):
        return SequentialSampler(self.train_dataset)


def made(model, trunk, heads, data, size, method, *, epochs=1, folder="out", multitask=None, loss=None, **options):
    quiet = {
        "report_to": [], "disable_tqdm": True, "use_cpu": True, "save_strategy": "no", "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant", "logging_strategy": "no", "remove_unused_columns": False,
        "dataloader_pin_memory": False,
    }  # fmt: skip
    args = TrainingArguments(
        folder, num_train_epochs=epochs, per_device_train_batch_size=size, **{**quiet, **options}
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    mt = MultiTask(trunk, method, tasks=TASKS, heads=heads, seed=1, **(multitask or {}))
    return InOrder(
        model=model, args=args, train_dataset=data, eval_dataset=data, optimizers=(optimizer, None), multitask=mt,
        compute_loss_func=loss,
    )  # fmt: skip


def plain(method, size, **options):
    net = Network()
    return net, made(net, net.parts.trunk, net.parts.heads, samples(), size, method, **options)


def train(rank, method, size, **options):
    net, trainer = plain(method, size, **options)
    trainer.train()
    return {
        "parameters": values(net.parts),
        "step": trainer.multitask.state_dict()["step"],
        "global_step": trainer.state.global_step,
        "report": trainer.report.step,
        "wrapped": type(trainer.model_wrapped).__name__,
    }


def accumulated(rank, method, size):
    return train(rank, method, size, gradient_accumulation_steps=2, max_grad_norm=0.5)


def bf16(rank):
    return train(rank, "upgrad", 12, bf16=True)


def bert(rank, size):
    """A Bert as trunk: the Trainer's parameters, and those of a plain loop over the same batches."""
    net = Bert()
    made(net, net.trunk, net.heads, sentences(), 8 // size, "upgrad").train()
    alone = Bert()
    optimizer = torch.optim.SGD(alone.parameters(), 0.05, momentum=0.9)
    mt = MultiTask(alone.trunk, "upgrad", tasks=TASKS, heads=alone.heads, seed=1, process_group=None)
    rows = sentences()
    for i in range(0, len(rows), 8):
        batch = {k: torch.stack([r[k] for r in rows[i : i + 8]]) for k in rows[0]}
        optimizer.zero_grad()
        out = alone(**batch)
        mt.backward(out["losses"], features=out["features"])
        optimizer.step()
    return values(net), values(alone)


def resumed(rank):
    """Two epochs; or the second from the checkpoint that the Trainer made after the first."""
    options = {"save_strategy": "epoch", "epochs": 2}
    whole, trainer = plain("nash-mtl", 12, folder="whole", **options)
    trainer.train()
    again, second = plain("nash-mtl", 12, folder="whole", **options)
    second.train(resume_from_checkpoint="whole/checkpoint-4")
    import os

    os.remove("whole/checkpoint-4/multitask.pt")
    _, third = plain("nash-mtl", 12, folder="whole", **options)
    try:
        third.train(resume_from_checkpoint="whole/checkpoint-4")
        said = "nothing"
    except MtlError as error:
        said = str(error)
    same = all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters()))
    return {"same": same, "step": second.multitask.state_dict()["step"], "lacking": said}


def evaluated(rank):
    """The loss of an evaluation is the sum of the task losses."""
    net, trainer = plain("upgrad", 12)
    with torch.no_grad():
        wanted = float(sum(losses(net.parts, *table())[0].values()))
    return trainer.evaluate()["eval_loss"], wanted


def refused(rank):
    said = {}

    def attempt(what, method="upgrad", **options):
        try:
            net, trainer = plain(method, 12, **options)
            if what == "losses":
                net.forward = lambda **inputs: {"loss": net.parts.trunk(inputs["x"]).sum()}
            trainer.train()
        except MtlError as error:
            said[what] = str(error)

    attempt("twice", "famo")
    attempt("teleport", multitask={"teleport": "relu-rescaling"})
    attempt("one loss", loss=lambda outputs, labels, **rest: sum(outputs["losses"].values()))
    attempt("losses")
    return said
