"""What tasks whose sub-tasks are all plain classifications share: cross-entropy and accuracy."""

from __future__ import annotations

import abc
import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from mtlbench.tasks.base import BenchmarkTask, Metric


@dataclasses.dataclass(frozen=True)
class ClassificationTask(BenchmarkTask, abc.ABC):
    """K classifications, judged by accuracy in percent."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """One accuracy per sub-task."""
        return tuple(Metric(name, "accuracy", higher_is_better=True, unit="%") for name in self.tasks)

    def loss(self, task: str, output: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy, the mean over the batch."""
        return F.cross_entropy(output, target)

    def tally(self, task: str, output: Tensor, target: Tensor) -> Tensor:
        """(right, all)."""
        right = (output.argmax(dim=1) == target).sum()
        return torch.stack([right, torch.tensor(target.numel(), device=right.device)]).to(torch.float64)

    def score(self, task: str, tally: Tensor) -> dict[str, float]:
        """Accuracy in percent."""
        return {"accuracy": 100.0 * float(tally[0] / tally[1])}
