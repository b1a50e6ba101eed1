"""What the optimizer's step did to every task, to first order."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mtlcore import linalg, trajectory
from mtlcore.geometry.moves import KNOWN, Move, moves
from mtlcore.gradients.task_gradients import TaskGradients
from mtlcore.presence import Presence
from mtlcore.trajectory import Optimizers


@dataclasses.dataclass(frozen=True)
class Taken:
    """The step s that the trunk's parameters made (theirs alone: heads are left out).

    Args:
        changes: (K,) float64 <g_i, s>, the change of task i's loss to first order; NaN for an absent task.
        cosines: (K,) of g_i with -s: negative where the step raises a task's loss. NaN for an absent task, or where a
            gradient or the step is zero.
        direction: (K,) the same for the direction, as ``.grad`` had it when the optimizer moved.
        shares: of "gradient", "momentum" and "decay" in s: <part, s> / |s|^2, which add up to 1. Empty for an optimizer
            whose step is not known here (or that moved nothing).
        preconditioner: cosine of the direction d with D d, which the optimizer made of it: 1 where it only scaled. NaN
            if not known.
    """

    changes: Tensor
    cosines: Tensor
    direction: Tensor
    shares: Mapping[str, float]
    preconditioner: float

    @property
    def min_cosine(self) -> float:
        """The smallest of the cosines; NaN if there is none."""
        there = self.cosines[~self.cosines.isnan()]
        return float(there.min()) if there.numel() else math.nan

    def scalars(self, names: Sequence[str]) -> dict[str, float]:
        """As ``StepReport.scalars``: ``taken/change/TASK``, ``taken/cosine/TASK``, ``taken/min_cosine``,
        ``taken/share/PART`` and ``taken/preconditioner``."""
        out = {f"taken/change/{n}": v for n, v in zip(names, self.changes.tolist())}
        out |= {f"taken/cosine/{n}": v for n, v in zip(names, self.cosines.tolist())}
        out |= {"taken/min_cosine": self.min_cosine, "taken/preconditioner": self.preconditioner}
        return out | {f"taken/share/{part}": share for part, share in self.shares.items()}


class Watch:
    """Remembers the parameters before a step.

    Args:
        optimizer: of the run.
        parameters: of the trunk, that require gradients.
    """

    def __init__(self, optimizer: Optimizers, parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters
        self._before = [p.detach().clone() for p in parameters]
        held = {id(p) for o in trajectory.each(optimizer) for g in o.param_groups for p in g["params"]}
        known = all(
            type(o) in KNOWN and not any(g.get("maximize", False) for g in o.param_groups)
            for o in trajectory.each(optimizer)
        )
        known = known and all(id(p) in held for p in parameters)
        self._moves: list[Move] = moves(optimizer, parameters, "taken=True") if known else []

    @torch.no_grad()
    def taken(self, found: TaskGradients, presence: Presence) -> Taken:
        """After the step.

        Args:
            found: the gradients of the tasks present, where the step began.
            presence: of the tasks.
        """
        step = _flat([p.double() - b.double() for p, b in zip(self._parameters, self._before)])
        grads = [torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for p in self._parameters]
        direction = _flat(grads)
        norms, along = found.gramian().diagonal().sqrt().to(step.device), found.applied(step)
        shares, turned = self._parts(step, direction)
        return Taken(
            linalg.vector(presence.spread_numbers(along.tolist())),
            linalg.vector(presence.spread_numbers((-along / (norms * step.norm())).tolist())),
            linalg.vector(presence.spread_numbers((found.applied(direction) / (norms * direction.norm())).tolist())),
            shares,
            turned,
        )

    def _parts(self, step: Tensor, direction: Tensor) -> tuple[dict[str, float], float]:
        size = float(step @ step)
        if not self._moves or size == 0.0:
            return {}, math.nan
        moved, decay = [], []
        pieces = direction.split([p.numel() for p in self._parameters])
        for move, p, before, piece in zip(self._moves, self._parameters, self._before, pieces):
            root = move.known(p)
            divisor = torch.ones((), dtype=torch.float64, device=p.device) if root is None else root.double()
            # A parameter without gradient does not move, nor decay; 0 / 0 where no gradient ever came.
            eps = float(move.group.get("eps", 1.0)) or 1.0
            divisor = torch.where(divisor > 0.0, divisor, torch.full_like(divisor, eps))
            moved.append(-move.factor * piece.view(p.shape) / divisor)
            part = None if p.grad is None else move.decay(before.double(), divisor)
            decay.append(torch.zeros_like(moved[-1]) if part is None else part)
        fresh, decayed = _flat(moved), _flat(decay)
        gradient, shrunk = float(fresh @ step) / size, float(decayed @ step) / size
        turned = -float(fresh @ direction) / float(fresh.norm() * direction.norm()) if bool(fresh.any()) else math.nan
        return {"gradient": gradient, "momentum": 1.0 - gradient - shrunk, "decay": shrunk}, turned


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.double().flatten() for t in tensors])
