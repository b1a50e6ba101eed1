"""Compact raw records: all that a later run needs to go on from and that the numbers of a report are made of.

A folder of compact records is a results folder like any other: `mtl bench report` reads it, and `mtl bench run` goes on
from a copy of it. What is left out: curves, diagnostics, counterexamples, what failed runs said, and the environment
where it is that of the line before. Numbers keep seven digits.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mtlbench import records
from mtlbench.formats import Manifest, Record
from mtlbench.suite import SINGLE_TASK
from mtlcore.errors import ConfigurationError

_DIGITS = 7
_TRIAL = ("task", "method", "seed", "status", "trial", "config_hash", "validation", "seconds", "hyperparameters")
_RUN = (
    "suite", "task", "method", "seed", "status", "config_hash", "metrics", "delta_m", "selected_step",
    "hyperparameters", "seconds_per_step", "ratio_to_sum", "seconds", "peak_memory_mb", "device_memory_mb", "conflict",
    "gradient_source", "certificate", "environment",
)  # fmt: skip
_BASELINE = (*_RUN, "validation", "splits")
"""Methods are selected and scored against its validation and test metrics."""
_BUDGET = ("steps", "batch_size", "learning_rate", "precision", "selection", "optimizer", "schedule")
_METHOD = ("aggregator", "options", "detector", "detector_options", "teleport", "teleport_options", "brakes")


def compact(folder: Path, out: Path) -> list[Path]:
    """Write the compact form of a results folder into another one, and say which files that are.

    Raises:
        ConfigurationError: there are no finished runs in ``folder``, it is ``out`` itself, or a file cannot be written.
    """
    if folder.resolve() == out.resolve():
        raise ConfigurationError(f"{str(out)!r} holds the records themselves: give another folder with --out.")
    manifest = records.manifest(folder / records.MANIFEST)
    current = {h for hashes in manifest.current.values() for h in hashes}
    runs = [r for r in records.finished(folder / records.RECORDS).values() if r.config_hash in current]
    if not runs:
        raise ConfigurationError(f"there are no finished runs of the suite in {str(folder)!r}; nothing is written.")
    trials = records.finished(folder / records.TRIALS).values()
    with records.writing(out):
        out.mkdir(parents=True, exist_ok=True)
    written = [out / name for name in (records.MANIFEST, records.CERTIFICATES, records.RECORDS, records.TRIALS)]
    certificates = records.certificates(folder / records.CERTIFICATES)
    _write(written[0], [_indented(manifest.model_dump(mode="json"))])
    _write(written[1], [_indented({key: _certificate(c) for key, c in certificates.items()})])
    _write(written[2], _lines(_in_order(runs, manifest)))
    _write(written[3], _lines(_in_order(trials, manifest)))
    return written


def _write(path: Path, lines: Iterable[str]) -> None:
    with records.writing(path):
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="backslashreplace")


def _indented(content: Any) -> str:
    return json.dumps(records.plain(content), indent=1)


def _in_order(found: Iterable[Record], manifest: Manifest) -> list[Record]:
    """As the suite lists them, so that a later version of the file differs from an earlier one by its new lines."""
    suite = manifest.suite
    tasks = [t.name for t in suite.tasks] if suite else []
    methods = [SINGLE_TASK, *(m.name for m in suite.methods)] if suite else []

    def place(record: Record) -> tuple[Any, ...]:
        listed = (tasks, record.task), (methods, record.method)
        where = [names.index(n) if n in names else len(names) for names, n in listed]
        return (*where, record.task, record.method, record.seed, record.trial or 0, record.config_hash)

    return sorted(found, key=place)


def _lines(found: Iterable[Record]) -> Iterator[str]:
    before: dict[str, Any] = {}
    for record in found:
        line = _small(record)
        environment = line.pop("environment", None)
        if environment is not None and environment != before:
            line["environment"] = before = environment
        yield json.dumps(line, separators=(",", ":"))


def _small(record: Record) -> dict[str, Any]:
    """What is kept of a record, without what is null."""
    kept = _TRIAL if record.trial is not None else _BASELINE if record.method == SINGLE_TASK else _RUN
    content = records.plain(record.model_dump(mode="json", include=set(kept)))
    content = {name: content[name] for name in kept if content.get(name) is not None}
    used = record.hyperparameters
    if used is not None:
        parts = {"budget": (used.budget, _BUDGET), "method": (used.method, _METHOD)}
        content["hyperparameters"] = {
            name: {k: v for k, v in part.model_dump(mode="json").items() if k in wanted and v not in (None, {})}
            for name, (part, wanted) in parts.items()
            if part is not None
        } | ({"task_options": used.task_options} if used.task_options else {})
    if record.teleports is not None:
        content["teleports"] = records.plain(record.teleports.model_dump(mode="json", exclude={"steps"}))
    rounded: dict[str, Any] = _rounded(content)
    return rounded


def _certificate(certificate: Any) -> dict[str, Any]:
    content: dict[str, Any] = certificate.model_dump(mode="json")
    content["rows"] = [row for row in content["rows"] if row["claimed"]]
    rounded: dict[str, Any] = _rounded(content)
    return rounded


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list) else value
