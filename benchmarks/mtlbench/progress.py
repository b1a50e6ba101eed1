"""How far a phase of a run is: a bar, and what its jobs tell it."""

from __future__ import annotations

import contextlib
import functools
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mtlbench.clusters import Cluster
from mtlbench.formats import Record
from mtlbench.jobs import Job, do_job, failed
from mtlbench.suite import SINGLE_TASK
from mtlbench.workers import end_if_orphaned, parallel
from mtlcore.hosting import PATIENCE, allowed


class Bar:
    """A progress bar over all optimizer steps of a phase, and one printed line per finished run."""

    def __init__(self, console: Console, label: str, jobs: list[Job]) -> None:
        self._console, self._label = console, label
        self._steps = {self._name(job.method_name, job.seed, job.config_hash): job.steps() for job in jobs}
        self._finished: set[str] = set()
        self._folder = tempfile.TemporaryDirectory(prefix="mtlbench-")
        self._progress = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[now]}", style="dim", markup=False),
            console=console, transient=True, disable=not console.is_terminal,  # to a file it would write empty lines
        )  # fmt: skip
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @staticmethod
    def _name(method: str, seed: int, config_hash: str) -> str:
        return f"{method.replace('/', '-')}@{seed}@{config_hash}"

    def path_of(self, job: Job) -> str:
        """The file in which a job says how far it is."""
        return str(Path(self._folder.name) / self._name(job.method_name, job.seed, job.config_hash))

    def __enter__(self) -> Bar:
        self._bar = self._progress.add_task(self._label, total=sum(self._steps.values()), now="")
        self._progress.start()
        self._thread.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stop.set()
        self._thread.join()
        self._progress.stop()
        self._folder.cleanup()

    def finished(self, record: Record) -> None:
        """One line."""
        self._finished.add(self._name(record.method, record.seed, record.config_hash))
        who = f"{record.task} · {record.method} · seed {record.seed}"
        if record.trial is not None:
            who += f" · trial {record.trial}"
        if not record.ok:
            self._progress.console.print("[red]failed[/] " + escape(f"{who}: {record.error}"), highlight=False)
            return
        numbers = [f"{record.seconds or 0.0:.1f} s"]
        if record.method != SINGLE_TASK and record.delta_m is not None:
            numbers.insert(0, f"delta-m {record.delta_m:+.2f} %")
        if record.ratio_to_sum:
            numbers.append(f"{record.ratio_to_sum:.2f} x a summed-loss step")
        self._progress.console.print("[green]done[/] " + escape(f"{who}: {', '.join(numbers)}"), highlight=False)

    def _watch(self) -> None:
        moved: dict[str, tuple[int, float]] = {}
        while not self._stop.wait(0.25):
            current: dict[str, int] = {}
            for name, total in self._steps.items():
                if name not in self._finished:
                    with contextlib.suppress(OSError, ValueError):
                        current[name] = min(int((Path(self._folder.name) / name).read_text()), total)
            finished = sum(self._steps[name] for name in self._finished)
            self._say_who_stands_still(current, moved)
            running = ", ".join(n.rsplit("@", 1)[0] for n in current)
            self._progress.update(self._bar, completed=finished + sum(current.values()), now=running)

    def _say_who_stands_still(self, current: Mapping[str, int], moved: dict[str, tuple[int, float]]) -> None:
        """Once per stop: a job that has begun and finished no step in five seconds."""
        now = time.monotonic()
        for name, step in current.items():
            before, since = moved.get(name, (-1, now))
            if step != before:
                moved[name] = step, now
            elif since > 0 and now - since > PATIENCE:
                moved[name] = step, -1.0
                way_out = "" if allowed() else "; --timeout S would go on without it"
                text = f"waiting for {name.rsplit('@', 1)[0]} at step {step}, for {now - since:.0f} s so far{way_out}"
                self._progress.console.print(escape(text), highlight=False)


def results(jobs: list[Job], processes: int, bar: Bar, cluster: Cluster | None = None) -> Iterable[Record]:
    """The records of jobs as they finish; each job tells the bar how far it is (on a cluster: only when it has
    finished, unless the workers share this machine's files)."""
    work = [functools.partial(_job_with_progress, job, bar.path_of(job)) for job in jobs]
    instead = lambda job, path, *, why: failed(job, why)
    return parallel(work, processes, instead) if cluster is None else cluster.spread(work, instead)


def _job_with_progress(job: Job, path: str) -> Record:
    """A worker tells how far it is through a small file: that works with every backend of joblib."""
    last = 0.0
    with contextlib.suppress(OSError):
        Path(path).write_text("0")  # it has begun

    def progress(step: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > 0.25:
            last = now
            end_if_orphaned()
            with contextlib.suppress(OSError):
                Path(path).write_text(str(step))

    return do_job(job, progress)
