"""What tasks whose sub-tasks are all plain regressions of standardised targets share."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from mtlbench.tasks.base import BenchmarkTask, Metric


@dataclasses.dataclass(frozen=True)
class RegressionTask(BenchmarkTask, abc.ABC):
    """K regressions. The network predicts standardised targets; the metric is the mean absolute error in the
    target's own unit."""

    @property
    @abc.abstractmethod
    def units(self) -> Mapping[str, str]:
        """{sub-task: unit of its error}."""

    @abc.abstractmethod
    def scale(self, task: str) -> float:
        """Standard deviation of the training targets of one sub-task, in its unit."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the K targets."""
        return tuple(self.units)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """One mean absolute error per sub-task."""
        return tuple(Metric(name, "MAE", higher_is_better=False, unit=unit) for name, unit in self.units.items())

    def loss(self, task: str, output: Tensor, target: Tensor) -> Tensor:
        """Mean squared error of the standardised target."""
        return torch.mean((output.squeeze(-1) - target) ** 2)

    def tally(self, task: str, output: Tensor, target: Tensor) -> Tensor:
        """(sum of absolute errors, count)."""
        errors = (output.squeeze(-1) - target).abs().to(torch.float64)
        return torch.stack(
            [errors.sum(), torch.tensor(float(target.numel()), dtype=torch.float64, device=errors.device)]
        )

    def score(self, task: str, tally: Tensor) -> dict[str, float]:
        """Mean absolute error in the unit of the target."""
        return {"MAE": float(tally[0] / tally[1]) * self.scale(task)}
