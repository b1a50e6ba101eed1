"""What the steps of a run reported, as far as a record keeps it."""

from __future__ import annotations

import itertools
import math
import statistics
from typing import Any

from torch import Tensor

from mtlcore.report import StepReport, TeleportResult

CURVE_POINTS = 80
"""Points kept of a loss curve; each is the mean of its steps."""
CLEAR = 1e-3
"""A cosine with the step below minus this is a conflict: a step read off float32 parameters is known no better."""


class Log:
    """What the steps reported."""

    def __init__(self) -> None:
        self.losses: list[list[float]] = []
        self.diagnostics: dict[str, float] = {}
        self.source: str | None = None
        self._looked = 0
        self._fired = 0
        self._tried: list[tuple[int, TeleportResult]] = []
        self._steps: list[float] = []
        self._made_of: dict[str, list[float]] = {}

    def note(self, report: StepReport) -> None:
        """One step."""
        self.losses.append(report.losses.tolist())
        self.source = report.gradient_source
        self._looked += report.conflict is not None
        self._fired += bool(report.conflict is not None and report.conflict.conflicting)
        if report.teleport is not None:
            self._tried.append((report.step, report.teleport))
        if report.taken is not None and not math.isnan(report.taken.min_cosine):
            self._steps.append(report.taken.min_cosine)
            parts = {f"step_share_{part}": share for part, share in report.taken.shares.items()}
            for name, value in {**parts, "step_preconditioner": report.taken.preconditioner}.items():
                if not math.isnan(value):
                    self._made_of.setdefault(name, []).append(value)
        for name, value in report.diagnostics.items():  # plain numbers and flags; a record keeps their means
            if isinstance(value, Tensor) and value.numel() == 1:
                value = value.item()
            if isinstance(value, (bool, int, float)):
                self.diagnostics[name] = self.diagnostics.get(name, 0.0) + float(value)

    def steps(self) -> dict[str, float | None]:
        """What the optimizer's steps did to the tasks, where that was measured: the share of steps that conflict with
        a task, and means: of the smallest cosines of a task's gradient with the step, of the shares that gradient,
        momentum and decay have in it, and of the cosine between the direction and what the preconditioner makes of it.
        """
        if not self._steps:
            return {}
        conflicts = sum(cosine < -CLEAR for cosine in self._steps)
        made_of = {name: statistics.fmean(values) for name, values in self._made_of.items()}
        means = {"step_cosine": statistics.fmean(self._steps), **made_of}
        return {"steps_in_conflict": conflicts / len(self._steps), **means}

    def teleports(self, total_seconds: float) -> dict[str, Any]:
        """Attempts and what came of them."""
        accepted = [result for _, result in self._tried if result.accepted]
        reasons: dict[str, int] = {}
        for _, result in self._tried:
            if not result.accepted:
                reasons[result.reason] = reasons.get(result.reason, 0) + 1
        changes = [abs(v) for r in accepted for v in r.relative_loss_change.values()]
        seconds = sum(result.seconds for _, result in self._tried)
        return {
            "detector_looked": self._looked,
            "detector_fired": self._fired,
            "tried": len(self._tried),
            "accepted": len(accepted),
            "steps": [step for step, _ in self._tried],
            "seconds": seconds,
            "share_of_time": seconds / total_seconds if total_seconds else None,
            "refused_because": reasons,
            "conflict_before": statistics.fmean(r.conflict_before for r in accepted) if accepted else None,
            "conflict_after": statistics.fmean(r.conflict_after for r in accepted) if accepted else None,
            "largest_relative_loss_change": max(changes) if changes else None,
        }


def thinned(losses: list[list[float]], names: tuple[str, ...]) -> dict[str, Any]:
    """{"step": [...], "by_task": {name: [...]}} with at most CURVE_POINTS bins, each the mean of its steps."""
    n = len(losses)
    edges = sorted({round(i * n / min(n, CURVE_POINTS)) for i in range(min(n, CURVE_POINTS) + 1)})
    bins = list(itertools.pairwise(edges))
    return {
        "step": [b for _, b in bins],
        "by_task": {
            name: [statistics.fmean(row[i] for row in losses[a:b]) for a, b in bins] for i, name in enumerate(names)
        },
    }
