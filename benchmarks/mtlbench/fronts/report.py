"""What the records say: a table and a verdict per subject, and the front of a pair of tasks."""

from __future__ import annotations

import dataclasses
import statistics as plain
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import mtlcore
from mtlbench import pareto, records
from mtlbench import statistics as stats
from mtlbench.fronts.plan import METHODS, REFERENCE, SUBJECTS, Subject
from mtlbench.fronts.run import key, on_problem
from mtlbench.statistics import Comparison, Interval

CHOSEN = 0.5
"""The preference that the figures mark, if no other one is wanted: the first task's share."""
HIGHER = {"better": "worse", "worse": "better"}
"""The statistics read a difference as of errors; a hypervolume is better where it is larger."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One method on one subject, over the seeds that it shares with the reference."""

    method: str
    hypervolume: Interval
    versus: Comparison | None
    dense: float
    spread: float
    seconds: float
    share: float | None
    igd_plus: float | None
    left_out: int

    @property
    def verdict(self) -> str:
        """In words."""
        if self.versus is None:
            return "reference"
        return HIGHER.get(self.versus.verdict, self.versus.verdict)


def rows(lines: Iterable[Mapping[str, Any]], subject: Subject) -> list[Row]:
    """Holm's correction is over the methods of the subject."""
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for line in lines:
        if (line["subject"], line["passes"]) == (subject.name, subject.passes) and line["status"] == "ok":
            found.setdefault(line["method"], {})[line["seed"]] = line
    whole = {m: {s: x for s, x in found.get(m, {}).items() if x.get("hypervolume") is not None} for m in METHODS}
    base = whole[REFERENCE]
    compared = {
        m: stats.paired([[x["hypervolume"] - base[s]["hypervolume"] for s, x in sorted(own.items()) if s in base]])
        for m, own in whole.items()
        if m != REFERENCE and own.keys() & base.keys()
    }
    compared = stats.corrected(compared)
    return [
        _row(m, list(own.values()), compared.get(m), len(found.get(m, {})) - len(own))
        for m, own in whole.items()
        if own
    ]


def _row(method: str, own: list[Mapping[str, Any]], versus: Comparison | None, left_out: int) -> Row:
    def mean(name: str) -> float:
        return plain.fmean(x[name] for x in own)

    declared = "share" in own[0]
    return Row(
        method,
        stats.interval([[x["hypervolume"] for x in own]]),
        versus,
        mean("dense_hypervolume"),
        mean("spread"),
        mean("training_seconds"),
        mean("share") if declared else None,
        mean("igd_plus") if declared else None,
        left_out,
    )


def table(found: list[Row]) -> str:
    """Markdown."""
    declared = any(r.share is not None for r in found)
    heads = [
        "method",
        "seeds",
        "hypervolume",
        "minus ls-sweep",
        "verdict",
        "with more preferences",
        "spread",
        "training, s",
    ]
    heads += ["share of the declared front", "IGD+"] if declared else []
    out = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for r in found:
        difference = "" if r.versus is None else _span(r.versus.difference)
        cells = [
            f"`{r.method}`",
            str(r.hypervolume.n),
            _span(r.hypervolume),
            difference,
            r.verdict,
            f"{r.dense:.3f}",
            f"{r.spread:.3f}",
        ]
        cells.append(f"{r.seconds:.1f}")
        if r.share is not None and r.igd_plus is not None:
            cells += [f"{100 * r.share:.0f} %", f"{r.igd_plus:.3f}"]
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out)


def _span(value: Interval) -> str:
    if value.low is None or value.high is None:
        return f"{value.estimate:.3f}"
    return f"{value.estimate:.3f} [{value.low:.3f}, {value.high:.3f}]"


def sentence(subject: Subject, found: list[Row]) -> str:
    """The verdict of every method in one sentence."""
    groups: dict[str, list[str]] = {}
    for r in found:
        if r.versus is not None:
            groups.setdefault(r.verdict, []).append(f"`{r.method}`")
    parts = [f"{word}: {', '.join(names)}" for word, names in groups.items()]
    return f"Against `{REFERENCE}` at equal cost ({subject.passes} passes): {'; '.join(parts) or 'nothing yet'}."


def write(folder: Path, chosen: float = CHOSEN, numbers: Path | None = None) -> list[Path]:
    """``report.md`` and a figure for every subject with two tasks.

    Args:
        folder: of the records.
        chosen: the preference that is marked: how much of it is the first task's.
        numbers: where to write the rows of all tables as JSON.
    """
    lines = list(records.lines(folder / records.RECORDS))
    made, out, tables = [], ["# Fronts\n", ABOUT], {}
    for subject in SUBJECTS:
        found = rows(lines, subject)
        if not found:
            continue
        tables[subject.name] = [dataclasses.asdict(r) | {"verdict": r.verdict} for r in found]
        seeds = {x["seed"] for x in lines if key(x)[0] == subject.name}
        out += [f"## {subject.name}\n", f"{len(seeds)} seeds. {sentence(subject, found)}\n", table(found), ""]
        if subject.n_tasks == 2:
            path = folder / f"{subject.name}.svg"
            figure(lines, subject, path, chosen)
            made.append(path)
            out += [f"![The fronts of one seed]({path.name})\n", choice(lines, subject, chosen), ""]
    if numbers is not None:
        records.replace(numbers, tables)
        made.append(numbers)
    text = folder / "report.md"
    with records.writing(text):
        folder.mkdir(parents=True, exist_ok=True)
        text.write_text("\n".join(out), encoding="utf-8")
    return [text, *made]


