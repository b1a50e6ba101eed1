"""A step under ``torch.amp.GradScaler``: the method sees true losses and gradients, ``.grad`` is scaled as the scaler
expects, and an overflow is a skipped step.

Cotangents of the losses start at the scale s instead of 1, so that half-precision gradients do not underflow on their
way. Rows are then s J. What a method reads is divided by s (the Gramian by s^2), what it answers is applied to the
scaled rows. Scales are powers of two unless the user chose others, so that the division is exact.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from mtlcore.errors import ConfigurationError
from mtlcore.gradients import graph
from mtlcore.gradients.task_gradients import Answer, TaskGradients


def scale_of(scaler: Any, device: torch.device) -> float | None:
    """The present scale; None without a scaler, or with one that is switched off. A new scaler begins here, on the
    given device.

    Raises:
        ConfigurationError: not a GradScaler.
    """
    if scaler is None:
        return None
    if not (hasattr(scaler, "scale") and hasattr(scaler, "is_enabled") and hasattr(scaler, "step")):
        raise ConfigurationError(f"scaler must be a torch.amp.GradScaler, found {scaler!r}.")
    return float(scaler.scale(torch.ones((), device=device))) if scaler.is_enabled() else None


class Scaled(TaskGradients):
    """Task gradients whose numbers are s times the true ones, shown as the true ones.

    Args:
        inner: as the plan found them.
        scale: s.
    """

    def __init__(self, inner: TaskGradients, scale: float) -> None:
        self._inner = inner
        self._scale = scale
        self.weights_whole_losses = inner.weights_whole_losses  # type: ignore[misc]
        self.heads = inner.heads

    def gramian(self) -> Tensor:
        """(k, k) float64, of the true gradients."""
        return self._inner.gramian() / self._scale**2

    def rows(self) -> Tensor:
        """(k, P), true."""
        return self._inner.rows() / self._scale

    def across(self, vectors: Tensor) -> Tensor:
        """J V^T of the true J."""
        return self._inner.across(vectors) / self._scale

    def write(self, answer: Answer) -> None:
        """``.grad`` gets s times what it would get without a scaler."""
        direction = None if answer.direction is None else answer.direction * self._scale
        extra = tuple([g * self._scale for g in answer.feature_gradient])
        self._inner.write(Answer(answer.weights, direction, answer.head_weights, extra))


def leaves(losses: Iterable[Tensor]) -> list[Tensor]:
    """Every leaf that some loss reaches; also after the graph was freed."""
    return list(graph.leaves(losses)[0].values())


def poison(leaves: Iterable[Tensor]) -> None:
    """Let the scaler see the overflow: with infinite gradients it skips its optimizer steps and lowers the scale."""
    for leaf in leaves:
        if leaf.is_leaf and leaf.requires_grad:
            leaf.grad = torch.full_like(leaf, float("inf"))
