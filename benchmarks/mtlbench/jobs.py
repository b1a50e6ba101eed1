"""One run of a suite, complete in itself: what it is, and doing it, in any process."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import os
import platform
import subprocess
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

import mtlcore
from mtlbench import deadline, protocol, records, workers
from mtlbench.devices import Device
from mtlbench.formats import Key, Record, Short
from mtlbench.suite import NOT_TRAINED_WITH, SINGLE_TASK, MethodEntry, TaskEntry
from mtlbench.tasks.base import BenchmarkTask, Budget
from mtlcore.errors import PluginError
from mtlcore.hosting import BUILT_IN, blame, plain, registry


@dataclasses.dataclass(frozen=True)
class Job:
    """One run, complete in itself, so that any process on any machine can do it."""

    suite: str
    task: TaskEntry
    method: MethodEntry | None
    seed: int
    budget: Budget
    config_hash: str
    certificate: Short | None = None
    baseline: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    baseline_validation: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    trial: int | None = None
    device: str = "cpu"
    timeout: float | None = None

    @property
    def method_name(self) -> str:
        """As the report calls it."""
        return name_of(self.method)

    @property
    def key(self) -> Key:
        """That of its record."""
        return Key(self.task.name, self.method_name, self.seed, self.config_hash)

    def steps(self) -> int:
        """Optimizer steps, for the progress bar."""
        task = make_task(self.task)
        budget = self.budget if self.budget.epochs is None else self.budget.resolved(len(task.load().train))
        return budget.steps * (len(task.tasks) if self.method is None else 1)


def name_of(method: MethodEntry | None) -> str:
    """As the report calls it; None is the single-task baseline."""
    return SINGLE_TASK if method is None else method.name


def make_task(entry: TaskEntry) -> BenchmarkTask:
    """The benchmark task of a suite entry."""
    task = mtlcore.create("task", entry.name, **entry.options)
    if not isinstance(task, BenchmarkTask):
        raise PluginError(
            f"task {entry.name!r} is a {type(task).__qualname__}, not an mtlbench.tasks.base.BenchmarkTask."
        )
    return task


def do_job(job: Job, progress: Callable[[int], None] = lambda step: None) -> Record:
    """Train and measure; an error becomes a record with status "failed"."""
    with one_thread():
        try:
            with deadline.within(job.timeout, in_worker=workers.is_worker()):
                return _measured(job, progress)
        except deadline.Overtime:
            return failed(job, f"stopped: it took longer than the {job.timeout:g} s that --timeout allows")
        except BaseException as error:  # whatever a plugin raises ends its run, not ours
            why = blame(error)
            return failed(job, why, plain("".join(traceback.format_exception(error, limit=-6)), 20_000))


def _measured(job: Job, progress: Callable[[int], None]) -> Record:
    task, trial = make_task(job.task), job.trial is not None
    job = dataclasses.replace(job, budget=job.budget.resolved(len(task.load().train)))
    how: dict[str, Any] = {"trial": trial, "device": job.device}
    if job.method is None:
        outcome = protocol.train_single_tasks(job.task.name, task, job.seed, job.budget, progress, **how)
    else:
        against = job.baseline_validation
        outcome = protocol.train(job.task.name, task, job.method, job.seed, job.budget, against, progress, **how)
    found = dataclasses.asdict(outcome)
    if trial:
        found["metrics"] = None
    else:
        baseline = outcome.metrics if job.method is None else job.baseline
        found["delta_m"] = protocol.delta_m(outcome.metrics, baseline, task.metrics)
    return _record(job, {"status": "ok", **found})


def failed(job: Job, error: str, traceback: str | None = None) -> Record:
    """The record of a run that ended in this error."""
    return _record(job, {"status": "failed", "error": error, "traceback": traceback})


def _record(job: Job, found: dict[str, Any]) -> Record:
    """What is known before the run, and what it found."""
    method = None if job.method is None else job.method.model_dump(exclude=NOT_TRAINED_WITH)
    known = {
        "suite": job.suite,
        "task": job.task.name,
        "method": job.method_name,
        "seed": job.seed,
        "metrics": None,
        "delta_m": None,
        "seconds_per_step": None,
        "peak_memory_mb": None,
        "environment": environment() | _used(job) | _others(job),
        "config_hash": job.config_hash,
        "hyperparameters": {
            "budget": dataclasses.asdict(job.budget),
            "task_options": job.task.options,
            "method": method,
        },
        "certificate": job.certificate,
        "finished_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    } | ({} if job.trial is None else {"trial": job.trial})
    return Record.model_validate(records.plain(known | found))


@functools.cache
def environment() -> dict[str, Any]:
    """What a number may depend on besides the code."""
    return {
        "mtlcore": mtlcore.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads_per_run": 1,
        "commit": commit(),
    }


def _used(job: Job) -> dict[str, Any]:
    device = Device(job.device)
    exact = "bit for bit" if device.is_cpu else "where torch can; it warns where it cannot"
    return {"device": device.label(), "dtype": job.budget.precision, "repeatable": exact}


def commit() -> str | None:
    """The git commit of the code, where it runs from a checkout; "+" where files have changed since."""
    root = Path(mtlcore.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        said = [
            subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, timeout=10, check=True)
            for command in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return said[0].stdout.strip() + ("+" if said[1].stdout.strip() else "")


def _others(job: Job) -> dict[str, str]:
    """Versions of the third parties' distributions that a run uses: their code is not in the configuration's hash."""
    used = [("task", job.task.name), *((kind, name) for kind, name, _ in (job.method.plugins() if job.method else ()))]
    entries = [registry().find(kind, name) for kind, name in used]
    return {e.distribution: e.version or "?" for e in entries if e.distribution != BUILT_IN}


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch uses one thread: runs do not disturb one another's timing more than needed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
