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
    quantile = _range_quantile(methods) / math.sqrt(2)
    return quantile * math.sqrt(methods * (methods + 1) / (6 * tasks))


def _range_quantile(count: int) -> float:
    """What the range of so many independent standard normal numbers stays below in 95 % of all draws.

    Its distribution is n times the integral over z of phi(z) (Phi(z) - Phi(z - q))^(n-1); scipy's studentized_range has
    it, too, and needs a second and 50 MB for it.
    """
    from scipy.optimize import brentq
    from scipy.special import ndtr

    z = np.linspace(-9.0, 9.0, 4001)
    density = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    step = float(z[1] - z[0])

    def missing(q: float) -> float:
        within = (ndtr(z) - ndtr(z - q)) ** (count - 1)
        return count * step * float(density @ within) - stats.LEVEL

    return float(brentq(missing, 1e-6, 40.0, xtol=1e-12))


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
