"""Whether two things are shown to be the same, and not merely not shown to differ."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

MARGIN = 0.5
"""Percent: differences within it are none that anybody would pay for. [choice]"""


def equivalence(differences: Sequence[float], margin: float = MARGIN) -> float | None:
    """p of "the mean difference is beyond the margin": two one-sided t-tests [Schuirmann 1987]. Small: it is within."""
    values = np.asarray(differences, dtype=float)
    if len(values) < 2:
        return None
    error = float(values.std(ddof=1)) / len(values) ** 0.5
    mean = float(values.mean())
    if error <= 1e-12:
        return 0.0 if abs(mean) < margin else 1.0
    freedom = len(values) - 1
    return float(max(stats.t.sf((mean + margin) / error, freedom), stats.t.cdf((mean - margin) / error, freedom)))
