"""What happens around a teleport: conflict, conflict in the optimizer's metric, and progress, on a held-out batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.studies.cost_arms import adam_scale

EVERY = 2
"""Steps between two looks."""


@dataclasses.dataclass
class Trace:
    """Of one run.

    Args:
        steps: in which was looked, before the step.
        cosine: the smallest of a task's gradient with the mean gradient.
        in_metric: the same in Adam's metric.
        loss: the mean logarithm of the tasks' losses.
        teleports: the steps in which one was accepted.
    """

    steps: list[int] = dataclasses.field(default_factory=list)
    cosine: list[float] = dataclasses.field(default_factory=list)
    in_metric: list[float] = dataclasses.field(default_factory=list)
    loss: list[float] = dataclasses.field(default_factory=list)
    teleports: list[int] = dataclasses.field(default_factory=list)

    def look(
        self, step: int, network: Any, optimizer: torch.optim.Optimizer, held_out: Callable[[], tuple[Any, Any]]
    ) -> None:
        """Every other step; nothing of the run is changed."""
        if step % EVERY:
            return
        parameters = list(network.trunk.parameters())
        losses, rows = _rows(network, parameters, held_out)
        scale = adam_scale(optimizer, parameters)
        self.steps.append(step)
        self.cosine.append(_worst(rows))
        self.in_metric.append(_worst(rows if scale is None else rows * scale.sqrt()))
        self.loss.append(round(float(losses.log().mean()), 6))


def _rows(
    network: nn.Module, parameters: list[nn.Parameter], held_out: Callable[[], tuple[Any, Any]]
) -> tuple[Tensor, Tensor]:
    """(K,) losses and (K, P) gradients, float64, in evaluation mode."""
    training = network.training
    network.eval()
    losses, _ = held_out()
    rows = []
    for loss in losses.values():
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        rows.append(torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, found)]))
    network.train(training)
    return torch.stack([v.detach().double() for v in losses.values()]), torch.stack(rows).double()


def _worst(rows: Tensor) -> float:
    mean = rows.mean(dim=0)
    sizes = rows.norm(dim=1) * mean.norm()
    alive = sizes > 0.0
    return round(float(((rows @ mean)[alive] / sizes[alive]).min()), 5) if bool(alive.any()) else 0.0
