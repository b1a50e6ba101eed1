"""The records of a folder as one pandas table, one row a run. Curves stay in the file until somebody draws them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mtlbench import records as raw
from mtlbench.formats import Hyperparameters, Manifest, Record

NUMBERS = (
    "delta_m", "seconds_per_step", "ratio_to_sum", "peak_memory_mb", "memory_above_start_mb", "device_memory_mb",
)  # fmt: skip


class Packed(NamedTuple):
    """A mapping of names to numbers in a tenth of its memory: equal names are shared between rows."""

    names: tuple[str, ...]
    values: np.ndarray


@dataclasses.dataclass(frozen=True)
class Table:
    """The runs that a report shows, and how many it does not.

    ``runs`` has the columns of :data:`NUMBERS` as floats (NaN where missing), ``task``, ``method``, ``seed``,
    ``config_hash``, ``ok``, ``error``, ``suite``, the :class:`Packed` columns ``metrics``, ``conflict`` and
    ``diagnostics``, the shared objects ``hyperparameters``, ``environment``, ``certificate``, ``splits``,
    ``teleports``, ``gradient_source``, and ``offset``, the place in the file.
    """

    runs: pd.DataFrame
    unreadable: list[str]
    outdated: int

    @property
    def ok(self) -> pd.DataFrame:
        """The finished runs."""
        return self.runs[self.runs["ok"].astype(bool)]


def table(folder: Path, manifest: Manifest) -> Table:
    """Read the records of a folder."""
    rows, unreadable, shared = [], [], _Shared()
    for line in raw.scan(folder / raw.RECORDS):
        if line.record is None:
            unreadable.append(line.problem)
        else:
            rows.append(_row(line.record, line.offset, shared))
    everything = pd.DataFrame(rows, columns=_COLUMNS).astype(dict.fromkeys(NUMBERS, "float64"))
    everything = _latest(everything)
    current = {h for hashes in manifest.current.values() for h in hashes}
    # Where suite.json does not say which configuration is meant, it is the last one.
    meant = everything["config_hash"].isin(current) if current else pd.Series(True, index=everything.index)
    shown = everything[meant].drop_duplicates(["task", "method", "seed"], keep="last")
    return Table(shown.reset_index(drop=True), unreadable, len(everything) - len(shown))


_COLUMNS = [
    "task", "method", "seed", "config_hash", "ok", "error", "suite", *NUMBERS, "metrics", "conflict", "diagnostics",
    "hyperparameters", "environment", "certificate", "splits", "teleports", "gradient_source", "offset",
]  # fmt: skip


def _latest(everything: pd.DataFrame) -> pd.DataFrame:
    """One row per run and configuration: the last successful one if there is one, else the last failure."""
    order = everything.sort_values("ok", kind="stable")
    kept = order.drop_duplicates(["task", "method", "seed", "config_hash"], keep="last")
    return kept.sort_index()


class _Shared:
    """Equal objects become one."""

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}

    def __call__(self, mark: Any, thing: Any) -> Any:
        return self._known.setdefault(mark, thing)

    def packed(self, numbers: Mapping[str, float | None] | None) -> Packed:
        names = tuple(numbers or ())
        given = (numbers or {}).values()
        return Packed(self(names, names), np.array([*given], dtype=float))  # None is NaN

    def model(self, kind: str, thing: Any) -> Any:
        return None if thing is None else self((kind, thing.model_dump_json()), thing)

    def plain(self, kind: str, thing: Any) -> Any:
        return None if thing is None else self((kind, repr(thing)), thing)


def _row(record: Record, offset: int, shared: _Shared) -> tuple[Any, ...]:
    return (
        shared(record.task, record.task),
        shared(record.method, record.method),
        record.seed,
        shared(record.config_hash, record.config_hash),
        record.ok,
        record.error,
        shared(record.suite, record.suite),
        *(_finite(getattr(record, name)) for name in NUMBERS),
        shared.packed(record.metrics),
        shared.packed(record.conflict),
        shared.packed(record.diagnostics),
        shared((*record.key[:2], record.config_hash), record.hyperparameters)
        if record.config_hash and record.hyperparameters  # equal by what the hash means
        else shared.model("hyperparameters", record.hyperparameters or Hyperparameters()),
        shared.plain("environment", record.environment or {}),
        shared.model("certificate", record.certificate),
        shared.plain("splits", record.splits),
        record.teleports,
        shared(record.gradient_source, record.gradient_source),
        offset,
    )


def _finite(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else math.nan


def unpacked(column: pd.Series) -> pd.DataFrame:
    """A :class:`Packed` column as a table with one column a name, in the order in which the names first come."""
    groups: dict[tuple[str, ...], list[Any]] = {}
    for index, packed in column.items():
        groups.setdefault(packed.names, []).append((index, packed.values))
    if not groups:
        return pd.DataFrame(index=column.index)
    parts = [
        pd.DataFrame(np.stack([v for _, v in rows]), index=[i for i, _ in rows], columns=list(names), dtype=float)
        for names, rows in groups.items()
    ]
    names = list(dict.fromkeys(n for part in parts for n in part.columns))
    whole = pd.concat([p.reindex(columns=names) for p in parts]).reindex(column.index)
    return whole.where(np.isfinite(whole))


def means(column: pd.Series) -> dict[str, float | None]:
    """Mean of each name of a :class:`Packed` column; None where no run has a number."""
    rows = list(column)
    if rows and all(r.names == rows[0].names for r in rows):
        values = np.stack([r.values for r in rows])
        known = np.isfinite(values)
        counts = known.sum(axis=0)
        sums = np.where(known, values, 0.0).sum(axis=0)
        return {name: number(s / n) if n else None for name, s, n in zip(rows[0].names, sums, counts)}
    return {str(name): number(value) for name, value in unpacked(column).mean().items()}


def number(value: float) -> float | None:
    """A number of a table as a report has it."""
    return float(value) if np.isfinite(value) else None


def numbers(values: Sequence[float]) -> list[float | None]:
    """The same for many."""
    return [number(v) for v in values]
