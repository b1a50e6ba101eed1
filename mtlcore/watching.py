"""``mtl watch``: a log of steps on one screen, while it grows.

It reads what :class:`mtlcore.integrations.csv.CSVLogger` writes. Nothing here imports torch.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mtlcore import output
from mtlcore.errors import ConfigurationError
from mtlcore.safety import plain

if TYPE_CHECKING:
    from rich.console import Group

COLUMNS = ("run", "method", "step", "name", "value")
"""Of the file, in this order."""
BLOCKS = "▁▂▃▄▅▆▇█"
CURVE = 16
"""Characters of a loss curve."""


class Series:
    """One number of a run: its last values, with their steps."""

    def __init__(self, window: int) -> None:
        self._points: collections.deque[tuple[int, float]] = collections.deque(maxlen=window)

    def add(self, step: int, value: float) -> None:
        """The value of a later step."""
        self._points.append((step, value))

    def values(self, since: int) -> list[float]:
        """Those of steps from ``since`` on."""
        return [v for step, v in self._points if step >= since]

    def at(self, step: int) -> float | None:
        """The value of this step, if it is the last one logged."""
        return self._points[-1][1] if self._points and self._points[-1][0] == step else None


@dataclasses.dataclass
class Run:
    """What is known of one run, over a window of steps.

    Args:
        window: how many logged steps are kept.
        method: its aggregator, as it was last logged.
        step: the last step.
        series: {name of the number: its values}.
    """

    window: int
    method: str = ""
    step: int = 0
    series: dict[str, Series] = dataclasses.field(default_factory=dict)
    steps: collections.deque[int] = dataclasses.field(default_factory=collections.deque)

    def add(self, method: str, step: int, name: str, value: float) -> None:
        """One line of the log. A step before the last one is a new start under the same name: what was there goes."""
        if step < self.step:
            self.series.clear()
            self.steps.clear()
        if not self.steps or step != self.steps[-1]:
            self.steps.append(step)
            while len(self.steps) > self.window:
                self.steps.popleft()
        self.method, self.step = method, step
        self.series.setdefault(name, Series(self.window)).add(step, value)

    def tasks(self) -> list[str]:
        """In the order in which they were first logged."""
        return [name.removeprefix("loss/") for name in self.series if name.startswith("loss/")]

    def values(self, name: str) -> list[float]:
        """The values of a number within the window."""
        found = self.series.get(name)
        return found.values(self.steps[0]) if found is not None else []

    def now(self, name: str) -> float | None:
        """The value of a number in the last step; None where that step has none."""
        found = self.series.get(name)
        return found.at(self.step) if found is not None else None


class Log:
    """A log that somebody else writes.

    Args:
        path: the file.
        window: logged steps that are kept of every run.

    Raises:
        ConfigurationError: there is no such file, or it is not a log of steps.
    """

    def __init__(self, path: Path, window: int) -> None:
        self.path, self.window = path, window
        self._begin()
        self.refresh()

    def _begin(self) -> None:
        self.runs: dict[str, Run] = {}
        self._read, self._torn, self._headed = 0, b"", False
        self.unread = 0
        """Lines that are not what they should be."""

    def refresh(self) -> None:
        """Read what has been written since. Half a line is kept until its rest is there."""
        try:
            if self.path.stat().st_size < self._read:  # a new file under the old name
                self._begin()
            with self.path.open("rb") as file:
                file.seek(self._read)
                new = file.read()
        except OSError as error:
            raise ConfigurationError(
                f"{str(self.path)!r} cannot be read: {error.strerror}. A run writes it after "
                f'`mtlcore.add_plugin(CSVLogger("{self.path.name}"))`.'
            ) from error
        self._read += len(new)
        lines = (self._torn + new).split(b"\n")
        self._torn = lines.pop()
        if not self._headed:
            self._check_header(lines, self._torn)
        self._take(lines)

    def _check_header(self, lines: list[bytes], torn: bytes) -> None:
        """Takes the first line, as soon as it is there."""
        header = ",".join(COLUMNS)
        first = lines.pop(0).rstrip(b"\r") if lines else None
        self._headed = first == header.encode()
        if not self._headed and (first is not None or not header.encode().startswith(torn.rstrip(b"\r"))):
            raise ConfigurationError(
                f"{str(self.path)!r} is not a log of steps: its first line is not {header!r}. Give a file that "
                "mtlcore.integrations.csv.CSVLogger has written."
            )

    def _take(self, lines: list[bytes]) -> None:
        for line in lines:
            try:
                ((run, method, step, name, value),) = csv.reader([line.decode("utf-8", "replace")])
                self.runs.setdefault(run, Run(self.window)).add(method, int(step), name, float(value))
            except (ValueError, csv.Error):
                self.unread += 1  # a line that was cut off when its process was killed, say


def curve(values: list[float], width: int = CURVE) -> str:
    """The values as a line of blocks, the mean of equal parts each; empty without values."""
    if not values:
        return ""
    parts = min(width, len(values))
    means = []
    for i in range(parts):
        part = values[i * len(values) // parts : (i + 1) * len(values) // parts]
        means.append(sum(part) / len(part))
    low, high = min(means), max(means)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((m - low) * scale)] for m in means)


def _share(values: list[float], holds: Callable[[float], bool]) -> str:
    return f"{100 * sum(map(holds, values)) / len(values):.0f} %" if values else "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def headline(name: str, run: Run) -> str:
    """How a run stands, in one line: its conflicts and its teleports."""
    parts = [f"step {run.step}"]
    verdicts, cosines = run.values("conflict/conflicting"), run.values("conflict/min_cosine")
    if verdicts:
        parts.append(f"conflict in {_share(verdicts, bool)} of the steps")
    elif cosines:
        parts.append(f"negative cosine in {_share(cosines, lambda c: c < 0)} of the steps")
    if cosines:
        parts.append(f"smallest cosine {_number(cosines[-1])}")
    jumps = run.values("teleport/accepted")
    if jumps:
        parts.append(f"teleports: {sum(map(bool, jumps))} of {len(jumps)} accepted")
    if run.values("skipped"):
        parts.append(f"{len(run.values('skipped'))} steps skipped")
    return f"{plain(' '.join(x for x in (name, run.method) if x))}: {', '.join(parts)}"


def picture(log: Log) -> Group:
    """All runs of the log, below each other."""
    from rich.console import Group

    parts: list[object] = []
    for name, run in log.runs.items():
        table = output.table(
            "task", "loss", "course", "weight", "cosine", "harmed", right=("loss", "weight", "cosine", "harmed"),
            whole=("loss", "course", "weight", "cosine", "harmed"),
        )  # fmt: skip
        for task in run.tasks():
            numbers = [_number(run.now(f"{what}/{task}")) for what in ("loss", "weight", "cosine")]
            harmed = _share(run.values(f"cosine/{task}"), lambda c: c < 0)
            table.add_row(output.cell(task), numbers[0], curve(run.values(f"loss/{task}")), *numbers[1:], harmed)
        parts += [output.cell(headline(name, run), "bold"), table, ""]
    parts.append(f"Over the last {log.window} logged steps. cosine: of the task's gradient with the direction; harmed:")
    parts.append("how often it was negative. -: not logged.")
    parts = parts if log.runs else ["No step is logged yet."]
    if log.unread:
        parts.append(f"{log.unread} lines of the file could not be read.")
    return Group(*parts)  # type: ignore[arg-type]


def watch(path: Path, window: int, every: float, once: bool) -> None:
    """Show the log until Ctrl-C; once where nobody watches a screen.

    Raises:
        ConfigurationError: there is no such file, or it is not a log of steps.
    """
    log = Log(path, window)
    console = output.console()
    if once or not console.is_terminal:
        console.print(picture(log))
        return
    from rich.live import Live

    try:
        with Live(picture(log), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(every)
                log.refresh()
                live.update(picture(log), refresh=True)
    except KeyboardInterrupt:
        return
