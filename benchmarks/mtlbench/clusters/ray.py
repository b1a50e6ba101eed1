"""Work on a Ray cluster: each run in a worker process of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import socket
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from mtlbench import workers
from mtlcore.errors import ConfigurationError, MissingExtraError

T = TypeVar("T")

RETRIES = 3
"""Of a run whose worker dies: Dask's default, too."""


@dataclasses.dataclass(frozen=True)
class Ray:
    """A Ray cluster.

    Args:
        address: of its head, as ``ray start --head`` prints it; "auto": the one that runs on this machine; "local": one
            that is started for these runs and stopped after them.
    """

    address: str

    def spread(self, work: list[functools.partial[T]], instead: Callable[..., T]) -> Iterator[T]:
        """See :class:`mtlbench.clusters.Cluster`."""
        ray = _ray()
        with _connected(ray, self.address):
            # One core for each run: Ray never gives a worker process two tasks at the same time.
            there = ray.remote(num_cpus=1, max_retries=RETRIES)(workers.elsewhere)
            left = {there.remote(task, workers.here()): task for task in work}
            try:
                while left:
                    (done,), _ = ray.wait(list(left))
                    task = left.pop(done)
                    try:
                        yield ray.get(done)
                    except ray.exceptions.RayTaskError:
                        raise  # a fault of ours: a run that fails is a record
                    except ray.exceptions.RayError as error:
                        yield instead(*task.args, why=f"its workers died, one after the other: {error}")
            finally:
                for reference in left:  # nobody waits for them any more
                    with contextlib.suppress(Exception):
                        ray.cancel(reference, force=True)


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("ray", "ray", "--ray") from error
    return ray


def _knock(address: str) -> None:
    """Raise OSError if nobody listens there: Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), timeout=30).close()


@contextlib.contextmanager
def _connected(ray: Any, address: str) -> Iterator[None]:
    """A connection of the caller's own is used, and stays."""
    if ray.is_initialized():
        yield
        return
    try:
        _knock(address)
        ray.init(address, log_to_driver=False, logging_level="error")
    except (ConnectionError, OSError, ValueError, RuntimeError) as error:
        raise ConfigurationError(
            f"no Ray cluster answers at {address!r} ({error}). `ray start --head` prints the address when it starts."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
