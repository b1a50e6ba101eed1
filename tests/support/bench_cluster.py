"""A script that runs the tiny suite on a cluster of this machine, in a process of its own: the folder `distributed` of
these tests would hide Dask's package of that name."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import mtlcore
from mtlbench import runner
from mtlbench.clusters.dask import Dask
from mtlbench.clusters.ray import Ray
from mtlcore.errors import ConfigurationError
from support import bench_tiny


def cluster(**options):
    import distributed

    return distributed.LocalCluster(dashboard_address=None, silence_logs=50, **options)


def run(folder: Path, there, **options) -> str:
    try:
        summary = runner.run(bench_tiny.suite(), folder, console=bench_tiny.quiet(), cluster=there, **options)
    except ConfigurationError as error:
        return str(error)
    return f"{summary.finished} finished, {len(summary.failed)} failed"


def quick(out: Path) -> None:
    """Everything in this process."""
    mtlcore.add_plugin(bench_tiny.Plugin(), "tiny")
    with cluster(n_workers=1, threads_per_worker=1, processes=False) as there:
        print(run(out / "dask", Dask(there.scheduler_address)))
    with cluster(n_workers=1, threads_per_worker=2, processes=False) as there:
        print(run(out / "threads", Dask(there.scheduler_address), certify=False))
    print(run(out / "nowhere", Dask("nowhere"), certify=False))


def killed(out: Path) -> None:
    """Two processes, of which one is killed while it is at work."""
    with cluster(n_workers=2, threads_per_worker=1, processes=True) as there:
        victim = next(iter(there.workers.values()))
        pid = victim.pid
        threading.Timer(2.0, lambda: os.kill(pid, signal.SIGKILL)).start()
        print(run(out / "dask", Dask(there.scheduler_address), certify=False))
        print("killed" if victim.process is None or victim.process.pid != pid else "alive")


def rays(out: Path) -> None:
    """A Ray cluster of two workers, of which one is killed while it is at work; and one that is not there."""
    import psutil
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")

    def works(process) -> bool:
        try:
            return "ray::elsewhere" in " ".join(process.cmdline())
        except psutil.Error:  # it has ended
            return False

    def kill() -> None:
        busy = [p for p in psutil.Process().children(recursive=True) if works(p)]
        if busy:
            busy[0].kill()
            print("killed", flush=True)
        else:
            threading.Timer(0.2, kill).start()

    threading.Timer(0.2, kill).start()
    print(run(out / "ray", Ray("auto"), certify=False))
    ray.shutdown()
    print(run(out / "nowhere", Ray("127.0.0.1:1"), certify=False))


if __name__ == "__main__":
    {"quick": quick, "killed": killed, "rays": rays}[sys.argv[1]](Path(sys.argv[2]))
