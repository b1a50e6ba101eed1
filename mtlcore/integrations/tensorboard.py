"""Steps in TensorBoard, one run of TensorBoard for each run of mtlcore."""

from __future__ import annotations

import os
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from mtlcore.hookspecs import hookimpl
from mtlcore.integrations._steps import Every
from mtlcore.report import StepReport


class TensorBoardLogger:
    """Writes ``report.scalars()`` of every step; add it with :func:`mtlcore.add_plugin`. Needs ``tensorboard``.

    Losses, weights, conflicts and teleports are groups of charts. A custom layout shows losses, weights and conflict
    side by side. A :class:`~mtlcore.MultiTask` with a name has its own folder below ``folder``.

    Args:
        folder: where the event files go.
        every: log every n-th step (and each one with a teleport).
    """

    def __init__(self, folder: str | os.PathLike[str], every: int = 1) -> None:
        self._folder = os.fspath(folder)
        self._wanted = Every(every)
        self._writers: dict[str, Any] = {}

    @hookimpl
    def mtlcore_step_finished(self, report: StepReport) -> None:
        """One point in the chart of every number."""
        if self._wanted(report):
            writer = self._writer(report)
            for name, value in report.scalars().items():
                writer.add_scalar(name, value, report.step)

    def _writer(self, report: StepReport) -> Any:
        if report.run not in self._writers:
            writer: Any = SummaryWriter(os.path.join(self._folder, report.run))
            writer.add_custom_scalars({"mtlcore": _layout(report)})
            self._writers[report.run] = writer
        return self._writers[report.run]

    def close(self) -> None:
        """Write what is left, and close the files. TensorBoard also reads files that are still open."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()


def _layout(report: StepReport) -> dict[str, list[Any]]:
    """The dashboard of a conflict: what the tasks lose, what they weigh, how they disagree."""
    return {
        "losses": ["Multiline", [f"loss/{task}" for task in report.task_names]],
        "weights": ["Multiline", [f"weight/{task}" for task in report.task_names]],
        "conflict": ["Multiline", ["conflict/min_cosine", "conflict/severity"]],
    }
