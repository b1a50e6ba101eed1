"""What a benchmark task declares. Everything the protocol needs is here, so that it has no special cases.

A task is a frozen dataclass (its fields are options of the suite file) registered by the hook
``mtlcore_register_tasks``. It holds no state: ``load`` may cache, and must return the same data every time.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from mtlbench.tasks.declaration import Budget as Budget
from mtlbench.tasks.declaration import Metric as Metric
from mtlcore.hyperparameters import Validated

Inputs = Tensor | Mapping[str, Tensor]
"""(N, ...), or where every sub-task has examples of its own {sub-task: (N_k, ...)}."""
Batch = tuple[Inputs, dict[str, Tensor]]
"""Inputs, and the targets of each sub-task."""


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples of one part of the data, in memory.

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

    def batch(self, index: Tensor) -> Batch:
        """The examples at ``index``."""
        return self.inputs[index], {name: target[index] for name, target in self.targets.items()}

    def chunks(self, size: int) -> Iterator[Batch]:
        """All examples, each once, in batches of ``size`` or fewer."""
        for start in range(0, len(self), size):
            yield self.batch(torch.arange(start, min(start + size, len(self))))

    def fingerprint(self) -> str:
        """Hash of which source examples are used, in which order."""
        return hashlib.sha256(np.ascontiguousarray(self.sources, dtype="<i8").tobytes()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class LazySplit(Split):
    """Examples that are read from files when they are wanted: data sets that do not fit into memory.

    Args:
        read: index of an example -> (input, {sub-task: target}).
        inputs: of no examples; only its shape is used.
    """

    read: Callable[[int], tuple[Tensor, dict[str, Tensor]]] = dataclasses.field(kw_only=True)

    def __len__(self) -> int:
        return len(self.sources)

    def batch(self, index: Tensor) -> Batch:
        """The examples at ``index``, stacked."""
        examples = [self.read(int(i)) for i in index]
        names = examples[0][1]
        targets = {name: torch.stack([example[1][name] for example in examples]) for name in names}
        return torch.stack([example[0] for example in examples]), targets


@dataclasses.dataclass(frozen=True)
class MultiSplit(Split):
    """Examples of sub-tasks that share no input: a batch has one part for each. The shorter ones come round again.

    Args:
        parts: {sub-task: its own examples}; ``inputs`` and ``targets`` are not used.
    """

    parts: Mapping[str, Split] = dataclasses.field(kw_only=True)

    @classmethod
    def of(cls, parts: Mapping[str, Split]) -> MultiSplit:
        """From the parts; the source examples are theirs, one after the other."""
        sources = np.concatenate([p.sources for p in parts.values()])
        return cls(torch.empty(0), {}, sources, parts=parts)

    def __len__(self) -> int:
        return max(len(part) for part in self.parts.values())

    def batch(self, index: Tensor) -> Batch:
        """The examples at ``index`` modulo the number of each sub-task's examples."""
        inputs: dict[str, Tensor] = {}
        targets: dict[str, Tensor] = {}
        for name, part in self.parts.items():
            found, wanted = part.batch(index % len(part))
            assert isinstance(found, Tensor)
            inputs[name], targets[name] = found, wanted[name]
        return inputs, targets

    def chunks(self, size: int) -> Iterator[Batch]:
        """All examples of all sub-tasks, each once."""
        for name, part in self.parts.items():
            for inputs, targets in part.chunks(size):
                assert isinstance(inputs, Tensor)
                yield {name: inputs}, targets


def joined(one: Split, other: Split) -> Split:
    """The examples of both, one after the other."""
    sources = np.concatenate([one.sources, other.sources])
    if isinstance(one, MultiSplit) and isinstance(other, MultiSplit):
        return MultiSplit.of({name: joined(part, other.parts[name]) for name, part in one.parts.items()})
    if isinstance(one, LazySplit) and isinstance(other, LazySplit):
        first, second, n = one.read, other.read, len(one)
        return LazySplit(one.inputs, {}, sources, read=lambda i: first(i) if i < n else second(i - n))
    targets = {name: torch.cat([target, other.targets[name]]) for name, target in one.targets.items()}
    return Split(torch.cat([one.inputs, other.inputs]), targets, sources)


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

    evaluation_batch: ClassVar[int] = 200
    """Most examples that are evaluated at once."""

    def has_labels(self, task: str, target: Tensor) -> bool:
        """Whether a batch says anything of a sub-task; one without labels takes no part in the step."""
        return True

    def augment(self, batch: Batch, generator: torch.Generator) -> Batch:
        """A training batch with its augmentation, on the processor; by default as it is."""
        return batch

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

    def forward(self, inputs: Inputs) -> tuple[dict[str, Tensor], Any]:
        """{sub-task: output} and the shared features. Where sub-tasks have inputs of their own: of those that have
        some, and no features, because none is shared; nor are there any where the trunk gives more than one tensor."""
        if isinstance(inputs, Tensor):
            features = self.trunk(inputs)
            outputs = {name: head(features) for name, head in self.heads.items()}
            return outputs, features if isinstance(features, Tensor) else None
        return {name: self.heads[name](self.trunk(x)) for name, x in inputs.items() if name in self.heads}, None


def losses_of(task: BenchmarkTask, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The losses of the sub-tasks that have labels in this batch, in float32 whatever the network computed in."""
    return {
        name: task.loss(name, output.float(), targets[name])
        for name, output in outputs.items()
        if task.has_labels(name, targets[name])
    }


def closure(
    task: BenchmarkTask,
    network: Network,
    inputs: Inputs,
    targets: Mapping[str, Tensor],
    context: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
) -> Callable[[], tuple[dict[str, Tensor], Any]]:
    """Losses and features of one fixed batch, whenever called: what a step takes. The network runs in ``context``."""

    def forward() -> tuple[dict[str, Tensor], Any]:
        with context():
            outputs, features = network(inputs)
        return losses_of(task, outputs, targets), features

    return forward


@torch.no_grad()
def evaluate(task: BenchmarkTask, network: Network, split: Split, batch_size: int = 200) -> dict[str, float]:
    """{metric key: value} of the heads that ``network`` has, over a whole split, in evaluation mode."""
    was_training = network.training
    network.eval()
    device = next(network.parameters()).device
    sums: dict[str, Tensor] = {}
    for batch in split.chunks(min(batch_size, task.evaluation_batch)):
        inputs, targets = moved(batch, device)
        outputs, _ = network(inputs)
        for name, output in outputs.items():
            tally = task.tally(name, output.float(), targets[name]).cpu()
            sums[name] = sums[name] + tally if name in sums else tally
    network.train(was_training)
    return {
        f"{name}/{metric}": value for name, tally in sums.items() for metric, value in task.score(name, tally).items()
    }


def moved(batch: Batch, device: torch.device | str) -> Batch:
    """The batch on a device."""
    inputs, targets = batch
    there = {name: target.to(device) for name, target in targets.items()}
    if isinstance(inputs, Tensor):
        return inputs.to(device), there
    return {name: x.to(device) for name, x in inputs.items()}, there
