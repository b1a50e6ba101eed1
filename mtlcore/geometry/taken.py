"""What the optimizer's step did to every task, to first order."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mtlcore import linalg, trajectory
from mtlcore.distributed.dtensors import whole
from mtlcore.geometry.moves import KNOWN, Move, moves
from mtlcore.gradients.storage import Storage
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
        memory: kept between steps.
    """

    def __init__(self, optimizer: Optimizers, parameters: Sequence[Tensor], memory: Storage) -> None:
        self._parameters = parameters
        self._memory = memory
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
        moved = self._moved()
        products = linalg.gramian(moved).cpu()
        along, against = found.across(moved[:2]).cpu().unbind(1)
        gradients, (step, direction) = found.gramian().diagonal().sqrt().cpu(), products.diagonal()[:2].sqrt()

        def spread(numbers: Tensor) -> Tensor:
            return linalg.vector(presence.spread_numbers(numbers.tolist()))

        return Taken(
            spread(along),
            spread(-along / (gradients * step)),
            spread(against / (gradients * direction)),
            *_parts(products),
        )

    def _moved(self) -> Tensor:
        """(2 to 4, P): the step, the direction, and what the optimizer made of it; what decay did. The last two as far
        as they are known and not zero."""
        decays = any(m.group["weight_decay"] for m in self._moves)
        n_rows = 2 + bool(self._moves) + decays
        sizes = [p.numel() for p in self._parameters]
        moved = self._memory.take(n_rows, sum(sizes), self._parameters[0], linalg.row_dtype(self._parameters))
        for i, (p, before, out) in enumerate(zip(self._parameters, self._before, moved.split(sizes, 1))):
            step, direction, *others = [row.view(p.shape) for row in out]
            before = whole(before).to(moved.dtype)
            torch.sub(whole(p).to(moved.dtype), before, out=step)
            if p.grad is None:  # such a parameter does not move, nor decay
                out[1:].zero_()
                continue
            direction.copy_(whole(p.grad.to_dense()))
            if others:
                decay = self._moves[i].parts(p, before, direction, others[0])
                for row in others[1:]:
                    row.zero_() if decay is None else row.copy_(decay)
        return moved


def _parts(products: Tensor) -> tuple[dict[str, float], float]:
    """Shares and preconditioner, from the inner products of what :meth:`Watch._moved` returns."""
    square = float(products[0, 0])
    if len(products) < 3 or square == 0.0:
        return {}, math.nan
    gradient, decay = float(products[2, 0]) / square, float(products[3:, 0].sum()) / square
    sizes = float(products[2, 2].sqrt() * products[1, 1].sqrt())
    turned = -float(products[2, 1]) / sizes if sizes > 0.0 else math.nan
    return {"gradient": gradient, "momentum": 1.0 - gradient - decay, "decay": decay}, turned
