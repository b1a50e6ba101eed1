"""Indicators of the fronts that methods trace together, seed by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from mtlbench import pareto
from mtlbench import statistics as stats
from mtlbench.protocol import delta_m
from mtlbench.report.model import BestPoint, Front, MetricFacts
from mtlbench.suite import SINGLE_TASK
from mtlbench.tasks.declaration import Metric


def of_task(
    metrics: pd.DataFrame, runs: pd.DataFrame, fronts: Mapping[str, str], declared: Sequence[MetricFacts]
) -> list[Front]:
    """Hypervolume and spread in %, of each front of which two methods or more have runs.

    Args:
        metrics: one row a run, one column a metric, with the index of ``runs``.
        fronts: {method: name of its front}.
    """
    if any(m.higher_is_better is None for m in declared):
        return []
    points = _points(metrics, runs, declared)
    members: dict[str, list[str]] = {}
    for m in dict.fromkeys(runs["method"]):
        if fronts.get(m):
            members.setdefault(fronts[m], []).append(m)
    return [_front(name, names, points) for name, names in members.items() if len(names) > 1]


Points = dict[tuple[str, int], list[float] | None]
"""(method, seed) -> relative worsening of each sub-task; None where one does not exist."""


def _points(metrics: pd.DataFrame, runs: pd.DataFrame, declared: Sequence[MetricFacts]) -> Points:
    own = [Metric(m.task, m.name, bool(m.higher_is_better)) for m in declared if m.judged]
    by_task = [tuple(m for m in own if m.task == t) for t in dict.fromkeys(m.task for m in own)]
    rows = dict(zip(zip(runs["method"], runs["seed"]), metrics.to_dict("records")))
    found: Points = {}
    for (method, seed), values in rows.items():
        baseline = rows.get((SINGLE_TASK, seed))
        if baseline is not None:
            changes = [delta_m(values, baseline, metrics_of) for metrics_of in by_task]
            whole = [c / 100.0 for c in changes if c is not None]
            found[method, seed] = whole if len(whole) == len(changes) else None
    return found


def _front(name: str, names: list[str], points: Points) -> Front:
    seeds = sorted({seed for _, seed in points})
    by_seed = [[points.get((m, seed)) for m in names] for seed in seeds]
    whole = [np.array(p) for p in by_seed if None not in p]
    alone = {m: [100 * pareto.hypervolume(p[[i]]) for p in whole] for i, m in enumerate(names)}
    best = max(names, key=lambda m: sum(alone[m]))
    left = [len(pareto.nondominated(p)) for p in whole]
    return Front(
        name=name,
        methods=names,
        hypervolume=stats.interval([[100 * pareto.hypervolume(p) for p in whole]]),
        best=BestPoint(best, stats.interval([alone[best]])),
        spread=stats.interval([[100 * pareto.spread(p) for p in whole]]),
        not_dominated=float(np.mean(left)) if left else None,
    )
