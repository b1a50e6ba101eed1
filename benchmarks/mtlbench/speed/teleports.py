"""What a teleport costs and what it buys: the measurement behind the defaults of ``lora``.

    mtl speed teleports [TASK ...] [--points N] [--seeds N] [--json FILE]

A network is trained on a benchmark task; at several points every configuration is tried **from the same point** (the
network is put back in between), with a trigger batch, a probe batch that decides, and held-out data that nobody has
looked at. Reported per task and configuration:

* accepted: how many teleports the transaction let pass;
* conflict: the detector's severity (minus the worst cosine with the mean gradient), before and after, on held-out data;
* better: how many of the accepted ones lowered it there;
* drift: the largest relative change of a task's loss there (median over teleports);
* steps: time of one attempt, refused or not, in ordinary training steps of the same method on the same batch size;
* epoch: what one attempt per epoch adds to the time of an epoch.

Times are processor times (run it with OMP_NUM_THREADS=1), so that neighbours on the machine do not decide the result.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import mtlcore
from mtlbench.speed import measure
from mtlbench.tasks.base import BenchmarkTask, Split
from mtlcore import Teleporter
from mtlcore.presets import PAPER_TELEPORT

CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora (default)": ("lora", {}),
    "lora, one step": ("lora", {"steps": 1}),
    "lora, three steps": ("lora", {"steps": 3}),
    "lora, double backward": ("lora", {"estimator": "double-backward"}),
    "lora, gradient norm": ("lora", {"objective": "gradient-norm"}),
    "lora, sharpness": ("lora", {"objective": "sharpness", "estimator": "sphere"}),
    "penalty, conflict": ("lora", {"search": "penalty", "gamma": 0.3, "steps": 12}),
    "penalty, gradient norm": ("lora", {"search": "penalty", "objective": "gradient-norm", "steps": 12}),
    "penalty, as published": ("lora", {**PAPER_TELEPORT, "adapter": "low-rank"}),
    "penalty, as published, 60 steps": ("lora", {**PAPER_TELEPORT, "adapter": "low-rank", "steps": 60, "lr": 1e-3}),
    "relu-rescaling": ("relu-rescaling", {}),
    "random": ("random", {}),
}
"""What is compared. "as published": the paper's objective, search and absolute losses; factors of our own, so that no
import is timed; the second one with more and larger steps, as the published twelve hardly move."""


class _Bed:
    """One task in training: network, optimizer, batches."""

    def __init__(self, name: str, seed: int, aggregator: str) -> None:
        task: BenchmarkTask = mtlcore.create("task", name)
        splits = task.load()
        budget = task.budget
        torch.manual_seed(seed)
        self.task = task
        self.trunk = task.trunk()
        self.heads = nn.ModuleDict({t.replace(".", "_"): task.head(t) for t in task.tasks})
        self._keys = {t: t.replace(".", "_") for t in task.tasks}
        parameters = [*self.trunk.parameters(), *self.heads.parameters()]
        self.optimizer = torch.optim.Adam(parameters, lr=budget.learning_rate)
        self.mt = mtlcore.MultiTask(self.trunk, aggregator, self.optimizer, seed=seed, tasks=task.tasks)
        self.steps_per_epoch = max(1, len(splits.train) // budget.batch_size)
        self._generator = torch.Generator().manual_seed(seed)
        self._train = splits.train
        self._size = budget.batch_size
        rows = torch.randperm(len(splits.validation), generator=self._generator)[:1024]
        self.held_out = self.closure(splits.validation, rows)

    def closure(self, split: Split, index: Tensor) -> Callable[[], tuple[dict[str, Tensor], tuple[Tensor, ...]]]:
        """Evaluates these examples at the network's current point."""
        inputs, targets = split.batch(index)

        def evaluate() -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
            z = self.trunk(inputs)
            losses = {t: self.task.loss(t, self.heads[k](z), targets[t]) for t, k in self._keys.items()}
            return losses, (z,)

        return evaluate

    def batch(self, factor: int = 1) -> Callable[[], tuple[dict[str, Tensor], tuple[Tensor, ...]]]:
        """A random training batch."""
        return self.closure(
            self._train, torch.randint(len(self._train), (factor * self._size,), generator=self._generator)
        )

    def train(self, steps: int) -> float:
        """Median processor seconds of a step."""
        times = []
        for _ in range(steps):
            closure = self.batch()
            start = time.process_time()
            self.mt.step(closure)
            times.append(time.process_time() - start)
        return statistics.median(times)

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        """Evaluation mode: with dropout two looks at the same point would differ by more than a teleport moves."""
        for part in (self.trunk, self.heads):
            part.eval()
        yield
        for part in (self.trunk, self.heads):
            part.train()

    def held_out_losses(self) -> dict[str, float]:
        """On data that no teleport sees."""
        with self.looking(), torch.no_grad():
            return {t: float(v) for t, v in self.held_out()[0].items()}

    def held_out_conflict(self, detector: mtlcore.ConflictDetector) -> float:
        """Severity there."""
        with self.looking():
            losses, _ = self.held_out()
        values, parameters = list(losses.values()), list(self.trunk.parameters())
        rows = [torch.autograd.grad(v, parameters, retain_graph=i + 1 < len(values)) for i, v in enumerate(values)]
        jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
        return detector.detect(mtlcore.StepView(losses=torch.stack(values), jacobian=jacobian)).severity


