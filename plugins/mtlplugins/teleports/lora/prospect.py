"""An objective of a LoRA teleport: the progress that the next steps promise, instead of agreement of gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtlplugins.teleports.lora.field import Field, Vector, combine, weighted
from mtlplugins.teleports.lora.objectives import curvature


@dataclass
class Progress:
    """O = sum_i w_i R_i, with R_i = (L_i(theta) - L_i(theta - s)) / |L_i*| and s = n D g_0: the relative decrease of
    each task's loss in n steps along the mean gradient g_0, in the optimizer's metric D. [ours]

    w = softmax(-R_i / (temperature * r)), with r the mean |R_i|, is held constant: a soft minimum, dominated by the
    tasks with the smallest R_i. O is in units of r at the first call, so that ``reach`` has the same meaning as for a
    cosine.

    D is that of the starting point. Then, with theta' = theta - s,

        grad O = sum_i w_i / |L_i*| [g_i(theta) - g_i(theta') + n H_0 D g_i(theta')],

    where H_0 v is one curvature product of the mean loss. The losses at theta' contain all orders of the curvature.

    Args:
        pace: D of each parameter, (numel,).
        horizon: n.
        temperature: temperature of the soft minimum, in units of r. [choice]
    """

    pace: Sequence[Tensor]
    horizon: int
    temperature: float = 0.5
    unit: float = 0.0

    def ascent(self, field: Field, generator: torch.Generator) -> tuple[float, Vector]:
        """Cost: one pass of task gradients, and that of :meth:`ascent_from`."""
        return self.ascent_from(field, field.rows()[1])

    def ascent_from(self, field: Field, blocks: list[Tensor]) -> tuple[float, Vector]:
        """The same with known task gradients at the current point. Cost: two forward passes and two gradients."""
        here, k = field.current(), len(field.tasks)
        mean = torch.full((k,), 1.0 / k, dtype=torch.float64, device=field.reference.device)
        g_0 = weighted(mean, blocks, here)
        back = combine([(-1.0, self._steps(g_0))])
        now = field.losses()
        field.place(here, back)
        decrease = (now - field.losses()) / field.unit
        if not bool(torch.isfinite(decrease).all()):
            field.place(here)
            return 0.0, combine([(0.0, here)])
        weights = self._weights(decrease)
        coefficient = weights / (self.unit * field.unit)
        _, (ahead,) = field.gradients(coefficient)
        field.place(here)
        turned = curvature(field, here, mean, g_0, self._steps(ahead))
        return float((weights * decrease).sum()) / self.unit, combine(
            [(1.0, weighted(coefficient, blocks, here)), (-1.0, ahead), (1.0, turned)]
        )

    def _steps(self, gradient: Vector) -> Vector:
        """n D g."""
        return [
            (self.horizon * d.to(g.device) * g.double().flatten()).view_as(g).to(g.dtype)
            for d, g in zip(self.pace, gradient)
        ]

    def _weights(self, decrease: Tensor) -> Tensor:
        """w (K,), largest for the tasks with the smallest decrease."""
        size = float(decrease.abs().mean()) or 1.0
        self.unit = self.unit or size
        return torch.softmax(-decrease / (self.temperature * size), dim=0)
