"""How large is the term that BiLB4MTL's single loop drops, on real data?

    python -m mtlbench.studies.dropped_term [--task multimnist] [--steps 300] [--inner-lr 0.05] [--json FILE]

Trains with ``bilb4mtl`` and, at a few moments, asks ``bilb4mtl-double-loop`` in the same state, at the same network and
on the same batch for ||grad_W g(W, z_N)|| / ||grad_W g(W, x)||, where z_N is reached from x by N inner steps. The
single loop is justified if this ratio is small. Training itself is not disturbed: inner steps are undone.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mtlcore
from mtlbench.tasks.base import BenchmarkTask, Network, Split, closure

INNER_STEPS = (1, 10, 50)
SETTINGS: dict[str, dict[str, Any]] = {
    "identical": {"normalisation": "identical"},
    "rescaled (default)": {},
    "log": {"normalisation": "log"},
}


def measure(
    task: BenchmarkTask, options: dict[str, Any], steps: int, inner_lr: float, moments: Sequence[int], seed: int = 0
) -> list[dict[str, float]]:
    """One training run: for each moment the step and the ratio for every N."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Network(task)
    train, generator = task.load().train, torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=task.budget.learning_rate)
    single = mtlcore.MultiTask(network.trunk, mtlcore.create("aggregator", "bilb4mtl", **options), optimizer)
    rows = []
    for step in range(steps):
        index = torch.randint(len(train), (task.budget.batch_size,), generator=generator)
        report = single.step(closure(task, network, *train.batch(index)))
        if step in moments:
            row: dict[str, float] = {"step": step, "mean loss": float(report.losses.mean())}
            for n in INNER_STEPS:
                row[f"N={n}"] = _ratio(task, network, train, index, single, options, n, inner_lr)
            rows.append(row)
    return rows


def _ratio(
    task: BenchmarkTask, network: Network, train: Split, index: Tensor, single: mtlcore.MultiTask,
    options: dict[str, Any], n: int, inner_lr: float,
) -> float:  # fmt: skip
    twin = copy.deepcopy(network)
    method = mtlcore.create("aggregator", "bilb4mtl-double-loop", **options, inner_steps=n, inner_lr=inner_lr)
    double = mtlcore.MultiTask(twin.trunk, method, torch.optim.SGD(twin.parameters(), lr=0.0), heads=twin.heads)
    double.load_state_dict({**single.state_dict(), "aggregator": "bilb4mtl-double-loop"})
    report = double.step(closure(task, twin, *train.batch(index)))
    return float(report.diagnostics["dropped_ratio"])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="multimnist", help="a registered benchmark task")
    parser.add_argument("--steps", type=int, default=300, help="training steps")
    parser.add_argument("--inner-lr", type=float, default=0.05, help="step size of the inner loop")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the numbers")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    task: BenchmarkTask = mtlcore.create("task", chosen.task)
    moments = sorted({0, 10, chosen.steps // 3, 2 * chosen.steps // 3, chosen.steps - 1})
    results = {}
    for label, options in SETTINGS.items():
        rows = measure(task, options, chosen.steps, chosen.inner_lr, moments, chosen.seed)
        results[label] = rows
        print(f"\n{chosen.task}, normalisation {label}: ||grad_W g(W, z_N)|| / ||grad_W g(W, x)||")
        print("".join(f"{name:>12}" for name in rows[0]))
        for row in rows:
            print(f"{int(row['step']):>12}" + "".join(f"{v:>12.3f}" for name, v in row.items() if name != "step"))
    if chosen.json:
        chosen.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
