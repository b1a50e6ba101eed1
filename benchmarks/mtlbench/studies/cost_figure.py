"""What happens around a teleport, recorded and drawn.

    python -m mtlbench.studies.cost_figure OUT [--task ...] [--base fairgrad] [--arm exact low-rank]
        [--seeds 5] [--steps N]
    python -m mtlbench.studies.cost_figure OUT --draw FILE.svg

The first trains a base method alone and with each arm on the same seeds, as the study of COST does, and looks at a
validation batch every other step. Every finished run is a line of OUT/traces.jsonl; run again, it goes on where it
stopped. The second makes the figure of what is there: conflict, conflict in Adam's metric, and what was gained on the
run without teleports, around the first accepted teleport of every run.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mtlbench.records import writing
from mtlbench.studies.cost import Done, Run, finished, train_missing, wanted
from mtlbench.studies.cost_arms import ARMS, Arm
from mtlbench.studies.cost_problem import NAME
from mtlbench.studies.cost_trace import EVERY, Trace
from mtlbench.tasks.base import BenchmarkTask

FILE = "traces.jsonl"
BEFORE, AFTER = 20, 80
"""Steps around a teleport that are drawn."""
FEWEST = 2
"""A column of fewer teleports is no picture of them."""
SERIES = {
    "cosine": "smallest cosine of a task\nwith the mean gradient",
    "in_metric": "the same in\nAdam's metric",
    "loss": "mean loss against the run\nwithout teleports, %",
}


def traced(task: BenchmarkTask, base: str, arm: Arm, seed: int, steps: int) -> dict[str, Any]:
    """Train once, and look around."""
    trace = Trace()
    Run(task, base, arm, seed, steps, trace).go()
    return {"trace": dataclasses.asdict(trace)}


def windows(rows: dict[Done, dict[str, Any]], task: str, arm: str) -> dict[str, dict[str, np.ndarray]]:
    """series -> {"alone", "with"} -> (runs, looks) around the first accepted teleport; NaN beyond the ends of a run."""
    found: dict[str, dict[str, list[np.ndarray]]] = {s: {"alone": [], "with": []} for s in SERIES}
    for (name, base, which, seed, steps), row in sorted(rows.items()):
        alone = rows.get((name, base, "alone", seed, steps))
        if name != task or which != arm or alone is None or not row["trace"]["teleports"]:
            continue
        at = row["trace"]["teleports"][0] // EVERY
        for series in SERIES:
            both = {"with": row["trace"][series], "alone": alone["trace"][series]}
            pieces = {key: _around(np.asarray(values, dtype=float), at) for key, values in both.items()}
            if series == "loss":
                pieces = {key: 100.0 * np.expm1(values - pieces["alone"]) for key, values in pieces.items()}
            for key, values in pieces.items():
                found[series][key].append(values)
    return {s: {key: np.array(values) for key, values in both.items()} for s, both in found.items()}


def _around(values: np.ndarray, at: int) -> np.ndarray:
    padded = np.full(BEFORE // EVERY + AFTER // EVERY + 1, np.nan)
    for i in range(len(padded)):
        j = at - BEFORE // EVERY + i
        if 0 <= j < len(values):
            padded[i] = values[j]
    return padded


def draw(folder: Path, file: Path) -> Path:
    """The figure: a column for each pair of task and arm of which some runs accepted a teleport."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = finished(folder / FILE)
    pairs = sorted({(k[0], k[2]) for k in rows if k[2] != "alone"}, key=lambda pair: (pair[0] != NAME, pair))
    columns = {pair: windows(rows, *pair) for pair in pairs}
    columns = {pair: found for pair, found in columns.items() if len(found["loss"]["with"]) >= FEWEST}
    figure = Figure(figsize=(2.9 * len(columns) + 0.6, 6.0), layout="constrained")
    FigureCanvasAgg(figure)  # no window, whatever backend the user has chosen
    axes = figure.subplots(len(SERIES), len(columns), squeeze=False, sharex=True)
    for j, ((task, arm), found) in enumerate(columns.items()):
        for i, (series, title) in enumerate(SERIES.items()):
            _panel(axes[i][j], found[series], legend=i == 0 and j == 0)
            if j == 0:
                axes[i][j].set_ylabel(title)
        axes[0][j].set_title(f"{task}, {arm}\n{len(found['loss']['with'])} teleports", fontsize=9)
        axes[-1][j].set_xlabel("steps after the teleport")
    with matplotlib.rc_context({"svg.hashsalt": "mtlcore", "svg.fonttype": "none"}), writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    return file


def _panel(axes: Any, both: dict[str, np.ndarray], legend: bool) -> None:
    x = np.arange(-BEFORE, AFTER + 1, EVERY)
    for key, colour, label in (("alone", "0.5", "the same seeds without"), ("with", "C0", "with teleports")):
        for run in both[key]:
            axes.plot(x, run, color=colour, linewidth=0.5, alpha=0.35)
        there = np.isfinite(both[key]).sum(axis=0)
        mean = np.nansum(both[key], axis=0) / np.maximum(there, 1)
        axes.plot(x, np.where(there == len(both[key]), mean, np.nan), color=colour, linewidth=1.8, label=label)
    axes.axvline(0.0, color="black", linewidth=0.6, linestyle=":")
    axes.axhline(0.0, color="black", linewidth=0.6)
    if legend:
        axes.legend(fontsize=7)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the records")
    parser.add_argument("--task", nargs="+", default=(NAME, "rf1"), help="the constructed problem, registered tasks")
    parser.add_argument("--base", nargs="+", default=("fairgrad",), help="methods inside")
    parser.add_argument("--arm", nargs="+", default=("exact", "low-rank"), choices=tuple(ARMS), help="around which")
    parser.add_argument("--seeds", type=int, default=5, help="paired seeds")
    parser.add_argument("--steps", type=int, help="training steps; default: the task's")
    parser.add_argument("--draw", type=Path, help="train nothing; draw what is there")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if chosen.draw is None:
        jobs = wanted(chosen.task, chosen.base, chosen.arm, chosen.seeds)
        print(f"{train_missing(chosen.out / FILE, jobs, chosen.steps, traced)} runs")
    else:
        print(draw(chosen.out, chosen.draw))


if __name__ == "__main__":
    main()
