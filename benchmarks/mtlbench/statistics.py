"""What a handful of paired runs can and cannot say. Everything here works on plain numbers; lower is better.

With three seeds, resampling is of little use: a bootstrap of three values only ever recombines them (its interval
is too narrow), and a sign-flip test of three pairs cannot give a two-sided p below 2/8 = 0.25. So differences of
fewer than SMALL pairs are judged by Student's t, which assumes roughly normal differences and says so in its width
(a factor of 4.3 for n = 3 where a large sample has 1.96); from SMALL pairs on by the exact sign-flip test and
bootstrap. SMALL is where the smallest p of the exact test stays below 5 % after correction for 25 comparisons: with
eight pairs and eight comparisons no difference, however large, would be significant. Runs pooled over several tasks are
resampled within each task (stratified), as Agarwal et al. (2021) do: what differs between tasks is not noise. The plain
percentile bootstrap is too narrow for strata of a few runs (its 95 % covers 83 % with three tasks of three seeds); its
percentiles are expanded by what Student's t adds (Hesterberg 2015).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from scipy import special

SMALL = 10
"""Fewer pairs than this: Student's t. From here on: resampling."""
LEVEL = 0.95
_Name = TypeVar("_Name", bound=Hashable)
_RESAMPLES = 4000
_DRAWS = 400_000
"""With very many runs there are fewer resamples (never below 500): so many values are drawn."""
_EXACT = 14
"""Up to so many pairs all signs are tried; with more of them, so many draws:"""
_FLIPS = 20_000
_MANY = 100
"""With more runs or pairs than this the normal limit is used: it differs by less than random draws do."""


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval; ``low`` and ``high`` are None when one value cannot give an interval."""

    estimate: float
    low: float | None
    high: float | None
    n: int
    kind: str


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A paired comparison of method A with method B on a lower-is-better score.

    Args:
        difference: mean of A - B over the pairs (over tasks, if there are several), with interval; negative means that
            A is better.
        p: two-sided p-value; None with fewer than two pairs.
        p_holm: the same, corrected for all comparisons of the family (filled in by :func:`corrected`).
        test: which test gave p.
        detectable: the difference that would just have been called significant, with this spread, after the same
            correction as the p beside it; infinite where none would have been (too few pairs for an exact test).
            Student's t, in sign-flip tests as an approximation [choice].
        verdict: "better", "worse", "no significant difference" or "not enough runs".
        error: standard error of the mean difference.
        freedom: its degrees of freedom.
    """

    difference: Interval
    p: float | None
    p_holm: float | None
    test: str
    detectable: float | None
    verdict: str
    error: float | None = None
    freedom: int = 0


def t_interval(values: Sequence[float]) -> Interval:
    """Mean with Student's t interval."""
    return _student([values])


def _student(strata: Sequence[Sequence[float]]) -> Interval:
    """Mean over strata (tasks) with Student's t interval, from the spread within each of them."""
    parts = _parts(strata)
    pooled = np.concatenate([*_weighted(parts), []])
    if not _freedom(parts):
        return Interval(float(pooled.mean()) if len(pooled) else math.nan, None, None, len(pooled), "none")
    mean, half = float(pooled.mean()), _quantile(_freedom(parts)) * _standard_error(parts)
    return Interval(mean, mean - half, mean + half, len(pooled), "Student's t")


def _parts(strata: Sequence[Sequence[float]]) -> list[np.ndarray]:
    return [np.asarray(s, dtype=float) for s in strata if len(s)]


