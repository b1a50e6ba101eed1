"""Optimizer and schedule, equal for all methods."""

from __future__ import annotations

from typing import Any

import torch

from mtlbench.tasks.base import Budget, Network


def optimizer_of(network: Network, budget: Budget) -> tuple[torch.optim.Optimizer, Any]:
    """Adam, and a cosine schedule down to zero at the end of the budget."""
    optimizer = torch.optim.Adam(network.parameters(), lr=budget.learning_rate)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=budget.steps)
