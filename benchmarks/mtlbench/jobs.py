"""One run of a suite, complete in itself: what it is, and doing it, in any process."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import os
import platform
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import mtlcore
from mtlbench import protocol
from mtlbench.suite import SINGLE_TASK, MethodEntry, TaskEntry
from mtlbench.tasks.base import BenchmarkTask, Budget
from mtlcore.discovery import BUILT_IN
from mtlcore.errors import PluginError
from mtlcore.patience import allowed, limited
from mtlcore.registry import registry
from mtlcore.safety import blame, plain


@dataclasses.dataclass(frozen=True)
class Job:
    """One run, complete in itself, so that any process on any machine can do it."""

    suite: str
    task: TaskEntry
    method: MethodEntry | None
    seed: int
    budget: Budget
    config_hash: str
    certificate: dict[str, Any] | None = None
    baseline: dict[str, float] = dataclasses.field(default_factory=dict)
    baseline_validation: dict[str, float] = dataclasses.field(default_factory=dict)
    trial: int | None = None

    @property
    def method_name(self) -> str:
        """As the report calls it."""
        return name_of(self.method)

    @property
    def key(self) -> tuple[str, str, int, str]:
        """As :func:`mtlbench.records.key`."""
        return (self.task.name, self.method_name, self.seed, self.config_hash)

    def steps(self) -> int:
        """Optimizer steps, for the progress bar."""
        networks = len(make_task(self.task).tasks) if self.method is None else 1
        return self.budget.steps * networks


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


def do_job(job: Job, progress: Callable[[int], None] = lambda step: None) -> dict[str, Any]:
    """Train and measure; an error becomes a record with status "failed"."""
    record = record_of(job)
    trial = job.trial is not None
    with one_thread():
        try:
            with limited(allowed()):
                task = make_task(job.task)
                if job.method is None:
                    outcome = protocol.train_single_tasks(
                        job.task.name, task, job.seed, job.budget, progress, trial=trial
                    )
                else:
                    outcome = protocol.train(
                        job.task.name, task, job.method, job.seed, job.budget, job.baseline_validation, progress,
                        trial=trial,
                    )  # fmt: skip
            record |= dataclasses.asdict(outcome)
            if trial:
                record["metrics"] = None
            else:
                baseline = outcome.metrics if job.method is None else job.baseline
                record["delta_m"] = protocol.delta_m(outcome.metrics, baseline, task.metrics)
        except BaseException as error:  # whatever a plugin raises ends its run, not ours
            why = blame(error)
            record["traceback"] = plain("".join(traceback.format_exception(error, limit=-6)), 20_000)
            return failed(record, why)
    return record | _finished_now()


def failed(record: dict[str, Any], error: str) -> dict[str, Any]:
    """The record of a run that ended in this error."""
    return record | {"status": "failed", "error": error} | _finished_now()


def _finished_now() -> dict[str, str]:
    return {"finished_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")}


def record_of(job: Job) -> dict[str, Any]:
    """A record as far as it is known before the run."""
    return {
        "suite": job.suite,
        "task": job.task.name,
        "method": job.method_name,
        "seed": job.seed,
        "status": "ok",
        "metrics": None,
        "delta_m": None,
        "seconds_per_step": None,
        "peak_memory_mb": None,
        "environment": environment() | _others(job),
        "config_hash": job.config_hash,
        "hyperparameters": {
            "budget": dataclasses.asdict(job.budget),
            "task_options": job.task.options,
            "method": None if job.method is None else job.method.model_dump(exclude={"search", "optional", "front"}),
        },
        "certificate": job.certificate,
    } | ({} if job.trial is None else {"trial": job.trial})


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
        "device": "cpu",
        "dtype": "float32",
    }


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
