"""kill -9 at random moments, of the run itself or of one of its workers, during certification, tuning or training: what
a later run completes is, up to timing, what an uninterrupted run gives."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mtlbench import records


@pytest.fixture
def bench(bench_site):
    """Starts `mtl bench run` in a process group of its own."""

    def start(folder, jobs):
        command = [sys.executable, "-m", "mtlcore", "bench", "run", str(bench_site.suite), "--jobs", str(jobs)]
        return subprocess.Popen(
            [*command, "--out", str(folder)], env=bench_site.environment, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    return start


def _results(folder):
    """All that must be equal: every field of a record but times, memory and what happened on the way to it."""
    timing = {"seconds_per_step", "ratio_to_sum", "seconds", "peak_memory_mb", "memory_above_start_mb", "finished_at"}
    found = {}
    for name in (records.TRIALS, records.RECORDS):
        for record in records.read(folder / name)[0]:
            if record.ok:
                found[(name, *record.key)] = record.model_dump(exclude=timing)
    return found


def _below(pid):
    """The processes that it has started, and theirs (Linux)."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    own = [int(p) for p in path.read_text().split()] if path.is_file() else []
    return [*own, *(p for child in own for p in _below(child))]


def _torment(start, folder, jobs, rounds, whole, generator):
    """Kill the run, or one of its workers, so many times; a run that is left its life may end."""
    for _ in range(rounds):
        process = start(folder, jobs)
        time.sleep(generator.uniform(0.05, 1.0) * whole)
        children = _below(process.pid) if process.poll() is None else []
        victim = generator.choice([process.pid, *children])
        if process.poll() is not None:
            continue
        os.kill(victim, signal.SIGKILL)
        process.wait(timeout=600)
        deadline = time.monotonic() + 60
        while any(Path(f"/proc/{p}").exists() for p in children) and time.monotonic() < deadline:
            time.sleep(0.05)  # orphans end by themselves, at their next step


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_killed_at_random_moments_and_resumed_equals_uninterrupted(bench, tmp_path, jobs):
    began = time.monotonic()
    assert bench(tmp_path / "whole", jobs).wait() == 0
    whole = time.monotonic() - began
    _torment(bench, tmp_path / "killed", jobs, rounds=5, whole=whole, generator=random.Random(jobs))
    for _ in range(3):  # a failure is a record, too, and is tried again
        if bench(tmp_path / "killed", jobs).wait() == 0:
            break
    expected = _results(tmp_path / "whole")
    assert len(expected) == 3 * 3 + 3 * 2
    assert _results(tmp_path / "killed") == expected
