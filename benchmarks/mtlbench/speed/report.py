"""What a report of many records costs: processor time and memory of the process that writes the page.

    mtl speed report [--tasks 10] [--methods 25] [--seeds 200]

The records are made up: training curves of 80 steps and eight looks at validation for every run, as a grid on a cluster
leaves them. The time is that of the processor, so that a busy machine disturbs it less; the aim is 10 s and 500 MB for
50,000 records.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

KEYS = ("a/MAE", "b/MAE")
_MEASURE = "import sys; from mtlbench.speed.report import one; one(sys.argv[1])"


class Cost(NamedTuple):
    """Of the process that writes a report."""

    seconds: float
    megabytes: float


def record(method: str, task: str) -> dict[str, Any]:
    """A made-up run with the fields that the runner writes; its seed is -1."""
    point = {"min_cosine": -0.2, "mean_cosine": 0.1, "norm_ratio": 2.0, "min_cosine_minibatch": -0.3}
    plugins: dict[str, Any] = {"aggregator": method, "options": {}, "detector": None, "teleport": None}
    return {
        "suite": "s", "task": task, "method": method, "seed": -1, "status": "ok", "config_hash": f"h-{method}",
        "metrics": dict.fromkeys(KEYS, 0.9), "validation": dict.fromkeys(KEYS, 0.9), "delta_m": 0.5,
        "seconds_per_step": 0.01, "ratio_to_sum": 1.5, "peak_memory_mb": 300.0, "memory_above_start_mb": 20.0,
        "environment": {"torch": "2", "cores": 2}, "certificate": None,
        "hyperparameters": {"budget": {"steps": 800, "batch_size": 8, "learning_rate": 0.001}, "method": plugins},
        "curves": {
            "loss": {"step": list(range(0, 800, 10)), "by_task": {"a": [1.0] * 80, "b": [2.0] * 80}},
            "conflict": [], "validation": [{"step": s, "score": 1.0} for s in range(8)],
        },
        "conflict": point, "teleports": None, "gradient_source": "sequential", "splits": {"train": "ab"},
    }  # fmt: skip


def write_records(folder: Path, tasks: int, methods: int, seeds: int) -> int:
    """A folder with these records; returns how many they are. The first method is the single-task baseline."""
    with (folder / "records.jsonl").open("w", encoding="utf-8") as file:
        for t in range(tasks):
            for m in range(methods):
                row = record(f"m{m}" if m else "single-task", f"t{t}")
                before, after = json.dumps(row).split('"seed": -1')
                for seed in range(seeds):
                    delta = (seed * 7919 + m) % 101 / 10
                    file.write(f'{before}"seed": {seed}{after}\n'.replace('"delta_m": 0.5', f'"delta_m": {delta}'))
    return tasks * methods * seeds


def cost(folder: Path) -> Cost:
    """Of a process of its own that writes the report of a folder."""
    done = subprocess.run([sys.executable, "-c", _MEASURE, str(folder)], capture_output=True, text=True, check=True)
    return Cost(*map(float, done.stdout.split()))


def one(folder: str) -> None:
    """Write the report here, and print seconds and megabytes. The peak is that of the program itself (VmHWM), because
    ru_maxrss of a child begins with what its parent held."""
    from mtlbench.report.page import write

    start = time.process_time()
    write(Path(folder), Path(folder) / "report.html")
    seconds, status = time.process_time() - start, Path("/proc/self/status")
    peak = re.search(r"VmHWM:\s+(\d+)", status.read_text()) if status.exists() else None
    kilobytes = int(peak[1]) if peak else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(seconds, kilobytes / 1024)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="mtl speed report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=10, help="tasks of the made-up suite")
    parser.add_argument("--methods", type=int, default=25, help="methods, the single-task baseline included")
    parser.add_argument("--seeds", type=int, default=200, help="runs of each method on each task")
    wanted = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="mtlbench-") as scratch:
        count = write_records(Path(scratch), wanted.tasks, wanted.methods, wanted.seeds)
        size = (Path(scratch) / "records.jsonl").stat().st_size / 1e6
        found = cost(Path(scratch))
    print(
        f"{count:,} records ({size:.0f} MB): {found.seconds:.1f} s of the processor, {found.megabytes:.0f} MB at most."
    )
    print(f"python {platform.python_version()}, {platform.system()} {platform.machine()}")
    return 0
