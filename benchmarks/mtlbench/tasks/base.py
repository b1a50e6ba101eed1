"""What a benchmark task declares. Everything the protocol needs is here, so that it has no special cases.

A task is a frozen dataclass (its fields are options of the suite file) registered by the hook
``mtlcore_register_tasks``. It holds no state: ``load`` may cache, and must return the same data every time.
"""

from __future__ import annotations

import abc
import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from mtlcore.hyperparameters import Validated


@dataclasses.dataclass(frozen=True)
class Metric:
    """One number by which a task is judged.

    Args:
        task: the sub-task it belongs to.
        name: what it is, e.g. "accuracy".
        higher_is_better: its direction.
        unit: "%", "eV", ...; "" for a pure number.
    """

    task: str
    name: str
    higher_is_better: bool
    unit: str = ""

    @property
    def key(self) -> str:
        """How records call it: "task/name"."""
        return f"{self.task}/{self.name}"


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much training every method gets, the single-task baselines included.

    Args:
        steps: optimizer steps.
        batch_size: examples a step.
        learning_rate: of Adam, decayed to zero along a half cosine.
        evaluations: how many times validation is looked at (evenly spaced); the checkpoint is one of them.
    """

    steps: int
    batch_size: int
    learning_rate: float
    evaluations: int = 8


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples of one part of the data.

    Args:
        inputs: (N, ...) float32, already normalised with the statistics of the training part.
        targets: {sub-task: (N, ...)}.
        sources: (M,) or (N, M) indices of the source examples (images, molecules, rows) used in this part.
    """

    inputs: Tensor
    targets: Mapping[str, Tensor]
    sources: np.ndarray

    def __len__(self) -> int:
        return int(self.inputs.shape[0])

    def batch(self, index: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The examples at ``index``."""
        return self.inputs[index], {name: target[index] for name, target in self.targets.items()}

    def fingerprint(self) -> str:
        """Hash of which source examples are used, in which order."""
        return hashlib.sha256(np.ascontiguousarray(self.sources, dtype="<i8").tobytes()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Splits:
    """Training, validation and test part. No source example is in two of them."""

    train: Split
    validation: Split
    test: Split

    def fingerprints(self) -> dict[str, str]:
        """Part -> hash of its source indices."""
        return {name: getattr(self, name).fingerprint() for name in ("train", "validation", "test")}


@dataclasses.dataclass(frozen=True)
class BenchmarkTask(Validated, abc.ABC):
    """A multi-task problem on real data. The splits are fixed: seeds change training, never the data."""

    title: ClassVar[str]
    """One line for the report."""
    about: ClassVar[str]
    """Where the data come from, what is real in them and what is composed, and why the problem is here."""
    sources: ClassVar[tuple[str, ...]]
    """Names in :data:`mtlbench.data.sources.SOURCES`."""

    revision: ClassVar[int] = 1
    """Part of every configuration hash: raise it when data, network, loss or metrics change, so that older records
    are not taken for results of the task as it is now."""

    @property
    @abc.abstractmethod
    def tasks(self) -> tuple[str, ...]:
        """Names of the K sub-tasks."""

    @property
    @abc.abstractmethod
    def metrics(self) -> tuple[Metric, ...]:
        """What is measured, with direction and unit; each sub-task has at least one."""

    @property
    @abc.abstractmethod
    def budget(self) -> Budget:
        """Default budget."""

    @abc.abstractmethod
    def load(self) -> Splits:
        """The data. Raises DataError if they cannot be had."""

    @abc.abstractmethod
    def trunk(self) -> nn.Module:
        """A fresh shared network, initialised from the global generator."""

    @abc.abstractmethod
    def head(self, task: str) -> nn.Module:
        """A fresh head of one sub-task."""

    @abc.abstractmethod
    def loss(self, task: str, output: Tensor, target: Tensor) -> Tensor:
        """The scalar training loss of one sub-task."""

    @abc.abstractmethod
    def tally(self, task: str, output: Tensor, target: Tensor) -> Tensor:
        """Sufficient statistics of a batch, any shape, float64: the sum over batches must determine the metrics."""

    @abc.abstractmethod
    def score(self, task: str, tally: Tensor) -> dict[str, float]:
        """{metric name: value} of one sub-task from the summed tallies."""


class Network(nn.Module):
    """A trunk and one head per sub-task."""

    def __init__(self, task: BenchmarkTask, only: str | None = None) -> None:
        """Build all heads in a fixed order even if one is wanted: that pairs the initial weights of all runs."""
        super().__init__()
        self.trunk = task.trunk()
        heads = {name: task.head(name) for name in task.tasks}
        self.heads = nn.ModuleDict({name: head for name, head in heads.items() if only in (None, name)})

    def forward(self, inputs: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """{sub-task: output} and the shared features."""
        features = self.trunk(inputs)
        return {name: head(features) for name, head in self.heads.items()}, features


def closure(
    task: BenchmarkTask, network: Network, inputs: Tensor, targets: Mapping[str, Tensor]
) -> Callable[[], tuple[dict[str, Tensor], Tensor]]:
    """Losses and features of one fixed batch, whenever called: what a step takes."""

    def forward() -> tuple[dict[str, Tensor], Tensor]:
        outputs, features = network(inputs)
        return {name: task.loss(name, output, targets[name]) for name, output in outputs.items()}, features

    return forward


@torch.no_grad()
def evaluate(task: BenchmarkTask, network: Network, split: Split, batch_size: int = 200) -> dict[str, float]:
    """{metric key: value} of the heads that ``network`` has, over a whole split, in evaluation mode."""
    was_training = network.training
    network.eval()
    sums: dict[str, Tensor] = {}
    for start in range(0, len(split), batch_size):
        inputs, targets = split.batch(torch.arange(start, min(start + batch_size, len(split))))
        outputs, _ = network(inputs)
        for name, output in outputs.items():
            tally = task.tally(name, output, targets[name])
            sums[name] = sums[name] + tally if name in sums else tally
    network.train(was_training)
    return {
        f"{name}/{metric}": value for name, tally in sums.items() for metric, value in task.score(name, tally).items()
    }
