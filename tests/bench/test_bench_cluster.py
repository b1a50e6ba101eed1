"""Runs on a cluster are the runs of this machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mtlbench import command, records, runner
from mtlcore.errors import ConfigurationError

SCRIPT = Path(__file__).parents[1] / "support" / "bench_cluster.py"


def _on_cluster(site, what, folder):
    command = [sys.executable, "-c", SCRIPT.read_text(), what, str(folder)]
    done = subprocess.run(command, env=site.environment, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def _results(folder):
    return {r.key: (r.metrics, r.delta_m, r.curves) for r in records.read(folder / "records.jsonl")[0] if r.ok}


def test_a_cluster_makes_the_same_records(tiny, tmp_path, bench_site):
    said, threads, nobody = _on_cluster(bench_site, "quick", tmp_path)
    assert said == "6 finished, 0 failed"
    assert "--nthreads 1" in threads
    assert "no Dask scheduler answers at 'nowhere'" in nobody
    runner.run(tiny.suite(), tmp_path / "here", console=tiny.quiet(), certify=False)
    assert _results(tmp_path / "dask") == _results(tmp_path / "here")


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_nothing(tiny, tmp_path, bench_site):
    script = tmp_path / "script.py"  # its processes import it again
    script.write_text(SCRIPT.read_text())
    done = subprocess.run(
        [sys.executable, script, "killed", tmp_path], env=bench_site.environment, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == ["6 finished, 0 failed", "killed"], done.stderr
    runner.run(tiny.suite(), tmp_path / "here", console=tiny.quiet(), certify=False)
    assert _results(tmp_path / "dask") == _results(tmp_path / "here")


@pytest.mark.slow
def test_ray_makes_the_same_records_and_repeats_what_a_killed_worker_lost(tiny, tmp_path, bench_site):
    pytest.importorskip("ray")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.read_text())
    environment = {**bench_site.environment, "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    done = subprocess.run([sys.executable, script, "rays", tmp_path], env=environment, capture_output=True, text=True)
    ours = [line for line in done.stdout.splitlines() if line and "(raylet)" not in line]
    assert len(ours) == 3, (ours, done.stderr)
    killed, said, nobody = ours
    assert (killed, said) == ("killed", "6 finished, 0 failed"), done.stderr
    assert "no Ray cluster answers at '127.0.0.1:1'" in nobody
    runner.run(tiny.suite(), tmp_path / "here", console=tiny.quiet(), certify=False)
    assert _results(tmp_path / "ray") == _results(tmp_path / "here")


def test_one_cluster_at_a_time():
    asked = CliRunner().invoke(command.app, ["run", "demo", "--dask", "tcp://one:8786", "--ray", "two:6379"])
    assert isinstance(asked.exception, ConfigurationError)
    assert str(asked.exception).startswith("--dask and --ray: ")
