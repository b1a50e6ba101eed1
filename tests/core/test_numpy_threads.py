"""numpy's linear algebra keeps to one thread while a method for many tasks is asked."""

from __future__ import annotations

import contextlib

import pytest
import threadpoolctl
import torch

from mtlcore import Aggregation, aggregate
from mtlcore.numpy_threads import numpy_on_one_thread
from support.methods import Calls


def blas_threads():
    return {d["num_threads"] for d in threadpoolctl.threadpool_info() if d["user_api"] == "blas"}


@pytest.fixture
def two_for_numpy():
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        assert blas_threads() <= {2}
        yield
        assert blas_threads() <= {2}, "as before"


def test_numpy_keeps_to_one_thread_until_the_last_has_left(two_for_numpy):
    with numpy_on_one_thread():
        with contextlib.suppress(ZeroDivisionError), numpy_on_one_thread():
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
