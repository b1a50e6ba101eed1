"""What a step tells its caller and the event hooks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mtlcore import linalg
from mtlcore.contracts import Conflict


@dataclasses.dataclass(frozen=True)
class TeleportResult:
    """The outcome of one attempted teleport.

    Args:
        strategy: name of the teleport plugin.
        accepted: whether the network moved; if not, everything is bit for bit as before.
        reason: why it was accepted or refused, in words.
        relative_loss_change: {task: (loss after - loss before) / |loss before|} on the probe batch.
        held_out: whether the probe batch differs from the batch that the teleport was computed on.
        conflict_before: the detector's severity (without a detector: minus the worst cosine with the mean
            gradient) on the probe batch before the teleport.
        conflict_after: the same afterwards.
        seconds: wall time of the attempt.
        diagnostics: what the strategy and the transaction logged.
    """

    strategy: str
    accepted: bool
    reason: str
    relative_loss_change: Mapping[str, float]
    held_out: bool
    conflict_before: float
    conflict_after: float
    seconds: float
    diagnostics: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class StepReport:
    """What happened in one step. Tensors are detached copies, safe to keep.

    Args:
        step: index of this step, from 0.
        task_names: the K tasks of the run.
        losses: (K,) float64; NaN for a task missing from this batch.
        weights: (K,) float64 weights of the task gradients; None for a method that returns a direction.
        gramian: (K, K) float64 or None if nothing in this step needed it.
        conflict: the detector's verdict, or None without a detector (or between two detections).
        teleport: the outcome of the teleport tried in this step, or None.
        diagnostics: what method and gradient source logged; with a detector also how often it was asked so far
            (``detector_looks``) and found a conflict (``detector_fired``).
        gradient_source: name of the source, and why it was taken.
        method: name of the aggregator.
        run: the name that the MultiTask was given, "" without one.
    """

    step: int
    task_names: tuple[str, ...]
    losses: Tensor
    weights: Tensor | None
    gramian: Tensor | None
    conflict: Conflict | None
    teleport: TeleportResult | None
    diagnostics: Mapping[str, Any]
    gradient_source: str
    method: str = ""
    run: str = ""

    def scalars(self) -> dict[str, float]:
        """Every number of the step under a flat name, for a logger: plain floats that JSON can hold.

        ``loss/TASK`` and ``weight/TASK``, ``conflict/min_cosine``, ``conflict/severity``, ``conflict/conflicting``,
        ``teleport/accepted``, ``diagnostics/NAME``. What a step does not have, and what is not finite, is left out.
        """
        out: dict[str, Any] = {f"loss/{n}": v for n, v in zip(self.task_names, self.losses.tolist())}
        if self.weights is not None:
            out |= {f"weight/{n}": v for n, v in zip(self.task_names, self.weights.tolist())}
        out["conflict/min_cosine"] = self.min_cosine()
        if self.conflict is not None:
            out |= {"conflict/severity": self.conflict.severity, "conflict/conflicting": self.conflict.conflicting}
        if self.teleport is not None:
            out["teleport/accepted"] = self.teleport.accepted
        out |= {f"diagnostics/{n}": v for n, v in self.diagnostics.items() if isinstance(v, (int, float))}
        return {name: float(v) for name, v in out.items() if v is not None and math.isfinite(v)}

    def min_cosine(self) -> float | None:
        """The smallest cosine between two task gradients; None without a Gramian or with fewer than two tasks."""
        if self.gramian is None or self.gramian.shape[0] < 2:
            return None
        cos = linalg.cosines(self.gramian)
        off = cos[~cos.isnan() & ~cos.new_ones(cos.shape).tril().bool()]
        return float(off.min()) if off.numel() else None
