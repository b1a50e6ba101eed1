"""Work side by side in processes that may die."""

from __future__ import annotations

import functools
import os
import platform
import re
import signal
import warnings
from collections.abc import Callable, Iterator
from typing import TypeVar

from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky.process_executor import TerminatedWorkerError

T = TypeVar("T")


def parallel(work: list[functools.partial[T]], jobs: int, instead: Callable[..., T]) -> Iterator[T]:
    """Results in the order in which they finish. Ctrl-C ends the workers; what is on disk stays valid.

    A worker that dies (a crash in native code, out of memory) takes with it what its siblings are at. Then whatever may
    be to blame is done again, one at a time; for what dies a second time the result is that of ``instead``, called with
    the same arguments and ``why``. Without workers (one job) a death is ours.
    """
    if jobs == 1:
        yield from (task() for task in work)
        return
    left = dict(enumerate(work))
    while left:
        try:
            for i, result in _in_workers(list(left.items()), jobs):
                del left[i]
                yield result
        except TerminatedWorkerError:
            for i in list(left)[:jobs]:  # they are begun in this order
                task = left.pop(i)
                try:
                    ((_, result),) = _in_workers([(i, task)], jobs)
                except TerminatedWorkerError as error:
                    codes = re.search(r"\{.*\}", str(error))
                    why = f"its process died ({codes[0] if codes else 'no exit code'}): a crash, or out of memory"
                    result = instead(*task.args, why=why)
                yield result


def _in_workers(work: list[tuple[int, functools.partial[T]]], jobs: int) -> Iterator[tuple[int, T]]:
    with parallel_config(backend="loky", inner_max_num_threads=1), warnings.catch_warnings():
        # Workers grow while they cache data, and are stopped on Ctrl-C: joblib warns about both, and both are meant.
        warnings.filterwarnings("ignore", message="A worker stopped while some jobs")
        warnings.filterwarnings("ignore", message=".* tasks which were still being processed")
        results = Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1, pre_dispatch=jobs)(
            delayed(_in_worker)(i, task, os.getpid()) for i, task in work
        )
        try:
            yield from results
        except BaseException:
            from joblib.externals.loky import get_reusable_executor

            get_reusable_executor().shutdown(wait=False, kill_workers=True)
            raise


def _in_worker(i: int, task: functools.partial[T], parent: int) -> tuple[int, T]:
    if os.getpid() != parent:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
        global _runner
        work_for_others()
        if os.getppid() == parent:
            _runner = parent
    return i, task()


_worker = False
_runner: int | None = None  # in a worker process: who will write down what it finds


Process = tuple[str, int]
"""(name of the machine, number of the process)."""


def here() -> Process:
    """This process."""
    return platform.node(), os.getpid()


def elsewhere(task: functools.partial[T], runner: Process) -> T:
    """What a cluster's worker does, which may be this very process in a test."""
    if here() != runner:
        work_for_others()
    return task()


def work_for_others() -> None:
    """From now on :func:`is_worker` is true here."""
    global _worker
    _worker = True


def is_worker() -> bool:
    """Whether this process works for another one, which goes on if this one dies."""
    return _worker


def end_if_orphaned() -> None:
    """To be called in a worker now and then."""
    if _runner is not None and os.getppid() != _runner:
        os._exit(1)  # the runner was killed, and the next one repeats this job
