"""Steps in a CSV file: one line for every number, so that a number which first appears late needs no new column."""

from __future__ import annotations

import csv
import os
from pathlib import Path

from mtlcore.errors import ConfigurationError
from mtlcore.hookspecs import hookimpl
from mtlcore.integrations._steps import Every
from mtlcore.report import StepReport
from mtlcore.watching import COLUMNS


class CSVLogger:
    """Appends ``report.scalars()`` of every step to a file; add it with :func:`mtlcore.add_plugin`.

    The columns are run, method, step, name, value. As a table with a column for each number::

        pandas.read_csv("run.csv").pivot_table(index=["run", "step"], columns="name", values="value")

    A file that exists is continued. Every step is on disk when the step returns. ``mtl watch FILE`` shows
    it while it grows.

    Args:
        path: the file.
        every: log every n-th step (and each one with a teleport).

    Raises:
        ConfigurationError: the file cannot be opened, or holds something else.
    """

    def __init__(self, path: str | os.PathLike[str], every: int = 1) -> None:
        self._wanted = Every(every)
        self.path = Path(path)
        header = ",".join(COLUMNS)
        try:
            with self.path.open("a+", newline="", encoding="utf-8") as file:
                file.seek(0)
                first = file.readline().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{self.path} cannot be used as a log: {error}. Choose another file.") from error
        if first not in ("", header):
            raise ConfigurationError(
                f"{self.path} is not a log of steps: its first line is {first!r}. Choose another file."
            )
        if not first:
            self._append([list(COLUMNS)])

    @hookimpl
    def mtlcore_step_finished(self, report: StepReport) -> None:
        """One line for every number of the step."""
        if self._wanted(report):
            about = [report.run, report.method, report.step]
            self._append([[*about, name, repr(value)] for name, value in report.scalars().items()])

    def _append(self, lines: list[list[object]]) -> None:
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(lines)
