"""A script that runs the tiny suite on a Dask cluster of this machine, in a process of its own: the folder
`distributed` of these tests would hide Dask's package of that name."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import distributed
import mtlcore
from mtlbench import runner
from mtlcore.errors import ConfigurationError
from support import bench_tiny


def cluster(**options):
    return distributed.LocalCluster(dashboard_address=None, silence_logs=50, **options)


def run(folder: Path, address: str, **options) -> str:
    try:
        summary = runner.run(bench_tiny.suite(), folder, console=bench_tiny.quiet(), dask=address, **options)
    except ConfigurationError as error:
        return str(error)
    return f"{summary.finished} finished, {len(summary.failed)} failed"


def quick(out: Path) -> None:
    """Everything in this process."""
    mtlcore.add_plugin(bench_tiny.Plugin(), "tiny")
    with cluster(n_workers=1, threads_per_worker=1, processes=False) as there:
        print(run(out / "dask", there.scheduler_address))
    with cluster(n_workers=1, threads_per_worker=2, processes=False) as there:
        print(run(out / "threads", there.scheduler_address, certify=False))
    print(run(out / "nowhere", "nowhere", certify=False))


def killed(out: Path) -> None:
    """Two processes, of which one is killed while it is at work."""
    with cluster(n_workers=2, threads_per_worker=1, processes=True) as there:
        victim = next(iter(there.workers.values()))
        pid = victim.pid
        threading.Timer(2.0, lambda: os.kill(pid, signal.SIGKILL)).start()
        print(run(out / "dask", there.scheduler_address, certify=False))
        print("killed" if victim.process is None or victim.process.pid != pid else "alive")


if __name__ == "__main__":
    {"quick": quick, "killed": killed}[sys.argv[1]](Path(sys.argv[2]))
