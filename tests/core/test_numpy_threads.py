"""numpy's linear algebra keeps to one thread while a method for many tasks is asked."""

from __future__ import annotations

import contextlib

import pytest
import threadpoolctl
import torch

from mtlcore import Aggregation, aggregate
from mtlcore.numpy_threads import numpy_on_one_thread
from support.methods import Calls


def threads_by_library():
    return {d["filepath"]: d["num_threads"] for d in threadpoolctl.threadpool_info() if d["user_api"] == "blas"}


@pytest.fixture
def blas_threads():
    """Asks for the numbers of threads. All are two now, but of libraries that are built for one: another test may have
    loaded such a one."""
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        able = {file for file, n in threads_by_library().items() if n == 2}
        assert able, "numpy's own"

        def now():
            return {n for file, n in threads_by_library().items() if file in able}

        yield now
        assert now() == {2}, "as before"


def test_numpy_keeps_to_one_thread_until_the_last_has_left(blas_threads):
    with numpy_on_one_thread():
        with contextlib.suppress(ZeroDivisionError), numpy_on_one_thread():
            assert blas_threads() == {1}
            raise ZeroDivisionError
        assert blas_threads() == {1}
    assert blas_threads() == {2}


@pytest.mark.parametrize(("k", "expected"), [(2, 2), (16, 1), (40, 1)])
def test_a_method_for_many_tasks_has_numpy_on_one_thread(blas_threads, k, expected):
    seen = []

    def look(view, state):
        seen.append(blas_threads())
        return Aggregation(weights=torch.ones(view.n_tasks), state=state)

    aggregate(Calls(look), torch.eye(k, 50))
    assert seen[0] == {expected}
