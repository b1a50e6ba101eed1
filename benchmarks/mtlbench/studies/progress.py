"""How much of a method's step serves all tasks?

    python -m mtlbench.studies.progress [--task qm9] [--steps 200] [--learning-rate 9e-3] [--methods ls gradops]
        [--seed 0] [--json FILE]

Trains with Adam and looks, at every step after the first tenth, at two cosines with the gradient of the mean loss on
the same batch: that of the direction, and that of the step which Adam makes of it (its memory and its scaling of
coordinates come in between). Beside them the cosine between one direction and the next: what differs from batch to
batch, Adam averages away. Means over the run.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

import mtlcore
from mtlbench.tasks.base import BenchmarkTask, Network, closure

METHODS: dict[str, dict[str, Any]] = {
    "ls": {}, "gradops": {}, "gradops (alpha = -1)": {"alpha": -1.0},
    "gradops (project = always)": {"project": "always"}, "pcgrad": {}, "upgrad": {}, "fairgrad": {}, "cagrad": {},
}  # fmt: skip
"""Label -> options; the method's name is the label's first word."""


def measure(task: BenchmarkTask, label: str, steps: int, learning_rate: float, seed: int = 0) -> dict[str, float]:
    """One training run of one of :data:`METHODS`; the means."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Network(task)
    train, generator = task.load().train, torch.Generator().manual_seed(seed)
    parameters = list(network.trunk.parameters())
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    method = mtlcore.create("aggregator", label.split()[0], **METHODS[label])
    multi = mtlcore.MultiTask(network.trunk, method, optimizer)
    seen: dict[str, list[float]] = {"direction": [], "step": [], "next direction": []}
    last: Tensor | None = None
    for step in range(steps):
        index = torch.randint(len(train), (task.budget.batch_size,), generator=generator)
        losses, features = closure(task, network, *train.batch(index))()
        mean = torch.stack(list(losses.values())).mean()
        common = _flat(torch.autograd.grad(mean, parameters, retain_graph=True, materialize_grads=True))
        optimizer.zero_grad()
        multi.backward(losses, features=features)
        direction = _flat([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])
        before = _flat(parameters)
        optimizer.step()
        schedule.step()
        if step >= steps // 10:
            seen["direction"].append(_cosine(direction, common))
            seen["step"].append(_cosine(before - _flat(parameters), common))
            if last is not None:
                seen["next direction"].append(_cosine(direction, last))
        last = direction
    return {name: statistics.fmean(values) for name, values in seen.items()}


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(cosine_similarity(a.double(), b.double(), dim=0))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="qm9", help="a registered benchmark task")
    parser.add_argument("--steps", type=int, default=200, help="training steps, at least 3")
    parser.add_argument("--learning-rate", type=float, help="Adam's. Default: the task's")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the numbers")
    chosen = parser.parse_args(arguments)
    if chosen.steps < 3:
        parser.error("--steps: two directions in a row are compared after the first step, so at least 3")
    torch.set_num_threads(1)
    task: BenchmarkTask = mtlcore.create("task", chosen.task)
    rate = task.budget.learning_rate if chosen.learning_rate is None else chosen.learning_rate
    print(f"{chosen.task}, {chosen.steps} steps: cosine with the mean gradient of")
    print(f"{'':30}{'the direction':>16}{'the step':>16}{'d(t), d(t+1)':>16}")
    results = {}
    for label in chosen.methods:
        results[label] = found = measure(task, label, chosen.steps, rate, chosen.seed)
        print(f"{label:30}" + "".join(f"{value:>16.3f}" for value in found.values()), flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
