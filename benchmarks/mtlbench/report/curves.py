"""Mean curves of a method: read from the file when they are drawn, and only so many as a mean needs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mtlbench.formats import Curves
from mtlbench.records import read_at
from mtlbench.report.model import ConflictLines, Line, Lines, LossLines, ScoreLine
from mtlbench.report.table import numbers

SEEDS = 32
"""More runs than this do not make a visible difference to a mean curve."""
_Curve = tuple[list[float], list[float]]
"""Steps in their order, and a value for each; NaN where there is none."""
_LOOKS = ("min_cosine", "mean_cosine", "norm_ratio", "min_cosine_minibatch")


def mean_lines(path: Path, offsets: Sequence[int]) -> Lines:
    """The mean curves of the records at these places.

    Runs are averaged where they have the same step; curves of unequal length are used as far as both lists go.
    """
    curves = [r.curves for r in read_at(path, offsets[:SEEDS]) if r.curves is not None]
    return Lines(_loss(curves), _conflict(curves), _validation(curves))


def _loss(curves: Sequence[Curves]) -> LossLines | None:
    names = dict.fromkeys(name for c in curves for name in c.loss.by_task)
    columns = {name: _mean((c.loss.step, c.loss.by_task.get(name, [])) for c in curves) for name in names}
    step, lines = _drawn(columns)
    return LossLines(step, lines) if step else None


def _conflict(curves: Sequence[Curves]) -> ConflictLines | None:
    points = [[p for p in c.conflict if p.get("step") is not None] for c in curves]
    columns = {
        name: _mean(([float(p["step"] or 0.0) for p in run], [p.get(name) for p in run]) for run in points)
        for name in _LOOKS
    }
    step, lines = _drawn(columns)
    return ConflictLines(step, **lines) if step else None


def _validation(curves: Sequence[Curves]) -> ScoreLine | None:
    step, lines = _drawn(
        {"score": _mean(([p.step for p in c.validation], [p.score for p in c.validation]) for c in curves)}
    )
    return ScoreLine(step, lines["score"]) if step else None


def _mean(runs: Iterable[tuple[Sequence[float], Sequence[float | None]]]) -> _Curve:
    """The mean at each step over (steps, values) of several runs."""
    runs = list(runs)
    same = bool(runs) and all(steps == runs[0][0] and len(steps) == len(values) for steps, values in runs)
    if same and (alike := _alike(runs[0][0], [values for _, values in runs])) is not None:
        return alike
    pairs = [(s, np.nan if v is None else v) for steps, values in runs for s, v in zip(steps, values)]
    finite = [(s, v if np.isfinite(v) else np.nan) for s, v in pairs if np.isfinite(s)]
    series = pd.Series([v for _, v in finite], index=[s for s, _ in finite], dtype=float).groupby(level=0).mean()
    return [float(s) for s in series.index], series.tolist()


def _alike(steps: Sequence[float], lines: Sequence[Sequence[float | None]]) -> _Curve | None:
    """The mean of runs that share their steps, at once; None where the steps are not plain."""
    if not steps or any(later <= before for before, later in itertools.pairwise(steps)):
        return None
    if not np.isfinite([steps[0], steps[-1]]).all():
        return None
    values = np.array(lines, dtype=float)  # None becomes NaN
    known = np.isfinite(values)
    count = known.sum(axis=0)
    mean = np.where(known, values, 0.0).sum(axis=0) / np.where(count, count, 1)
    return list(map(float, steps)), np.where(count, mean, np.nan).tolist()


def _drawn(columns: Mapping[str, _Curve]) -> tuple[list[float], dict[str, Line]]:
    """All curves over one list of steps; a curve has nothing at a step that only others have."""
    steps = [found for found, _ in columns.values()]
    if all(s == steps[0] for s in steps):
        return (steps[0] if steps else []), {name: numbers(values) for name, (_, values) in columns.items()}
    # Also an empty curve has an index of floats: joining an empty one of another type warns in pandas 2.
    made = {name: pd.Series(v, index=pd.Index(s, dtype=float), dtype=float) for name, (s, v) in columns.items()}
    whole = pd.DataFrame(made)
    return [float(s) for s in whole.index], {str(n): numbers(whole[n].tolist()) for n in whole.columns}
