"""Teleports of one method, summed up over its runs."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence

from mtlbench.formats import Teleports
from mtlbench.report.model import Moves


def moves(found: Sequence[Teleports]) -> Moves | None:
    """Sums and means over runs; None if no run says anything."""
    if not found:
        return None
    reasons: Counter[str] = Counter()
    for one in found:
        for reason, count in (one.refused_because or {}).items():
            reasons[_without_numbers(reason)] += count
    looked = [f.detector_looked for f in found]
    largest = [f.largest_relative_loss_change for f in found if f.largest_relative_loss_change is not None]
    return Moves(
        runs=len(found),
        detector_fired=sum(f.detector_fired for f in found),
        tried=sum(f.tried for f in found),
        accepted=sum(f.accepted for f in found),
        # Records of an earlier version do not say how often the detector looked.
        detector_looked=None if None in looked else sum(n for n in looked if n is not None),
        conflict_before=_mean(f.conflict_before for f in found),
        conflict_after=_mean(f.conflict_after for f in found),
        share_of_time=_mean(f.share_of_time for f in found),
        largest_relative_loss_change=max(largest) if largest else None,
        refused_because=dict(reasons.most_common()),
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.fmean(known) if known else None


def _without_numbers(reason: str) -> str:
    """The last thing that was tried, without its numbers, so that like reasons can be counted together."""
    last = re.sub(r"^at scale \S+ ", "", reason.rsplit("; ", 1)[-1])
    return re.sub(r"(?<![\w.])[-+]?\d+(\.\d+)?(e[-+]?\d+)?(?![\w])", "…", last)