def choice(lines: Iterable[Mapping[str, Any]], subject: Subject, chosen: float) -> str:
    """Markdown: what each method gives a user with this preference between two tasks, means over seeds."""
    found: dict[str, list[list[float]]] = {}
    at = None
    for line in lines:
        if (line["subject"], line["passes"]) == (subject.name, subject.passes) and line.get("points"):
            i = nearest(line, chosen)
            at = line["preferences"][i]
            if line["points"][i] is not None:
                found.setdefault(line["method"], []).append(line["points"][i])
    if at is None:
        return ""
    first, second = names(subject)
    share = f"{100 * at[0]:.0f} % {first} and {100 * at[1]:.0f} % {second}"
    out = [f"The models for {share}:\n", f"| method | {first} | {second} |", "|---|---|---|"]
    for method in (m for m in METHODS if m in found):
        cells = [_span(stats.interval([[p[axis] for p in found[method]]])) for axis in (0, 1)]
        out.append(f"| `{method}` | {cells[0]} | {cells[1]} |")
    return "\n".join(out)


def nearest(line: Mapping[str, Any], chosen: float) -> int:
    """Which of the models of a front of two tasks is the one for this preference; the first of equally near ones."""
    return int(np.abs(np.array(line["preferences"])[:, 0] - chosen).argmin())


def names(subject: Subject) -> tuple[str, ...]:
    """Of the tasks; a declared problem has none."""
    if subject.kind == "problem":
        return "first task", "second task"
    found: tuple[str, ...] = mtlcore.create("task", subject.name).tasks
    return found


ABOUT = """Every method has the same number of passes (one forward and one backward pass on one batch) for its whole
front, the learning rate of the task, and no tuning. Coordinates: on real data the relative worsening of each task, on
the test part, against a network of its own that is trained as long as one model of a sweep; on declared problems the
loss in units of its range on the front. Reference point: 1 in every coordinate. Hypervolume: larger is better. In
brackets: 95 % intervals over the seeds; verdicts with Holm's correction over the methods of a subject. "With more
preferences" judges the same front at more points, which only methods with a continuous front can use. Seconds are those
of a shared machine.
"""


def figure(lines: list[dict[str, Any]], subject: Subject, path: Path, chosen: float = CHOSEN) -> None:
    """The models of the first seed, joined in the order of the preferences; those of the chosen one have a ring."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "mtlbench", "svg.fonttype": "none"}):
        drawn = Figure(figsize=(6.4, 4.8), layout="constrained")
        axes = drawn.add_subplot()
        if subject.kind == "problem":
            best = on_problem(subject, 0, path).best
            assert best is not None
            axes.plot(*best.T, color="0.8", linewidth=6, label="declared front", zorder=0)
        own = {x["method"]: x for x in lines if key(x)[0] == subject.name and x["seed"] == 0 and x.get("points")}
        for number, method in enumerate(m for m in METHODS if m in own):
            _line(axes, own[method], method, number, chosen)
        first, second = names(subject)
        unit = "worse than trained alone" if subject.kind == "task" else "share of the range"
        axes.set(xlabel=f"{first}: {unit}", ylabel=f"{second}: {unit}", title=f"{subject.name}; lower is better")
        shares = [y["preferences"][nearest(y, chosen)][0] for y in own.values()]
        if shares:
            label = f"chosen: {100 * shares[0]:.0f} % {first}"
            axes.plot([], [], marker="o", markersize=12, fillstyle="none", color="0.3", linestyle="", label=label)
        axes.set_xlim(*_window(own.values(), 0))
        axes.set_ylim(*_window(own.values(), 1))
        axes.legend(fontsize="small")
        drawn.savefig(path, metadata={"Date": None})


def _line(axes: Any, line: Mapping[str, Any], method: str, number: int, chosen: float) -> None:
    points = np.array(line["points"])
    left = len(pareto.nondominated(points))
    style = {"color": f"C{number}", "marker": "osD^vPX*"[number % 8], "linestyle": "-" if number < 5 else "--"}
    axes.plot(*points.T, linewidth=1, markersize=4, label=f"{method} ({left} of {len(points)} not dominated)", **style)
    axes.plot(*points[nearest(line, chosen)], marker="o", markersize=12, fillstyle="none", color=style["color"])


def _window(lines: Iterable[Mapping[str, Any]], axis: int) -> tuple[float, float]:
    values = [p[axis] for x in lines for p in x["points"]]
    low, high = min(values, default=0.0), min(max(values, default=1.0), 1.5)
    return low - 0.05 * (high - low), high + 0.05 * (high - low)
