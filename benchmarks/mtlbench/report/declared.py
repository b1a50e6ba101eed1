"""Title and metrics of a task, as it declares them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from mtlbench.report.model import MetricFacts
from mtlbench.suite import Suite, TaskEntry
from mtlcore.errors import MtlError
from mtlcore.hosting import registry


@dataclasses.dataclass(frozen=True)
class Declared:
    """What the report shows of a task besides its runs."""

    title: str
    about: str
    metrics: list[MetricFacts]


def declared(name: str, keys: Sequence[str], suite: Suite | None) -> Declared:
    """What the task says; from the keys of the records' metrics alone if it is no longer installed."""
    entries = suite.tasks if suite else ()
    entry = next((t for t in entries if t.name == name), TaskEntry(name=name))
    try:
        registry().find("task", name)  # before torch is imported, which making it needs
        from mtlbench.jobs import make_task

        task = make_task(entry)
        return Declared(task.title, task.about, [MetricFacts(**dataclasses.asdict(m), key=m.key) for m in task.metrics])
    except MtlError:
        note = "This task is not installed here: directions and units of its metrics are unknown."
        metrics = [MetricFacts(*k.partition("/")[::2], higher_is_better=None, unit="", key=k) for k in keys]
        return Declared(name, note, metrics)
