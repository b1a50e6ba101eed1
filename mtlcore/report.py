"""What a step tells its caller and the event hooks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mtlcore import linalg
from mtlcore.contracts import Conflict
from mtlcore.geometry.taken import Taken


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
            gradient) on the probe batch before the teleport; NaN if the attempt ended before it was measured.
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
        weights: (K,) float64 weights of the task gradients; None for a method that returns a direction, and in a
            skipped step.
        gramian: (K, K) float64 or None if nothing in this step needed it.
        conflict: the detector's verdict, or None without a detector (or between two detections).
        teleport: the outcome of the teleport tried in this step, or None.
        diagnostics: what method and gradient source logged; with a detector also how often it was asked so far
            (``detector_looks``) and found a conflict (``detector_fired``).
        gradient_source: name of the source, and why it was taken.
        method: registered name of the aggregator.
        run: name of the ``MultiTask``.
        skipped: whether the gradients overflowed under a ``GradScaler``: the method was not asked, the scaler skips the
            optimizer's step and lowers its scale.
        taken: what the optimizer's step did to the tasks, with ``MultiTask(..., taken=True)`` and ``step``; else None.
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
    skipped: bool = False
    taken: Taken | None = None

    def min_cosine(self) -> float | None:
        """The smallest cosine between two task gradients; None without a Gramian or with fewer than two tasks."""
        if self.gramian is None or self.gramian.shape[0] < 2:
            return None
        cos = linalg.cosines(self.gramian)
        off = cos[~cos.isnan() & ~cos.new_ones(cos.shape).tril().bool()]
        return float(off.min()) if off.numel() else None

    def direction_cosines(self) -> Tensor | None:
        """(K,) cosine of each task's gradient with the direction J^T w; NaN for an absent task or a zero gradient. None
        where no Gramian was made, or the method answered with a direction."""
        if self.gramian is None or self.weights is None:
            return None
        there = ~self.gramian.diagonal().isnan()
        gram, weights = self.gramian[there][:, there], self.weights[there]
        products = gram @ weights
        size = float((weights @ products).clamp_min(0.0)) ** 0.5
        out = torch.full_like(self.weights, math.nan)
        out[there] = products / (gram.diagonal().sqrt() * size)
        return out.where(out.isnan(), out.clamp(-1.0, 1.0))

    def scalars(self) -> dict[str, float]:
        """Everything that is one number, flat, as plain floats: for a logger, or ``json.dumps``.

        Keys: ``loss/TASK``, ``weight/TASK``, ``cosine/TASK`` (with the direction), ``conflict/min_cosine``,
        ``conflict/severity``, ``conflict/conflicting``, ``teleport/accepted``, ``skipped`` (in a skipped step),
        ``taken/...`` and ``diagnostics/NAME`` for every number among the diagnostics. What is not known, or not finite,
        is left out.
        """
        out: dict[str, float] = {"skipped": 1.0} if self.skipped else {}
        for what, values in (("loss", self.losses), ("weight", self.weights), ("cosine", self.direction_cosines())):
            if values is not None:
                out |= {f"{what}/{name}": float(v) for name, v in zip(self.task_names, values.tolist())}
        lowest = self.min_cosine()
        if lowest is not None:
            out["conflict/min_cosine"] = lowest
        if self.conflict is not None:
            out["conflict/conflicting"] = float(self.conflict.conflicting)
            out["conflict/severity"] = float(self.conflict.severity)
        if self.teleport is not None:
            out["teleport/accepted"] = float(self.teleport.accepted)
        if self.taken is not None:
            out |= self.taken.scalars(self.task_names)
        for name, value in self.diagnostics.items():
            number = _number(value)
            if number is not None:
                out[f"diagnostics/{name}"] = number
        return {name: value for name, value in out.items() if math.isfinite(value)}

    def __str__(self) -> str:
        """What happened, task by task, for a person."""
        who = " ".join(x for x in (self.run, f"step {self.step}:", self.method) if x)
        lines = [f"{who}{' (skipped: the gradients overflowed)' if self.skipped else ''}, {self.gradient_source}"]
        width = max(map(len, map(str, self.task_names)))
        cosines = self.direction_cosines()
        lines.append(f"  {'task':{width}}  {'loss':>11}  {'weight':>11}  {'cosine':>7}")
        for i, name in enumerate(self.task_names):
            cells = [_cell(self.losses, i, 11), _cell(self.weights, i, 11), _cell(cosines, i, 7)]
            lines.append(f"  {name!s:{width}}  {'  '.join(cells)}")
        if self.conflict is not None:
            verdict = "conflict" if self.conflict.conflicting else "no conflict"
            lines.append(f"  {verdict}, severity {self.conflict.severity:.3g}")
        if self.teleport is not None:
            verdict = "accepted" if self.teleport.accepted else "refused"
            lines.append(f"  teleport {self.teleport.strategy} {verdict}: {self.teleport.reason}")
        return "\n".join(lines)


def apart(value: Any) -> Any:
    """The same with tensors, dicts and lists of its own, as deep as they are in reports and verdicts."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, (StepReport, TeleportResult, Conflict, Taken)):
        return type(value)(**{f.name: apart(getattr(value, f.name)) for f in dataclasses.fields(value)})
    if isinstance(value, Mapping):
        return {name: apart(part) for name, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(apart, value))
    return value


def _number(value: Any) -> float | None:
    if isinstance(value, Tensor):
        return float(value) if value.numel() == 1 and not value.is_complex() else None
    return float(value) if isinstance(value, (bool, int, float)) else None


def _cell(values: Tensor | None, i: int, width: int) -> str:
    if values is None or math.isnan(float(values[i])):
        return f"{'-':>{width}}"
    return f"{float(values[i]):>{width}.4g}"
