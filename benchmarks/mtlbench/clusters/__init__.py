"""The runs of a suite on other machines, by a scheduler that is there already: Dask or Ray.

Not through joblib, whose backends for them give their results only at the end: a record is written when its run
finishes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Cluster(Protocol):
    """Where runs are done instead of on this machine."""

    def spread(self, work: list[functools.partial[T]], instead: Callable[..., T]) -> Iterator[T]:
        """Results in the order in which they finish, as :func:`mtlbench.workers.parallel` gives them.

        A worker that dies takes its run with it. The scheduler tries that again elsewhere, and after some attempts the
        result is that of ``instead``, called with the same arguments and ``why``.

        Raises:
            ConfigurationError: no scheduler answers, or its workers cannot do the runs.
            MissingExtraError: the scheduler's package is not installed.
        """
        ...
