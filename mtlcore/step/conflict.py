"""The detector's verdict, and the teleport that may follow from it."""

from __future__ import annotations

import torch

from mtlcore import inputs
from mtlcore.asking.detector import detect
from mtlcore.asking.seeds import step_seed
from mtlcore.contracts import Conflict
from mtlcore.distributed.searching import Searching
from mtlcore.inputs import Closure
from mtlcore.registry import registry
from mtlcore.report import TeleportResult
from mtlcore.step import tell
from mtlcore.step.prepare import Prepared
from mtlcore.step.run import Run


def look(run: Run, prepared: Prepared) -> Conflict | None:
    """The detector's verdict on this batch; None where it is not asked."""
    if run.detector is None or not run.looks_for_conflict() or not prepared.batch.shared:
        return None
    conflict = detect(run.detector, prepared.view)
    if conflict.conflicting and registry().listens("mtlcore_conflict_detected"):
        report = tell.report(run, prepared, None, conflict, None)
        registry().announce("mtlcore_conflict_detected", conflict=conflict, report=report)
    return conflict


def teleport(run: Run, closure: Closure, prepared: Prepared, conflict: Conflict | None) -> TeleportResult | None:
    """One attempt, if verdict and brakes allow it; None where they do not.

    Args:
        run: whose trunk may be moved.
        closure: the step's batch.
        prepared: the same, as it is now.
        conflict: the detector's verdict.
    """
    teleporter = run.teleporter
    if teleporter is None or not run.may_teleport() or not prepared.batch.shared:
        return None
    if run.detector is not None and (conflict is None or not conflict.conflicting):
        return None
    assert run.trunk is not None
    probe, progress = run.probe, run.progress
    together = Searching(run.processes) if run.processes.several() else None
    lacking = [] if together is None else together.lacking(prepared.batch.presence)
    if lacking:
        who = " and ".join(map(repr, lacking))
        return teleporter.refused(f"task {who} is in the batch of some processes only", held_out=probe is not None)
    result = teleporter.attempt(
        trunk=run.trunk,
        heads=run.heads,
        closure=lambda: run.named(*inputs.evaluated(closure)),
        probe=None if probe is None else lambda: inputs.probed(probe, progress.tasks),
        view=prepared.view,
        optimizer=run.optimizer,
        generator=torch.Generator().manual_seed(step_seed(progress.seed + 1, progress.step)),
        together=together,
    )
    run.progress = progress._replace(teleport_steps=(*progress.teleport_steps, progress.step))
    registry().announce("mtlcore_teleported", result=result)
    return result
