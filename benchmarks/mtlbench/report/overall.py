"""All tasks of a folder together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from mtlbench import statistics as stats
from mtlbench.report.model import MethodRow, Overall, OverallRow, TaskReport

_POINTS = 61


def overall(tasks: Sequence[TaskReport], order: Sequence[str], reference: str) -> Overall | None:
    """Means over tasks of the methods that have a delta-m on every task; None for a single task."""
    if len(tasks) < 2:
        return None
    tables = [{m.name: m for m in t.scored() if m.delta_m is not None and m.delta_m.values} for t in tasks]
    common = [m for m in order if all(m in table for table in tables)]
    values = {m: [_values(table[m]) for table in tables] for m in common}
    grid = _grid([v for m in common for stratum in values[m] for v in stratum])
    versus = _versus(tables, common, reference)
    ranks = mean_ranks(tables, common)
    rows = [
        OverallRow(
            name=m,
            n=sum(map(len, values[m])),
            delta_m=stats.interval(values[m]),
            interquartile_mean=stats.stratified_bootstrap(values[m], trimmed=True),
            versus_reference=versus.get(m),
            probability_of_improvement=(
                stats.probability_of_improvement(values[m], values[reference]) if m in versus else None
            ),
            mean_rank=ranks[m],
            profile=stats.performance_profile([v for stratum in values[m] for v in stratum], grid),
        )
        for m in common
    ]
    return Overall(len(tasks), grid, rows, critical_difference(len(common), len(tasks)))


def critical_difference(methods: int, tasks: int) -> float | None:
    """How far two mean ranks over ``tasks`` must be apart to differ at 5 % [paper: Demsar 2006, Nemenyi's test].

    None with fewer than two methods. With a handful of tasks it is wide: ranks over few tasks say little.
    """
    if methods < 2:
        return None
    from scipy.stats import studentized_range  # 0.6 s to import: a report of one task needs none of it

    quantile = float(studentized_range.ppf(stats.LEVEL, methods, math.inf)) / math.sqrt(2)
    return quantile * math.sqrt(methods * (methods + 1) / (6 * tasks))


def _values(row: MethodRow) -> list[float]:
    return list(row.delta_m.values.values()) if row.delta_m is not None else []


def _grid(pooled: Sequence[float]) -> list[float]:
    low, high = (min(pooled), max(pooled)) if pooled else (0.0, 1.0)
    return [float(v) for v in np.linspace(low, high, _POINTS)]


def _versus(
    tables: Sequence[dict[str, MethodRow]], common: Sequence[str], reference: str
) -> dict[str, stats.Comparison]:
    if reference not in common:
        return {}
    strata: dict[str, list[list[float]]] = {m: [] for m in common if m != reference}
    for table in tables:
        base = table[reference].delta_m
        for m, differences in strata.items():
            ours = table[m].delta_m
            assert base is not None
            assert ours is not None
            differences.append([v - base.values[s] for s, v in ours.values.items() if s in base.values])
    return stats.corrected({m: stats.paired(differences) for m, differences in strata.items()})


def mean_ranks(tables: Sequence[dict[str, MethodRow]], methods: Sequence[str]) -> dict[str, float]:
    """Mean rank by delta-m over tasks, equal ones sharing theirs; only meaningful within this set of methods."""
    estimates = [[m.delta_m.estimate for m in map(table.__getitem__, methods) if m.delta_m] for table in tables]
    ranks = np.array([pd.Series(row, dtype=float).rank() for row in estimates])
    return {m: float(ranks[:, i].mean()) for i, m in enumerate(methods)}
