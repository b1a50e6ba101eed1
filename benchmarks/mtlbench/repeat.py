"""One recorded run once more, from the folder of its suite: what a stranger does who doubts a number."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

from mtlbench import records
from mtlbench.formats import Manifest, Record
from mtlbench.jobs import Job, do_job
from mtlbench.runner import budget_of, configured
from mtlbench.suite import SINGLE_TASK, Suite, suggestion
from mtlcore.errors import ConfigurationError

_DIGITS = 1e-6
"""Compact records keep seven digits."""


@dataclasses.dataclass(frozen=True)
class Repeated:
    """A number as it was recorded, and as it came out this time."""

    name: str
    recorded: float | None
    again: float | None

    @property
    def equal(self) -> bool:
        """To the digits that are kept."""
        if self.recorded is None or self.again is None:
            return self.recorded is self.again
        return math.isclose(self.recorded, self.again, rel_tol=_DIGITS, abs_tol=1e-12)


def repeat(
    folder: Path, task: str, method: str, seed: int, progress: Callable[[int], None] = lambda step: None
) -> tuple[Record, list[Repeated]]:
    """Train one recorded run again, and hold its numbers against the recorded ones.

    Nothing is written into the folder. On another processor or version of torch the last digits may differ.

    Raises:
        ConfigurationError: there is no such run, or it failed this time; or its configuration is no longer what the
            suite, this code and the choice of tuning give.
    """
    manifest = records.manifest(folder / records.MANIFEST)
    if manifest.suite is None:
        raise ConfigurationError(f"{str(folder)!r} has no suite, so it is not known how its runs were made.")
    found = [r for r in records.finished(folder / records.RECORDS).values() if r.task == task]
    recorded = _chosen(folder, found, task, method, seed)
    job = planned(manifest, manifest.suite, recorded)
    if job.config_hash != recorded.config_hash:
        raise ConfigurationError(
            f"{method} on {task}, seed {seed}, was made with configuration {recorded.config_hash}, and the suite and "
            f"this code give {job.config_hash}: task, budget or options have changed since. The record's commit says "
            "which code made it."
        )
    if job.method is not None:
        base = _chosen(folder, found, task, SINGLE_TASK, seed)
        job = dataclasses.replace(job, baseline=base.metrics or {}, baseline_validation=base.validation or {})
    record = do_job(job, progress)
    if not record.ok:
        raise ConfigurationError(f"{method} on {task}, seed {seed}, failed this time: {record.error}")
    return record, _compared(recorded, record)


def _chosen(folder: Path, found: list[Record], task: str, method: str, seed: int) -> Record:
    """The last record of this run."""
    for what, wanted, there in (("method", method, {r.method for r in found}), ("task", task, {r.task for r in found})):
        if there and wanted not in there:
            raise ConfigurationError(
                f"no run of {what} {wanted!r} in {str(folder)!r}. {suggestion(wanted, sorted(there))}"
            )
    matching = [r for r in found if (r.method, r.seed) == (method, seed)]
    if not matching:
        seeds = ", ".join(str(s) for s in sorted({r.seed for r in found if r.method == method})) or "none"
        raise ConfigurationError(
            f"no run of {method!r} on {task!r} with seed {seed} in {str(folder)!r}. Seeds: {seeds}."
        )
    return matching[-1]


def planned(manifest: Manifest, suite: Suite, recorded: Record) -> Job:
    """As the runner would make it, with what tuning chose."""
    suite = suite.only(tasks=(recorded.task,), methods=() if recorded.method == SINGLE_TASK else (recorded.method,))
    entry = suite.tasks[0]
    method = None if recorded.method == SINGLE_TASK else suite.methods[0]
    budget = budget_of(suite, entry)
    choice = manifest.tuned.get(recorded.task, {}).get(recorded.method)
    if choice is not None:
        budget = budget.at_rate(choice.learning_rate)
        method = None if method is None else method.model_copy(update={"options": choice.options})
    return configured(suite.name, entry, method, recorded.seed, budget, ["cpu"])


def _compared(recorded: Record, again: Record) -> list[Repeated]:
    before, after = recorded.metrics or {}, again.metrics or {}
    rows = [Repeated(name, before.get(name), after.get(name)) for name in dict.fromkeys([*before, *after])]
    return [Repeated("delta-m", recorded.delta_m, again.delta_m), *rows]
