"""Work on a Dask cluster: the same runs on other machines, one process of one thread each."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from mtlbench import workers
from mtlcore.errors import ConfigurationError, MissingExtraError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Dask:
    """A Dask cluster.

    Args:
        address: of its scheduler, as ``dask scheduler`` prints it.
    """

    address: str

    def spread(self, work: list[functools.partial[T]], instead: Callable[..., T]) -> Iterator[T]:
        """See :class:`mtlbench.clusters.Cluster`."""
        distributed = _distributed()
        with _client(distributed, self.address) as client:
            _check(client, self.address)
            futures = {client.submit(workers.elsewhere, task, workers.here(), pure=False): task for task in work}
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
