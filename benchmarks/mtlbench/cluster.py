"""Work on a Dask cluster: the same runs on other machines, one process of one thread each.

Not through joblib, whose Dask backend gives its results only at the end: a record is written when its run finishes.
"""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from mtlbench import workers
from mtlcore.errors import ConfigurationError, MissingExtraError

T = TypeVar("T")


def spread(work: list[functools.partial[T]], address: str, instead: Callable[..., T]) -> Iterator[T]:
    """Results in the order in which they finish, as :func:`mtlbench.workers.parallel` gives them.

    A worker that dies takes its run with it; Dask tries that again elsewhere, and after some attempts the result is
    that of ``instead``, called with the same arguments and ``why``.

    Raises:
        ConfigurationError: Dask is not installed, the scheduler does not answer, or a worker has several threads.
    """
    distributed = _distributed()
    with _client(distributed, address) as client:
        _check(client, address)
        here = (platform.node(), os.getpid())
        futures = {client.submit(_there, task, here, pure=False): task for task in work}
        for future in distributed.as_completed(list(futures)):
            task = futures.pop(future)
            try:
                yield future.result()
            except distributed.KilledWorker as error:
                yield instead(*task.args, why=f"its workers died, one after the other: {error}")


def _distributed() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise MissingExtraError("distributed", "cluster", "--dask") from error
    return distributed


def _client(distributed: Any, address: str) -> Any:
    try:
        return distributed.Client(address, timeout=30)
    except (OSError, TimeoutError, ValueError) as error:
        raise ConfigurationError(
            f"no Dask scheduler answers at {address!r} ({error}). `dask scheduler` prints its address when it starts."
        ) from error


def _check(client: Any, address: str) -> None:
    """Runs on threads of one process would share torch's random stream, and their numbers would be wrong."""
    found = client.scheduler_info(n_workers=-1)["workers"]
    many = sorted(name for name, worker in found.items() if worker["nthreads"] != 1)
    if many:
        raise ConfigurationError(
            f"the Dask workers {', '.join(many)} run several tasks in one process. Start them with `--nthreads 1`; "
            "`--nworkers N` gives a machine N of them."
        )
    if not found:
        raise ConfigurationError(
            f"the Dask scheduler at {address!r} has no workers: start some with `dask worker {address} --nthreads 1`."
        )


def _there(task: functools.partial[T], runner: tuple[str, int]) -> T:
    """Runs in a worker, which may be this very process in a test."""
    if (platform.node(), os.getpid()) != runner:
        workers.work_for_others()
    return task()
