"""`import mtlcore` is nearly free, and `mtl list` answers within a second."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time


def seconds(program: str, runs: int = 3) -> float:
    """Median wall time that a fresh interpreter reports for ``program``."""
    timed = f"import time; t = time.perf_counter()\n{program}\nprint(time.perf_counter() - t)"
    out = [
        subprocess.run([sys.executable, "-c", timed], capture_output=True, text=True, check=True) for _ in range(runs)
    ]
    return statistics.median(float(o.stdout.split()[-1]) for o in out)


def test_mtlcore_adds_little_to_torch():
    added = seconds("import torch; t = time.perf_counter()\nimport mtlcore; mtlcore.MultiTask, mtlcore.aggregate")
    assert added < 0.3, f"import mtlcore and its classes adds {added:.2f} s to import torch"


def test_mtl_list_is_quick():
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "mtlcore", "list"], capture_output=True, check=True)
    # The target is 1 s; the tests run two at a time on small machines, hence the slack.
    assert time.perf_counter() - start < 2.0
