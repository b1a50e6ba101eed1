"""What tasks whose sub-tasks are all plain classifications share: cross-entropy and accuracy."""

from __future__ import annotations

import abc
import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from mtlbench.measures.calibration import calibration_gaps
from mtlbench.tasks.base import BenchmarkTask, Metric


@dataclasses.dataclass(frozen=True)
class ClassificationTask(BenchmarkTask, abc.ABC):
    """K classifications, judged by accuracy in percent. Reported beside it, and not part of delta-m: the expected
    calibration error in percent, in 15 bins."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """One accuracy and one calibration error per sub-task."""
        return tuple(
            metric
            for name in self.tasks
            for metric in (
                Metric(name, "accuracy", higher_is_better=True, unit="%"),
                Metric(name, "calibration error", higher_is_better=False, unit="%", judged=False),
            )
        )

    def loss(self, task: str, output: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy, the mean over the batch."""
        return F.cross_entropy(output, target)

    def tally(self, task: str, output: Tensor, target: Tensor) -> Tensor:
        """(right, all, and of each bin of confidence: right minus confidence)."""
        right = (output.argmax(dim=1) == target).sum().double()
        gaps = calibration_gaps(output.double().softmax(dim=1), target)
        return torch.cat([torch.stack([right, torch.full_like(right, target.numel())]), gaps])

    def score(self, task: str, tally: Tensor) -> dict[str, float]:
        """Both in percent."""
        shares = 100.0 * tally / tally[1]
        return {"accuracy": float(shares[0]), "calibration error": float(shares[2:].abs().sum())}
