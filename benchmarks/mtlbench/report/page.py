"""Puts numbers and figures into one HTML file that needs nothing else: no script, no font, no request."""

from __future__ import annotations

import datetime
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from mtlbench.records import writing
from mtlbench.report import figures
from mtlbench.report.summary import summarise
from mtlbench.statistics import SMALL
from mtlbench.suite import SINGLE_TASK


def write(folder: Path, page: Path, numbers: Path | None = None) -> Path:
    """Write the report over ``folder`` to ``page`` and, if wanted, its numbers as JSON.

    Raises:
        ConfigurationError: the folder does not exist, or a file cannot be written.
    """
    summary = summarise(folder)
    if numbers is not None:
        _write(numbers, json.dumps(summary, indent=1) + "\n")
    _write(page, render(summary, folder))
    return page


def _write(path: Path, text: str) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Half of a surrogate pair (from a file name, in an error message) is no character that UTF-8 could write.
        path.write_text(text, encoding="utf-8", errors="backslashreplace")


def render(summary: Mapping[str, Any], folder: Path) -> str:
    """The page."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mtlbench.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"fixed": _fixed, "signed": _signed, "p": _p, "percent": _percent, "amount": _amount}
    environment.filters["quoted"] = shlex.quote
    style = environment.loader.get_source(environment, "page.css")[0]  # type: ignore[union-attr]
    return environment.get_template("page.html.j2").render(
        **summary,
        style=style,
        written=datetime.datetime.now(datetime.timezone.utc).strftime("%d %B %Y, %H:%M UTC"),
        folder=str(folder),
        single=SINGLE_TASK,
        small=SMALL,
        drawn=[_figures(task) for task in summary["tasks"]],
        overall_drawn=_overall_figures(summary["overall"]) if summary["overall"] else None,
    )


def _figures(task: Mapping[str, Any]) -> dict[str, Any]:
    compared = [m for m in task["methods"] if "delta_m" in m and m["delta_m"]["estimate"] is not None]
    drawn: dict[str, Any] = {"strips": {}, "axis": "", "scatter": "", "loss": [], "conflict": [], "bars": {}}
    # The runs set the scale: three seeds can give intervals so wide that nothing else would be visible.
    runs = [v for m in compared for v in m["delta_m"]["values"].values()]
    spread = (max(runs) - min(runs)) if runs else 0.0
    ends = [e for m in compared for e in (m["delta_m"]["low"], m["delta_m"]["high"]) if e is not None]
    reach = [min(max(e, min(runs) - spread), max(runs) + spread) for e in ends] if runs else []
    domain = figures.padded([*runs, *reach], [0.0])
    for m in compared:
        d = m["delta_m"]
        text = f"{m['name']}: delta-m {_signed(d['estimate'])}"
        drawn["strips"][m["name"]] = figures.strip(
            domain, d["estimate"], d["low"], d["high"], list(d["values"].values()), text
        )
    if compared:
        drawn["axis"] = figures.strip_axis(domain, "delta-m in %, lower is better")
    costs = {m["name"]: (m["ratio_to_sum"], m["delta_m"]["estimate"]) for m in compared if m["ratio_to_sum"]}
    if len(costs) > 1:
        drawn["scatter"] = figures.scatter(
            costs,
            "time of a step, as a multiple of a plain summed-loss step",
            "delta-m in %",
            f"{task['name']}: cost against delta-m",
        )
    drawn["fronts"] = _fronts(task)
    drawn["loss"] = _loss_panels(task)
    drawn["conflict"] = _conflict_panels(compared)
    return drawn


def _fronts(task: Mapping[str, Any]) -> list[Any]:
    """The first metric of each pair of sub-tasks against one another, if some methods form a front."""
    if not task["fronts"]:
        return []
    rows = {m["name"]: m for m in task["methods"]}
    firsts = list({metric["task"]: metric for metric in reversed(task["metrics"])}.values())[::-1][:3]
    drawn = []
    for i, one in enumerate(firsts):
        for other in firsts[i + 1 :]:
            points = {
                name: (row["metrics"][one["key"]]["estimate"], row["metrics"][other["key"]]["estimate"])
                for name, row in rows.items()
                if row["metrics"][one["key"]] and row["metrics"][other["key"]]
            }
            x, y = (
                f"{m['task']}: {m['name']}{' in ' + m['unit'] if m['unit'] else ''} "
                f"({'higher' if m['higher_is_better'] else 'lower'} is better)"
                for m in (one, other)
            )
            joined = [[name for name in front["methods"] if name in points] for front in task["fronts"]]
            drawn.append(figures.front(points, joined, x, y, f"front: {x} against {y}"))
    return drawn


def _loss_panels(task: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One panel per method. Up to three sub-tasks get a line each; with more, their mean is drawn."""
    curves = {m["name"]: m["curves"]["loss"] for m in task["methods"] if m["curves"]["loss"]}
    if not curves:
        return []
    shown: dict[str, tuple[list[float], dict[str, list[float | None]]]] = {}
    for name, curve in curves.items():
        by_task = curve["by_task"]
        if len(by_task) > 3:
            by_task = {"mean of tasks": [_mean(v) for v in zip(*by_task.values())]}
        shown[name] = (curve["step"], {task_name: _smooth(line) for task_name, line in by_task.items()})
    values = [v for _, by_task in shown.values() for line in by_task.values() for v in line if v is not None]
    log = bool(values) and min(values) > 0
    domain = (min(values), max(values)) if log else figures.padded(values)
    last = max(steps[-1] for steps, _ in shown.values())
    panels = []
    for name, (steps, own) in shown.items():
        others = [(s, line) for other, (s, lines) in shown.items() if other != name for line in lines.values()]
        svg = figures.panel(steps, own, others, domain, last, f"training loss of {name}", log=log)
        panels.append({"name": name, "svg": svg, "lines": list(own)})
    return panels


