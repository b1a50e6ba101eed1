"""Figures for a paper, as SVG and PDF files."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mtlbench.records import writing
from mtlbench.report.figures import groups
from mtlbench.report.model import Line, MetricFacts, Overall, Report, TaskReport

Draw = Callable[[Any], None]


def write_figures(found: Report, folder: Path) -> list[Path]:
    """Every figure twice, ``NAME.svg`` and ``NAME.pdf``."""
    figures: dict[str, Draw] = {}
    for task in found.tasks:
        figures[f"{task.name}-delta-m"] = functools.partial(_deltas, task)
        figures[f"{task.name}-cost"] = functools.partial(_cost, task)
        if any(m.curves.validation for m in task.methods):
            figures[f"{task.name}-validation"] = functools.partial(_validation, task)
        if task.fronts and len({m.task for m in task.metrics}) > 1:
            figures[f"{task.name}-front"] = functools.partial(_front, task)
    if found.overall is not None and found.overall.methods:
        figures["profile"] = functools.partial(_profile, found.overall)
        if found.overall.critical_difference is not None:
            figures["critical-difference"] = functools.partial(_ranks, found.overall)
    return [path for name, draw in figures.items() for path in _saved(draw, folder, name)]


def _saved(draw: Draw, folder: Path, name: str) -> list[Path]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    FigureCanvasAgg(figure)  # no window, whatever backend the user has chosen
    draw(figure.add_subplot())
    stem = re.sub(r"[^\w.-]+", "-", name)
    paths = [folder / f"{stem}.{suffix}" for suffix in ("svg", "pdf")]
    for path in paths:
        with writing(path):
            folder.mkdir(parents=True, exist_ok=True)
            figure.savefig(path)
    return paths


def _plain(name: str) -> str:
    """Matplotlib reads what stands between dollar signs as mathematics."""
    return name.replace("$", r"\$")


def _deltas(task: TaskReport, axes: Any) -> None:
    rows = [m for m in task.scored() if m.delta_m is not None and m.delta_m.n]
    for i, m in enumerate(reversed(rows)):
        d = m.delta_m
        assert d is not None
        if d.low is not None and d.high is not None:
            axes.plot([d.low, d.high], [i, i], color="C0", linewidth=1.5)
        axes.plot(list(d.values.values()), [i] * len(d.values), "o", color="C0", markerfacecolor="white", markersize=3)
        axes.plot([d.estimate], [i], "D", color="C0", markersize=5)
    axes.axvline(0.0, color="black", linewidth=0.6)
    axes.set_yticks(range(len(rows)), [_plain(m.name) for m in reversed(rows)])
    axes.set_xlabel(f"delta-m on {_plain(task.name)} in %, lower is better")


def _cost(task: TaskReport, axes: Any) -> None:
    for m in task.scored():
        if m.ratio_to_sum is not None and m.delta_m is not None and m.delta_m.n:
            axes.plot([m.ratio_to_sum], [m.delta_m.estimate], "o", color="C0", markersize=4)
            axes.annotate(
                _plain(m.name), (m.ratio_to_sum, m.delta_m.estimate), (4, 2), textcoords="offset points", fontsize=8
            )
    axes.set_xlabel("time of a step, as a multiple of a plain summed-loss step")
    axes.set_ylabel("delta-m in %")


def _front(task: TaskReport, axes: Any) -> None:
    one, other = _first_two(task)
    points = {
        m.name: (a.estimate, b.estimate)
        for m in task.methods
        if (a := m.metrics[one.key]) is not None and (b := m.metrics[other.key]) is not None
    }
    for name, (x, y) in points.items():
        axes.plot([x], [y], "o", color="0.4", markersize=3)
        axes.annotate(_plain(name), (x, y), (4, 2), textcoords="offset points", fontsize=7)
    for front in task.fronts:
        line = [points[name] for name in front.methods if name in points]
        axes.plot([x for x, _ in line], [y for _, y in line], label=_plain(front.name))
    axes.legend(fontsize=8)
    axes.set_xlabel(_title(one))
    axes.set_ylabel(_title(other))


def _first_two(task: TaskReport) -> tuple[MetricFacts, MetricFacts]:
    firsts = list({m.task: m for m in reversed(task.metrics)}.values())[::-1]
    return firsts[0], firsts[1]


def _title(m: MetricFacts) -> str:
    better = "" if m.higher_is_better is None else f", {'higher' if m.higher_is_better else 'lower'} is better"
    return _plain(f"{m.task}: {m.name}{f' in {m.unit}' if m.unit else ''}{better}")


def _validation(task: TaskReport, axes: Any) -> None:
    for m in task.methods:
        if m.curves.validation:
            axes.plot(m.curves.validation.step, _gaps(m.curves.validation.score), label=_plain(m.name), linewidth=1)
    axes.legend(fontsize=6, ncols=2)
    axes.set_xlabel("step")
    axes.set_ylabel("validation score")


def _gaps(values: Line) -> list[float]:
    """A missing value interrupts the line."""
    return [math.nan if v is None else v for v in values]


def _ranks(overall: Overall, axes: Any) -> None:
    """Mean ranks; a bar joins methods that are not further apart than the critical difference (Demsar 2006)."""
    assert overall.critical_difference is not None
    rows = sorted(overall.methods, key=lambda m: m.mean_rank)
    for i, m in enumerate(rows):
        axes.plot([m.mean_rank], [i], "o", color="C0", markersize=4)
    for first, last in groups([m.mean_rank for m in rows], overall.critical_difference):
        axes.plot([rows[first].mean_rank, rows[last].mean_rank], [last + 0.35] * 2, color="0.3", linewidth=2)
    axes.set_yticks(range(len(rows)), [_plain(m.name) for m in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel(f"mean rank; critical difference {overall.critical_difference:.2f}")


def _profile(overall: Overall, axes: Any) -> None:
    for m in overall.methods[:10]:
        axes.plot(overall.thresholds, m.profile, label=_plain(m.name))
    axes.legend(fontsize=7)
    axes.set_xlabel("delta-m in %")
    axes.set_ylabel("share of runs at or below")