def tries(
    name: str, seed: int, points: int, aggregator: str, warm_up: int, chosen: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """One record per configuration and point."""
    bed = _Bed(name, seed, aggregator)
    detector = mtlcore.create("detector", "dominated", rule="any")
    bed.train(warm_up)
    for point in range(points):
        step_seconds = bed.train(30)
        trigger, probe = bed.batch(), bed.batch()
        kept = copy.deepcopy([bed.trunk.state_dict(), bed.heads.state_dict(), bed.optimizer.state_dict()])
        losses, conflict = bed.held_out_losses(), bed.held_out_conflict(detector)
        for label in chosen:
            kind, options = CONFIGURATIONS[label]
            teleporter = Teleporter(mtlcore.create("teleport", kind, **options), name=kind, detector=detector)
            start = time.process_time()
            result = teleporter.attempt(
                trunk=bed.trunk,
                heads=bed.heads,
                closure=trigger,
                probe=probe,
                view=mtlcore.StepView(losses=torch.ones(len(bed.task.tasks)), task_names=bed.task.tasks, step=point),
                optimizer=bed.optimizer,
                generator=torch.Generator().manual_seed(seed),
            )
            seconds = time.process_time() - start
            after = bed.held_out_losses()
            yield {
                "task": name,
                "configuration": label,
                "seed": seed,
                "point": point,
                "accepted": result.accepted,
                "reason": result.reason,
                "probe_before": result.conflict_before,
                "probe_after": result.conflict_after,
                "held_out_before": conflict,
                "held_out_after": bed.held_out_conflict(detector),
                "drift": max(abs(after[t] / losses[t] - 1.0) for t in losses),
                "seconds": seconds,
                "steps": seconds / step_seconds,
                "steps_per_epoch": bed.steps_per_epoch,
                "sigma": result.diagnostics.get("sigma"),
                "threads": measure.threads(),
            }
            trunk, heads, optimizer = copy.deepcopy(kept)
            bed.trunk.load_state_dict(trunk)
            bed.heads.load_state_dict(heads)
            bed.optimizer.load_state_dict(optimizer)


def table(records: Sequence[dict[str, Any]]) -> str:
    """The records, summarised per task and configuration."""
    lines = [f"{'task':15} {'configuration':32} accepted  conflict held out   better   drift   steps   epoch"]
    for key in dict.fromkeys((r["task"], r["configuration"]) for r in records):
        group = [r for r in records if (r["task"], r["configuration"]) == key]
        kept = [r for r in group if r["accepted"]]
        steps = statistics.median(r["steps"] for r in group)
        line = f"{key[0]:15} {key[1]:32} {len(kept):3}/{len(group):<3}"
        if kept:
            before, after, drift = (
                statistics.median(r[k] for r in kept) for k in ("held_out_before", "held_out_after", "drift")
            )
            better = sum(r["held_out_after"] < r["held_out_before"] for r in kept)
            line += f"  {before:+7.3f} -> {after:+7.3f}  {better:3}/{len(kept):<3} {drift:7.2%}"
        else:
            line += " " * 39
        lines.append(f"{line} {steps:7.1f} {steps / group[0]['steps_per_epoch']:7.1%}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="mtl speed teleports", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tasks", nargs="*", default=["multimnist", "grid-fashion", "rf1"], help="benchmark tasks")
    parser.add_argument("--points", type=int, default=5, help="teleports per run and configuration")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--warm-up", type=int, default=60, help="steps before the first point")
    parser.add_argument("--aggregator", default="fairgrad")
    parser.add_argument(
        "--only", nargs="*", default=list(CONFIGURATIONS), choices=list(CONFIGURATIONS), help="configurations"
    )
    parser.add_argument("--json", help="write the records here")
    chosen = parser.parse_args(arguments)
    records: list[dict[str, Any]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in chosen.tasks:
            for seed in range(chosen.seeds):
                records += tries(name, seed, chosen.points, chosen.aggregator, chosen.warm_up, chosen.only)
            print(table([r for r in records if r["task"] == name]), flush=True)
    if chosen.json:
        with open(chosen.json, "w", encoding="utf-8") as file:
            json.dump(records, file, indent=1)


if __name__ == "__main__":
    main()
