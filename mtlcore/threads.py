"""Jobs side by side in threads, each with its share of torch's own threads.

torch spreads one operation over its intra-op threads, which pays for large products and costs more than it brings for
small ones. K independent passes through one graph can be spread over the same processors instead: one pass per
thread, every operation on its own. Torch releases Python's lock while it computes, so the passes really overlap.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import torch

Job = Callable[[], object]

_pool: ThreadPoolExecutor | None = None
_SOFT = 1
"""omp_pause_soft of OpenMP 5: let go of the threads, keep what they know."""
_pause: Callable[[int], int] | None = None
with contextlib.suppress(AttributeError, OSError, TypeError):  # an old OpenMP, or a system that hides its symbols
    _pause = ctypes.CDLL(None).omp_pause_resource_all


def available() -> int:
    """How many jobs may run side by side: torch's intra-op threads (``torch.set_num_threads``) on this thread."""
    return torch.get_num_threads()


def side_by_side(jobs: Sequence[Job]) -> None:
    """Run all jobs and return when none is running any more.

    With n threads at hand, full rounds of n jobs run on one thread each; a last round of fewer jobs shares the n
    threads out among them, so that no processor idles.

    Raises:
        Whatever a job raised first; the jobs that had not begun then are not begun.
    """
    n = available()
    rest = len(jobs) % n
    full = len(jobs) - rest
    if n == 1 or len(jobs) == 1:
        for job in jobs:
            job()
        return
    if full:
        _round(jobs[:full], n, 1)
    if rest:
        _round(jobs[full:], rest, n // rest)


def _round(jobs: Sequence[Job], workers: int, width: int) -> None:
    """``workers`` threads, this one among them, take jobs in order, each with ``width`` intra-op threads."""
    before = torch.get_num_threads()
    waiting = collections.deque(jobs)

    def work() -> None:
        _dismiss()  # this worker's own, of an earlier round that shared threads out
        torch.set_num_threads(width)  # of the calling thread; the setting of the others is untouched
        try:
            while True:
                try:
                    job = waiting.popleft()
                except IndexError:
                    return
                job()
        except BaseException:
            waiting.clear()
            raise

    _dismiss()  # before anybody works
    others: list[Future[None]] = []
    try:
        for _ in range(workers - 1):
            others.append(_executor().submit(work))
        work()
        wait(others)
    finally:
        # Also after an error or Ctrl-C here: nobody may still be in the graph when the caller goes on.
        torch.set_num_threads(before)
        waiting.clear()
        wait(others)
    for other in others:
        other.result()


def _dismiss() -> None:
    """Let go of OpenMP's idle threads. After an operation that was spread over them they wait for the next one without
    sleeping, for milliseconds, on the very processors that the jobs are meant for. The next one that is spread starts
    them anew, which takes a tenth of a millisecond."""
    if _pause is not None:
        _pause(_SOFT)  # refused inside a parallel region, with no harm done


def _executor() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        # Threads are started when first needed, and idle ones are taken again.
        _pool = ThreadPoolExecutor(max_workers=max(1, (os.cpu_count() or 1) * 2), thread_name_prefix="mtlcore")
    return _pool


def _forget() -> None:
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)  # a forked child has none of its parent's threads


_guard = threading.Lock()
_guests = 0
_limits: Any = None


@functools.cache
def _blas() -> Any:
    import threadpoolctl  # not needed before a step, and numpy is loaded by now

    return threadpoolctl.ThreadpoolController().select(user_api="blas")


@contextlib.contextmanager
def numpy_on_one() -> Iterator[None]:
    """Inside, numpy's linear algebra keeps to the calling thread, for the whole process.

    From a few dozen rows on it would wake threads of its own, beside torch's, which wait without sleeping on the very
    same cores: a K x K problem then takes several times as long.
    """
    global _guests, _limits
    with _guard:
        _guests += 1
        if _guests == 1:
            _limits = _blas().limit(limits=1)
    try:
        yield
    finally:
        with _guard:
            _guests -= 1
            if _guests == 0:
                _limits.restore_original_limits()
