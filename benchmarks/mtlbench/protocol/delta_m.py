"""Delta-m, the one number that a run is judged by."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping

from mtlbench.tasks.declaration import Metric


def delta_m(
    metrics: Mapping[str, float | None], baseline: Mapping[str, float | None], declared: tuple[Metric, ...]
) -> float | None:
    """Mean relative worsening against the baseline in percent; lower is better, negative means "better than".

    [paper] (100 / K) sum_k (-1)^{s_k} (M_k - B_k) / B_k over the K *metrics* that are judged, s_k = 1 where higher is
    better: the convention of CAGrad, Nash-MTL and FAMO. None if no metric is judged, a baseline value is 0, or a value
    is missing or not finite: then no relative change exists.
    """
    changes = []
    for metric in (m for m in declared if m.judged):
        ours, base = metrics.get(metric.key), baseline.get(metric.key)
        if ours is None or base is None or base == 0 or not math.isfinite(ours) or not math.isfinite(base):
            return None
        changes.append((base - ours if metric.higher_is_better else ours - base) / abs(base))
    return 100.0 * statistics.fmean(changes) if changes else None
