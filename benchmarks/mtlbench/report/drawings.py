"""Which figures a report has: the numbers of a task handed to :mod:`~mtlbench.report.figures`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from markupsafe import Markup

from mtlbench.report import figures
from mtlbench.report.model import Line, LossLines, MethodRow, MetricFacts, Overall, Score, TaskReport

MOST_DOTS = 60
"""More runs than this are not drawn one by one."""


@dataclasses.dataclass(frozen=True)
class Panel:
    """One of several small figures that share their axes."""

    name: str
    svg: Markup
    lines: list[str]


@dataclasses.dataclass(frozen=True)
class TaskDrawings:
    """The figures of one task."""

    strips: dict[str, Markup]
    axis: Markup | str
    scatter: Markup | str
    fronts: list[Markup]
    loss: list[Panel]
    conflict: list[Panel]
    validation: list[Panel]


@dataclasses.dataclass(frozen=True)
class OverallDrawings:
    """The figures of all tasks together."""

    strips: dict[str, Markup]
    axis: Markup
    profile: Markup | str
    ranks: Markup | str


def of_task(task: TaskReport) -> TaskDrawings:
    """All figures of one task."""
    compared = [m for m in task.scored() if _score(m).n]
    strips, axis = _strips(compared)
    return TaskDrawings(
        strips=strips,
        axis=axis,
        scatter=_scatter(task, compared),
        fronts=_fronts(task),
        loss=_loss_panels(task.methods),
        conflict=_conflict_panels(compared),
        validation=_validation_panels(compared),
    )


def _score(m: MethodRow) -> Score:
    assert m.delta_m is not None
    return m.delta_m


def _strips(compared: Sequence[MethodRow]) -> tuple[dict[str, Markup], Markup | str]:
    if not compared:
        return {}, ""
    # The runs set the scale: three seeds can give intervals so wide that nothing else would be visible.
    runs = [v for m in compared for v in _score(m).values.values()]
    spread = max(runs) - min(runs)
    ends = [e for m in compared for e in (_score(m).low, _score(m).high) if e is not None]
    reach = [min(max(e, min(runs) - spread), max(runs) + spread) for e in ends]
    domain = figures.padded([*runs, *reach], [0.0])
    strips = {}
    for m in compared:
        d = _score(m)
        shown = list(d.values.values())[:MOST_DOTS]
        text = f"{m.name}: delta-m {d.estimate:+.2f}"
        strips[m.name] = figures.strip(domain, d.estimate, d.low, d.high, shown, text)
    return strips, figures.strip_axis(domain, "delta-m in %, lower is better")


def _scatter(task: TaskReport, compared: Sequence[MethodRow]) -> Markup | str:
    costs = {m.name: (m.ratio_to_sum, _score(m).estimate) for m in compared if m.ratio_to_sum}
    if len(costs) < 2:
        return ""
    return figures.scatter(
        costs,
        "time of a step, as a multiple of a plain summed-loss step",
        "delta-m in %",
        f"{task.name}: cost against delta-m",
    )


def _fronts(task: TaskReport) -> list[Markup]:
    """The first metric of each pair of sub-tasks against one another, if some methods form a front."""
    if not task.fronts:
        return []
    firsts = list({metric.task: metric for metric in reversed(task.metrics)}.values())[::-1][:3]
    return [_front(task, one, other) for i, one in enumerate(firsts) for other in firsts[i + 1 :]]


def _front(task: TaskReport, one: MetricFacts, other: MetricFacts) -> Markup:
    points = {
        m.name: (a.estimate, b.estimate)
        for m in task.methods
        if (a := m.metrics[one.key]) is not None and (b := m.metrics[other.key]) is not None
    }
    x, y = map(_axis_title, (one, other))
    joined = [[name for name in front.methods if name in points] for front in task.fronts]
    return figures.front(points, joined, x, y, f"front: {x} against {y}")


def _axis_title(m: MetricFacts) -> str:
    unit = f" in {m.unit}" if m.unit else ""
    return f"{m.task}: {m.name}{unit} ({'higher' if m.higher_is_better else 'lower'} is better)"


def _loss_panels(methods: Sequence[MethodRow]) -> list[Panel]:
    """One panel per method. Up to three sub-tasks get a line each; with more, their mean is drawn."""
    shown = {m.name: (m.curves.loss.step, _few(m.curves.loss)) for m in methods if m.curves.loss}
    values = [v for _, own in shown.values() for line in own.values() for v in line if v is not None]
    if not values:
        return []
    log = min(values) > 0
    domain = (min(values), max(values)) if log else figures.padded(values)
    last = max(steps[-1] for steps, _ in shown.values())
    panels = []
    for name, (steps, own) in shown.items():
        others = [(s, line) for other, (s, lines) in shown.items() if other != name for line in lines.values()]
        svg = figures.panel(steps, own, others[:_OTHERS], domain, last, f"training loss of {name}", log=log)
        panels.append(Panel(name, svg, list(own)))
    return panels


_OTHERS = 12
"""Grey lines behind a panel: enough to see where the others are."""


def _few(curve: LossLines) -> dict[str, Line]:
    by_task: Mapping[str, Line] = curve.by_task
    if len(by_task) > 3:
        by_task = {"mean of tasks": [_mean(v) for v in zip(*by_task.values())]}
    return {name: _smooth(line) for name, line in by_task.items()}


def _smooth(line: Line, reach: int = 2) -> Line:
    """Each point becomes the mean of itself and its neighbours."""
    return [_mean(line[max(0, i - reach) : i + reach + 1]) for i in range(len(line))]


def _conflict_panels(methods: Sequence[MethodRow]) -> list[Panel]:
    curves = {m.name: m.curves.conflict for m in methods if m.curves.conflict}
    values = [v for c in curves.values() for line in (c.min_cosine, c.min_cosine_minibatch) for v in line]
    domain = figures.padded([v for v in values if v is not None], [0.0])
    last = max((c.step[-1] for c in curves.values()), default=0.0)
    panels = []
    for name, curve in curves.items():
        own = {"averaged gradients": curve.min_cosine, "single mini-batches": curve.min_cosine_minibatch}
        others = [(c.step, c.min_cosine) for other, c in curves.items() if other != name]
        svg = figures.panel(curve.step, own, others[:_OTHERS], domain, last, f"smallest cosine, {name}", zero=True)
        panels.append(Panel(name, svg, list(own)))
    return panels


def _validation_panels(methods: Sequence[MethodRow]) -> list[Panel]:
    """Validation scores; the first look is far from the others, so the scale is that of all looks but the first."""
    curves = {m.name: m.curves.validation for m in methods if m.curves.validation}
    values = [v for c in curves.values() for v in c.score[1:] if v is not None]
    if not values:
        return []
    domain = figures.padded(values, [0.0] if min(values) < 0 < max(values) else [])
    last = max(c.step[-1] for c in curves.values())
    panels = []
    for name, curve in curves.items():
        others = [(c.step, c.score) for other, c in curves.items() if other != name]
        own = {"validation score": curve.score}
        svg = figures.panel(curve.step, own, others[:_OTHERS], domain, last, f"validation score, {name}", zero=True)
        panels.append(Panel(name, svg, list(own)))
    return panels


def of_all(overall: Overall) -> OverallDrawings:
    """The figures of all tasks together."""
    rows = overall.methods
    ends = [e for m in rows for e in (m.delta_m.low, m.delta_m.estimate, m.delta_m.high) if e is not None]
    domain = figures.padded(ends, [0.0])
    strips = {}
    for m in rows:
        d = m.delta_m
        strips[m.name] = figures.strip(domain, d.estimate, d.low, d.high, [], f"{m.name}, all tasks")
    profiles = {m.name: (overall.thresholds, list[float | None](m.profile)) for m in rows[:_OTHERS]}
    profile = (
        figures.lines(profiles, "delta-m in %", "share of runs at or below", "performance profile", (0.0, 1.0))
        if rows
        else ""
    )
    ranks = {m.name: m.mean_rank for m in rows}
    difference = overall.critical_difference
    return OverallDrawings(
        strips=strips,
        axis=figures.strip_axis(domain, "mean delta-m in %, lower is better"),
        profile=profile,
        ranks=figures.critical_difference(ranks, difference) if difference is not None else "",
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
