"""Methods against one another on one task: delta-m and every metric, paired by seed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from mtlbench import statistics as stats
from mtlbench.report.model import MethodRow, MetricFacts, Score, Teleporting, Versus, shallow
from mtlbench.suite import SINGLE_TASK


def deltas(runs: pd.DataFrame) -> pd.DataFrame:
    """Delta-m of the trained methods: one row a seed, one column a method, NaN where there is none."""
    trained = runs[runs["method"] != SINGLE_TASK]
    found: pd.DataFrame = trained.pivot(index="seed", columns="method", values="delta_m")
    return found[list(dict.fromkeys(trained["method"]))]


def score(column: pd.Series) -> Score:
    """Delta-m of one method with its interval."""
    values = column.dropna()
    found = stats.interval([values.tolist()])
    middle = stats.interquartile_mean(values.tolist()) if len(values) else None
    per_seed = {int(s): float(v) for s, v in zip(values.index.tolist(), values.tolist())}
    return Score(**shallow(found), values=per_seed, interquartile_mean=middle)


def against_zero(table: pd.DataFrame) -> dict[str, stats.Comparison]:
    """Every column against zero, which is what the single-task networks have."""
    return stats.corrected({str(m): stats.paired([table[m].dropna().tolist()]) for m in table.columns})


def against(table: pd.DataFrame, reference: str) -> dict[str, stats.Comparison]:
    """Every other column against the one of the reference, paired by seed; empty where that is not there."""
    if reference not in table.columns:
        return {}
    differences = table.drop(columns=reference).sub(table[reference], axis=0)
    return against_zero(differences)


def versus(table: pd.DataFrame, reference: str) -> dict[str, Versus]:
    """:func:`against`, with the probability of improvement."""
    return {
        m: Versus(
            **shallow(c),
            probability_of_improvement=stats.probability_of_improvement(
                [table[m].dropna().tolist()], [table[reference].dropna().tolist()]
            ),
        )
        for m, c in against(table, reference).items()
    }


def by_metric(
    metrics: pd.DataFrame, runs: pd.DataFrame, declared: Sequence[MetricFacts], reference: str
) -> dict[str, dict[str, stats.Comparison]]:
    """{method: {metric: comparison with the reference}}, relative to the reference's mean in percent, lower is better.

    Corrected within each metric. A metric whose direction is unknown, or whose mean is zero, is left out.
    """
    found: dict[str, dict[str, stats.Comparison]] = {}
    for facts in declared:
        if facts.key not in metrics or facts.higher_is_better is None:
            continue
        values = metrics[facts.key].where(runs["method"] != SINGLE_TASK)
        table = runs.assign(value=values).pivot(index="seed", columns="method", values="value")
        if reference not in table.columns or not np.isfinite(base := table[reference].mean()) or base == 0:
            continue
        sign = -100.0 if facts.higher_is_better else 100.0
        trained = [m for m in table.columns if m != SINGLE_TASK]
        for m, c in against(table[trained] * (sign / abs(base)), reference).items():
            found.setdefault(m, {})[facts.key] = c
    return found


def with_and_without(
    rows: Sequence[MethodRow], table: pd.DataFrame, settings: Mapping[str, Mapping[str, object]]
) -> list[Teleporting]:
    """Each method that teleports, against the same aggregator without teleports, paired by seed.

    Args:
        settings: the suite's options of each method. Those in a record were chosen by tuning, for each method alone.
    """
    named = {m.name: m for m in rows if m.delta_m is not None}

    def setting(m: MethodRow) -> tuple[str | None, str, bool]:
        used = m.hyperparameters.method
        options = settings.get(m.name, used.options if used else None)
        marks = json.dumps(options, sort_keys=True, default=str)
        return used.aggregator if used else None, marks, bool(used and used.teleport)

    bases = {setting(m): m.name for m in named.values()}
    couples = {
        m.name: bases[(*s[:2], False)] for m in named.values() if (s := setting(m))[2] and (*s[:2], False) in bases
    }
    compared = against_zero(pd.DataFrame({m: table[m] - table[base] for m, base in couples.items()}))
    return [_couple(named[m], named[base], compared[m]) for m, base in couples.items()]


def _couple(moving: MethodRow, base: MethodRow, compared: stats.Comparison) -> Teleporting:
    ratios = moving.ratio_to_sum, base.ratio_to_sum
    return Teleporting(
        **shallow(compared),
        name=moving.name,
        without=base.name,
        extra_time=ratios[0] / ratios[1] - 1 if ratios[0] and ratios[1] else None,
        min_cosine_with=moving.conflict.get("min_cosine"),
        min_cosine_without=base.conflict.get("min_cosine"),
    )
