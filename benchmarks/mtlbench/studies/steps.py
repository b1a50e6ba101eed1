"""How often does the step of an optimizer harm a task whose method's direction harms nobody?

    python -m mtlbench.studies.steps [--method upgrad] [--networks 10] [--steps 40]

Small random networks with three tasks that pull apart, trained on batches of four of 16 examples, under each optimizer
that :mod:`mtlcore.geometry` knows and in each metric. The table says in how many percent of the steps the first-order
change of some task's loss is positive, the worst cosine of a task's gradient with the step, and, for
``metric="step"``, in how many percent of the steps the report said that it was not safe.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtlcore import MultiTask, create

OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "SGD": (torch.optim.SGD, {"lr": 1e-3}),
    "SGD, momentum 0.9, decay 0.01": (torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9, "weight_decay": 1e-2}),
    "SGD, Nesterov 0.9": (torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9, "nesterov": True}),
    "Adam": (torch.optim.Adam, {"lr": 1e-3}),
    "Adam, ten times the rate": (torch.optim.Adam, {"lr": 1e-2}),
    "AdamW, decay 0.1": (torch.optim.AdamW, {"lr": 1e-3, "weight_decay": 0.1}),
    "RMSprop": (torch.optim.RMSprop, {"lr": 1e-3}),
    "RMSprop, momentum 0.9, centered": (torch.optim.RMSprop, {"lr": 1e-3, "momentum": 0.9, "centered": True}),
    "Adagrad": (torch.optim.Adagrad, {"lr": 1e-2}),
}
METRICS = ("euclidean", "optimizer", "step")
NOISE = 1e-4
"""A cosine above minus this counts as none."""


@dataclasses.dataclass(frozen=True)
class Row:
    """Of one optimizer in one metric: percent of the steps that conflict, worst cosine, percent said to be unsafe."""

    optimizer: str
    metric: str
    conflicts: float
    worst: float
    unsafe: float


class Networks:
    """One random network with three tasks, in float64, and its optimizer."""

    def __init__(self, seed: int, optimizer: str) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.trunk = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4)).double()
            self.heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(3)).double()
            self._x, self._y = torch.randn(16, 5).double(), torch.randn(3, 16, 1).double()
        self._draws = torch.Generator().manual_seed(seed)
        kind, options = OPTIMIZERS[optimizer]
        self.optimizer = kind([*self.trunk.parameters(), *self.heads.parameters()], **options)

    def closure(self) -> Any:
        """The next batch."""
        index = torch.randint(len(self._x), (4,), generator=self._draws)

        def evaluate() -> tuple[list[Tensor], Tensor]:
            z = self.trunk(self._x[index])
            pairs = zip((1.0, -1.0, 3.0), self.heads, self._y)
            return [(c * head(z) - y[index]).square().mean() for c, head, y in pairs], z

        return evaluate


def measured(method: str, optimizer: str, metric: str, networks: int, steps: int) -> Row:
    """One line of the table."""
    lowest, unsafe = [], 0
    for seed in range(networks):
        made = Networks(seed, optimizer)
        run = MultiTask(made.trunk, create("aggregator", method), made.optimizer, metric=metric, taken=True, seed=seed)
        for _ in range(steps):
            report = run.step(made.closure())
            assert report.taken is not None
            lowest.append(report.taken.min_cosine)
            unsafe += not report.diagnostics.get("step_safe", True)
    share = 100.0 / len(lowest)
    return Row(optimizer, metric, share * sum(c < -NOISE for c in lowest), min(lowest), share * unsafe)


def table(method: str, networks: int, steps: int) -> Iterator[Row]:
    """Line by line."""
    for optimizer in OPTIMIZERS:
        for metric in METRICS:
            yield measured(method, optimizer, metric, networks, steps)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="upgrad", help="a method that reads gradients")
    parser.add_argument("--networks", type=int, default=10, help="random networks")
    parser.add_argument("--steps", type=int, default=40, help="of each")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print("| optimizer | metric | steps that conflict, % | worst cosine | unsafe, % |")
    print("|---|---|---|---|---|")
    for row in table(chosen.method, chosen.networks, chosen.steps):
        print(
            f"| {row.optimizer} | {row.metric} | {row.conflicts:.1f} | {row.worst:+.3f} | {row.unsafe:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