def _weighted(parts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The runs, scaled so that their mean is the mean over strata, however many runs each has: a stratum in which some
    are missing, or have diverged, counts like the others."""
    n = sum(map(len, parts))
    return [p * (n / (len(parts) * len(p))) for p in parts]


def _freedom(parts: Sequence[np.ndarray]) -> int:
    """Degrees of freedom of the spread within strata: one run of a task says nothing about it."""
    return sum(len(p) - 1 for p in parts)


def _quantile(freedom: int, level: float = 1 - LEVEL) -> float:
    """How many standard errors from zero Student's t is significant at ``level``, two-sided."""
    return -float(special.stdtrit(freedom, level / 2))


def _standard_error(parts: Sequence[np.ndarray]) -> float:
    """Of the mean over strata, if the spread is the same in each (the mean of their variances if not)."""
    squares = sum(float(((p - p.mean()) ** 2).sum()) for p in parts)
    return math.sqrt(squares / _freedom(parts) * sum(1 / len(p) for p in parts)) / len(parts)


def interquartile_mean(values: Sequence[float]) -> float:
    """Mean of the middle half: less noisy than the median, less moved by outliers than the mean.

    With fewer than four values nothing is cut off.
    """
    return float(_trimmed(np.asarray(values, dtype=float)))


def _trimmed(runs: np.ndarray) -> np.ndarray:
    cut = runs.shape[-1] // 4
    return np.asarray(np.sort(runs, axis=-1)[..., cut : runs.shape[-1] - cut].mean(axis=-1))


def _mean(runs: np.ndarray) -> np.ndarray:
    return np.asarray(runs.mean(axis=-1))


def stratified_bootstrap(strata: Sequence[Sequence[float]], trimmed: bool = False, seed: int = 0) -> Interval:
    """Percentile bootstrap of the mean over strata (tasks), or of the interquartile mean of all runs, resampled within
    each stratum.

    Resampling n runs gives a spread that is too small by sqrt((n - 1) / n), and percentiles are those of a normal
    distribution: both are made good by taking percentiles further out [paper: Hesterberg 2015, section 4.3]. With runs
    in every stratum by the dozen nothing changes.
    """
    statistic = _trimmed if trimmed else _mean
    parts = _parts(strata) if trimmed else _weighted(_parts(strata))
    pooled = np.concatenate([*parts, []])
    if not _freedom(parts):
        return Interval(float(statistic(pooled)) if len(pooled) else math.nan, None, None, len(pooled), "none")
    generator = np.random.default_rng(seed)
    resamples = max(500, min(_RESAMPLES, _DRAWS // len(pooled)))
    draws = statistic(np.concatenate([p[generator.integers(len(p), size=(resamples, len(p)))] for p in parts], axis=1))
    too_small = sum((len(p) - 1) / len(p) ** 2 for p in parts) / sum(1 / len(p) for p in parts)
    outside = float(special.ndtr(-_quantile(_freedom(parts)) / math.sqrt(too_small)))
    low, high = np.quantile(draws, [outside, 1 - outside])
    return Interval(float(statistic(pooled)), float(low), float(high), len(pooled), "stratified bootstrap")


def interval(strata: Sequence[Sequence[float]]) -> Interval:
    """The interval that the number of runs deserves: Student's t for a few, stratified bootstrap for more.

    With very many runs a mean is normal, and Student's t is right again and a hundred times faster.
    """
    runs = sum(map(len, strata))
    return stratified_bootstrap(strata) if SMALL <= runs <= _MANY else _student(strata)


def sign_flip_test(differences: Sequence[float], seed: int = 0) -> float:
    """Two-sided permutation p-value of "the differences are symmetric about 0"; exact up to 14 pairs."""
    d = np.asarray(differences, dtype=float)
    observed = abs(d.mean())
    if len(d) <= _EXACT:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(d))))
        means = np.abs(signs @ d) / len(d)
        return float(np.mean(means >= observed * (1 - 1e-12)))
    if len(d) > _MANY:  # the distribution over signs is normal then, with this variance
        return max(1 / (_FLIPS + 1), float(2 * special.ndtr(-abs(d.sum()) / math.sqrt(float((d**2).sum()) or 1.0))))
    generator = np.random.default_rng(seed)
    means = np.abs(generator.choice((-1.0, 1.0), size=(_FLIPS, len(d))) @ d) / len(d)
    return float((1 + np.sum(means >= observed * (1 - 1e-12))) / (_FLIPS + 1))


