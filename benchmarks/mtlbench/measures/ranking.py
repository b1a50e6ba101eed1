"""Does what was measured during training order the methods as their results do?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from scipy import stats

from mtlcore.errors import ConfigurationError

LEAST = 3
"""Methods without which there is nothing to order."""


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The similarity of two orders in [-1, 1], and how probable one as far from 0 is if they have nothing in common.

    Both are None where all values of one side are equal, or where there are fewer than ``LEAST`` pairs.
    """

    similarity: float | None
    p: float | None


def ranking_similarity(first: Sequence[float], second: Sequence[float], coefficient: str = "kendall") -> Ranking:
    """1 for the same order, -1 for the opposite one.

    Mao et al. 2024 use a ranking similarity to test whether an identifier of trouble is faithful [paper, abstract]. Its
    formula could not be read; this one is Kendall's tau-b, or Spearman's rank correlation. [choice] Equal values are
    ties.

    Args:
        first, second: one number per method, in the same order of methods; infinity is larger than all others.
        coefficient: "kendall" or "spearman".

    Raises:
        ConfigurationError: lengths that differ, NaN, or another coefficient.
    """
    if len(first) != len(second) or any(math.isnan(v) for v in (*first, *second)):
        raise ConfigurationError(
            f"ranking similarity needs two numbers per method and no NaN; got {len(first)} and {len(second)}."
        )
    if coefficient not in ("kendall", "spearman"):
        raise ConfigurationError(f"coefficient is {coefficient!r}; it must be 'kendall' or 'spearman'.")
    if len(first) < LEAST or min(len(set(first)), len(set(second))) < 2:
        return Ranking(None, None)
    found = (stats.kendalltau if coefficient == "kendall" else stats.spearmanr)(
        stats.rankdata(first), stats.rankdata(second)
    )
    return Ranking(float(found.statistic), float(found.pvalue))
