"""What a step tells its caller."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlcore import inputs, linalg, scaling
from mtlcore.contracts import Aggregation, Conflict
from mtlcore.inputs import Losses
from mtlcore.registry import registry
from mtlcore.report import StepReport, TeleportResult
from mtlcore.step.prepare import Prepared
from mtlcore.step.run import Run


def report(
    run: Run,
    prepared: Prepared,
    answer: Aggregation | None,
    conflict: Conflict | None,
    teleport: TeleportResult | None,
) -> StepReport:
    """The report of a step; before the method has answered, without weights."""
    # Copies: a method may keep what it answered.
    weights = None if answer is None or answer.weights is None else linalg.vector(answer.weights.tolist())
    notes = {} if answer is None else answer.diagnostics
    diagnostics = {k: v.clone() if isinstance(v, Tensor) else v for k, v in notes.items()}
    looks, fired = run.progress.counts(conflict)
    if looks:
        diagnostics |= {"detector_looks": looks, "detector_fired": fired}
    view, gram = prepared.view, prepared.gramian
    return StepReport(
        step=run.progress.step,
        task_names=view.task_names,
        losses=view.losses,
        weights=weights,
        gramian=None if gram is None else view.presence.spread_pairs(gram, float("nan")).clone(),
        conflict=conflict,
        teleport=teleport,
        diagnostics=diagnostics,
        gradient_source=prepared.reason,
        method=registry().name_of(run.aggregator),
        run=run.name,
    )


def skipped(run: Run, losses: Losses) -> StepReport:
    """A step whose gradients overflowed under a scaler: the scaler is shown the overflow, nothing else changes."""
    presence, scalars = inputs.present_losses(losses, run.progress.tasks)
    scaling.poison([*run.parameters, *scaling.leaves(scalars)])
    values = presence.spread_numbers(inputs.numbers(scalars))
    return StepReport(
        step=run.progress.step,
        task_names=presence.names,
        losses=torch.tensor(values, dtype=torch.float64, device="cpu"),
        weights=None,
        gramian=None,
        conflict=None,
        teleport=None,
        diagnostics={},
        gradient_source="skipped: the scaled gradients overflowed",
        method=registry().name_of(run.aggregator),
        run=run.name,
        skipped=True,
    )