def _smooth(line: list[float | None], reach: int = 2) -> list[float | None]:
    """Each point becomes the mean of itself and its neighbours."""
    return [_mean(line[max(0, i - reach) : i + reach + 1]) for i in range(len(line))]


def _conflict_panels(methods: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    curves = {m["name"]: m["curves"]["conflict"] for m in methods if m["curves"]["conflict"]}
    values = [v for c in curves.values() for k in ("min_cosine", "min_cosine_minibatch") for v in c[k] if v is not None]
    domain = figures.padded(values, [0.0])
    panels = []
    for name, curve in curves.items():
        own = {"averaged gradients": curve["min_cosine"], "single mini-batches": curve["min_cosine_minibatch"]}
        others = [(c["step"], c["min_cosine"]) for other, c in curves.items() if other != name]
        last = max(c["step"][-1] for c in curves.values())
        svg = figures.panel(curve["step"], own, others, domain, last, f"smallest cosine, {name}", zero=True)
        panels.append({"name": name, "svg": svg, "lines": list(own)})
    return panels


def _overall_figures(overall: Mapping[str, Any]) -> dict[str, Any]:
    rows = overall["methods"]
    ends = [e for m in rows for k in ("low", "estimate", "high") if (e := m["delta_m"][k]) is not None]
    domain = figures.padded(ends, [0.0])
    drawn: dict[str, Any] = {"strips": {}, "axis": figures.strip_axis(domain, "mean delta-m in %, lower is better")}
    for m in rows:
        d = m["delta_m"]
        drawn["strips"][m["name"]] = figures.strip(
            domain, d["estimate"], d["low"], d["high"], [], f"{m['name']}, all tasks"
        )
    drawn["profile"] = (
        figures.lines(
            {m["name"]: (overall["thresholds"], m["profile"]) for m in rows},
            "delta-m in %",
            "share of runs at or below",
            "performance profile",
            (0.0, 1.0),
        )
        if rows
        else ""
    )
    return drawn


# --- filters ----------------------------------------------------------------------------------------------------------


def _fixed(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else _minus(f"{value:.{digits}f}")


def _signed(value: float | None, digits: int = 2) -> str:
    if value is None:
        return "–"
    text = f"{value:+.{digits}f}"
    return _minus(text) if float(text) else text[1:]  # a rounded zero has no sign


def _amount(value: float | None) -> str:
    """Two decimals for ordinary numbers, fewer for large ones, two significant digits for tiny ones."""
    if value is None:
        return "–"
    size = abs(value)
    digits = 0 if size >= 1000 else 1 if size >= 10 else 2
    return _minus(f"{value:.{digits}f}" if size >= 0.1 or size == 0 else f"{value:.2g}")


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def _p(value: float | None) -> str:
    return "–" if value is None else ("< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}")


def _mean(values: Any) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