def smallest_sign_flip_p(pairs: int) -> float:
    """What the test gives at best: that of differences which all have one sign."""
    return 2.0 ** (1 - pairs) if pairs <= _EXACT else 1 / (_FLIPS + 1)


def paired(strata: Sequence[Sequence[float]]) -> Comparison:
    """Compare from the differences A - B of paired runs, one list per task. Call :func:`corrected` on the family."""
    parts = _parts(strata)
    d = np.concatenate([*_weighted(parts), []])
    difference = interval(strata)
    if not _freedom(parts):
        return Comparison(difference, None, None, "none", None, "not enough runs")
    error, freedom = _standard_error(parts), _freedom(parts)
    if len(d) < SMALL:
        test = "paired t-test"
        # Differences that are equal up to rounding have no spread: certain, one way or the other.
        if error <= 1e-12 * float(np.abs(d).max()):
            p = 1.0 if abs(d.mean()) <= 1e-12 * float(np.abs(d).max()) else 0.0
        else:
            p = 2.0 * float(special.stdtr(freedom, -abs(d.mean()) / error))
    else:
        test = "sign-flip permutation test"
        p = sign_flip_test(d.tolist())
    return _judged(Comparison(difference, p, p, test, None, "", error, freedom), 1 - LEVEL)


def corrected(family: Mapping[_Name, Comparison]) -> dict[_Name, Comparison]:
    """Holm's correction over a family of comparisons; verdicts and detectable differences follow it."""
    tested = {name: c.p for name, c in family.items() if c.p is not None}
    adjusted = dict(zip(tested, holm(list(tested.values()))))
    levels = {name: holm_level([p for other, p in tested.items() if other != name]) for name in tested}
    return {
        name: _judged(dataclasses.replace(c, p_holm=adjusted[name]), levels[name]) if name in adjusted else c
        for name, c in family.items()
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p)))))
    return [float(v) for v in adjusted]


def holm_level(others: Sequence[float]) -> float:
    """Holm rejects one more hypothesis, beside others with these p-values, if and only if its p is below this level.

    With m hypotheses in all, Holm holds the j-th smallest p against alpha / (m - j + 1) and stops at the first that
    fails. If the r smallest of the others pass and the next one does not, ours is either among the first r + 1 or comes
    too late: it is rejected below alpha / (m - r), which is Bonferroni's alpha / m where nothing else is significant.
    """
    m, alpha = len(others) + 1, 1 - LEVEL
    passed = itertools.takewhile(lambda step: step[1] * (m - step[0]) < alpha, enumerate(sorted(others)))
    return alpha / (m - len(list(passed)))


def _judged(comparison: Comparison, level: float) -> Comparison:
    assert comparison.p_holm is not None
    assert comparison.error is not None
    if comparison.p_holm >= 1 - LEVEL:
        verdict = "no significant difference"
    else:
        verdict = "better" if comparison.difference.estimate < 0 else "worse"
    n = comparison.difference.n
    out_of_reach = n >= SMALL and smallest_sign_flip_p(n) >= level
    detectable = math.inf if out_of_reach else _quantile(comparison.freedom, level) * comparison.error
    return dataclasses.replace(comparison, verdict=verdict, detectable=detectable)


def probability_of_improvement(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> float | None:
    """P(a random run of ours is better than a random run of theirs on the same task), averaged over tasks.

    Ties count half (the Mann-Whitney statistic of each task, divided by the number of pairs). None if one of the two
    has no run on some task.
    """
    per_task = []
    for a, b in zip(ours, theirs, strict=True):
        if not len(a) or not len(b):
            return None
        x, y = np.asarray(a, dtype=float)[:, None], np.asarray(b, dtype=float)[None, :]
        per_task.append(float(np.mean((x < y) + 0.5 * (x == y))))
    return float(np.mean(per_task))


def performance_profile(values: Sequence[float], thresholds: Sequence[float]) -> list[float]:
    """Share of runs with a score of at most each threshold."""
    x = np.sort(np.asarray(values, dtype=float))
    return [float(v) for v in np.searchsorted(x, np.asarray(thresholds, dtype=float), side="right") / len(x)]
