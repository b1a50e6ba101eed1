"""Jobs side by side: all are done, on the threads promised, and nobody is left behind after an error."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time

import pytest
import threadpoolctl
import torch

from mtlcore import Aggregation, aggregate, threads
from support.methods import Calls

pytestmark = pytest.mark.usefixtures("two_threads")


def test_full_rounds_take_one_thread_each_and_the_rest_shares_them():
    seen = []

    def job(i):
        time.sleep(0.01)
        seen.append((i, threading.get_ident(), torch.get_num_threads()))

    threads.side_by_side([lambda i=i: job(i) for i in range(5)])
    assert sorted(i for i, _, _ in seen) == [0, 1, 2, 3, 4]
    assert [width for i, _, width in sorted(seen)] == [1, 1, 1, 1, 2]
    assert len({who for i, who, _ in seen if i < 4}) == 2
    assert torch.get_num_threads() == 2


def test_jobs_really_overlap():
    barrier = threading.Barrier(2, timeout=20)
    threads.side_by_side([barrier.wait, barrier.wait])  # one after the other, the first would wait in vain


def test_idle_threads_are_let_go_of_before_any_job_begins(monkeypatch):
    events, executor = [], threads._executor()
    submit = executor.submit
    monkeypatch.setattr(threads, "_pause", events.append)
    monkeypatch.setattr(executor, "submit", lambda job: events.append("begins") or submit(job))
    threads.side_by_side([lambda: events.append("job")] * 2)
    assert events[:2] == [1, "begins"]  # omp_pause_soft
    assert events.count("job") == 2


def test_without_such_a_call_jobs_run_all_the_same(monkeypatch):
    done = []
    monkeypatch.setattr(threads, "_pause", None)
    threads.side_by_side([lambda: done.append(1)] * 3)
    assert len(done) == 3


# Elsewhere torch has another OpenMP, which puts its threads to sleep instead of ending them.
@pytest.mark.skipif(sys.platform != "linux", reason="counts this process's threads in /proc")
def test_idle_threads_of_torch_do_not_run_beside_the_jobs():
    def count():
        return len(os.listdir("/proc/self/task"))

    threads.side_by_side([lambda: None] * 4)  # the pool's own threads exist from here on
    before = count()
    big = torch.ones(1 << 20)
    big.mul(2.0)  # spread over torch's threads
    assert count() > before
    seen = []
    threads.side_by_side([lambda: seen.append(count())] * 2)
    assert max(seen) <= before
    big.mul(2.0)
    assert count() > before  # they come back


def test_one_thread_or_one_job_runs_here():
    here = []
    threads.side_by_side([lambda: here.append(threading.get_ident())])
    torch.set_num_threads(1)
    threads.side_by_side([lambda: here.append(threading.get_ident())] * 3)
    assert set(here) == {threading.get_ident()}
    assert len(here) == 4


@pytest.mark.parametrize("fails", [0, 1])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_ends_it_and_waits_for_who_is_still_at_work(fails, error):
    finished, begun = [], threading.Barrier(2, timeout=20)

    def bad():
        begun.wait()
        raise error("no")

    def slow():
        begun.wait()
        time.sleep(0.05)
        finished.append("slow")

    jobs = [slow, slow, lambda: finished.append("late"), lambda: finished.append("later")]
    jobs[fails] = bad
    with pytest.raises(error, match="no"):
        threads.side_by_side(jobs)
    assert finished[:1] == ["slow"]
    assert torch.get_num_threads() == 2


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals to threads on this system")
def test_ctrl_c_while_it_waits_leaves_nobody_at_work():
    """The caller's own job is done, another's is not."""
    caller, finished = threading.get_ident(), []
    begun = threading.Barrier(2, timeout=20)

    def job():
        begun.wait()
        if threading.get_ident() != caller:
            time.sleep(0.1)  # the caller is waiting by then
            signal.pthread_kill(caller, signal.SIGINT)
            time.sleep(0.2)
            finished.append("other")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell runs in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            threads.side_by_side([job, job])
    finally:
        signal.signal(signal.SIGINT, before)
    assert finished == ["other"]
    assert torch.get_num_threads() == 2


def test_jobs_may_themselves_share_out_work():
    done = []
    inner = [lambda: done.append(1)] * 3
    threads.side_by_side([lambda: threads.side_by_side(inner)] * 4)
    assert len(done) == 12


def blas_threads():
    return {d["num_threads"] for d in threadpoolctl.threadpool_info() if d["user_api"] == "blas"}


@pytest.fixture
def two_for_numpy():
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        assert blas_threads() <= {2}
        yield
        assert blas_threads() <= {2}, "as before"


def test_numpy_keeps_to_one_thread_until_the_last_has_left(two_for_numpy):
    with threads.numpy_on_one():
        with contextlib.suppress(ZeroDivisionError), threads.numpy_on_one():
            assert blas_threads() <= {1}
            raise ZeroDivisionError
        assert blas_threads() <= {1}
    assert blas_threads() <= {2}


@pytest.mark.parametrize(("k", "expected"), [(2, 2), (16, 1), (40, 1)])
def test_a_method_for_many_tasks_has_numpy_on_one_thread(two_for_numpy, k, expected):
    seen = []

    def look(view, state):
        seen.append(blas_threads())
        return Aggregation(weights=torch.ones(view.n_tasks), state=state)

    aggregate(Calls(look), torch.eye(k, 50))
    assert seen[0] <= {expected}
