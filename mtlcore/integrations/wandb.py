"""Steps in Weights & Biases."""

from __future__ import annotations

from typing import Any

import wandb

from mtlcore.hookspecs import hookimpl
from mtlcore.integrations._steps import Every
from mtlcore.report import StepReport


class WandbLogger:
    """Logs ``report.scalars()`` of every step to a run of ``wandb``; add it with :func:`mtlcore.add_plugin`.

    Numbers keep their names (``loss/a``); those of a :class:`~mtlcore.MultiTask` with a name have it in front
    (``name/loss/a``). The horizontal axis is the step of mtlcore, so that your own ``run.log`` goes on beside it.

    Args:
        run: a run that ``wandb.init`` returned; None: the one that is active at the first step.
        every: log every n-th step (and each one with a teleport).

    Raises:
        RuntimeError: no run is active in the first step. mtlcore reports this once, as a warning, and trains on.
    """

    def __init__(self, run: Any = None, every: int = 1) -> None:
        self._run = run
        self._wanted = Every(every)
        self._known: set[str] = set()

    @hookimpl
    def mtlcore_step_finished(self, report: StepReport) -> None:
        """One row with every number of the step."""
        if not self._wanted(report):
            return
        run = self._run if self._run is not None else wandb.run
        if run is None:
            raise RuntimeError("no run of wandb is active: call wandb.init(...) before the first step.")
        prefix = f"{report.run}/" if report.run else ""
        scalars = {prefix + name: value for name, value in report.scalars().items()}
        for name in scalars.keys() - self._known:
            run.define_metric(name, step_metric=f"{prefix}step")
        self._known |= scalars.keys()
        run.log({**scalars, f"{prefix}step": report.step})
