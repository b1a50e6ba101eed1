"""Whether two things are shown to be the same, or one not worse, and not merely not shown to differ."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

MARGIN = 0.5
"""Percent: differences within it are none that anybody would pay for. [choice]"""


def equivalence(differences: Sequence[float], margin: float = MARGIN) -> float | None:
    """p of "the mean difference is beyond the margin": two one-sided t-tests [Schuirmann 1987]. Small: it is within.

    Args:
        differences: (n,) one for each pair; fewer than two give None.
        margin: in the units of the differences.
    """
    above, below = not_worse(differences, margin), not_worse([-d for d in differences], margin)
    return None if above is None or below is None else max(above, below)


def not_worse(differences: Sequence[float], margin: float = MARGIN) -> float | None:
    """p of "the mean difference is above the margin", where higher is worse: the half of :func:`equivalence` that asks
    for harm, a one-sided t-test. Small: it is not worse by the margin, and may be better by any amount."""
    values = np.asarray(differences, dtype=float)
    if len(values) < 2:
        return None
    error = float(values.std(ddof=1)) / len(values) ** 0.5
    mean = float(values.mean())
    if error <= 1e-12:
        return 0.0 if mean < margin else 1.0
    return float(stats.t.cdf((mean - margin) / error, len(values) - 1))
