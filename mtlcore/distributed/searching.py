"""What a teleport asks of the other processes: they search together, on the means of all batches, for one point."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from torch import Tensor

from mtlcore.distributed import agreement
from mtlcore.distributed.processes import Processes
from mtlcore.errors import ConfigurationError, PluginError
from mtlcore.presence import Presence

T = TypeVar("T")


class Searching:
    """Every collective begins with an exchange, so that a process that has failed is heard of.

    Args:
        processes: of the run, which are several.
    """

    def __init__(self, processes: Processes) -> None:
        assert processes.wire is not None
        self._processes = processes
        self._wire = processes.wire

    @property
    def size(self) -> int:
        """How many processes there are."""
        return self._wire.size

    def lacking(self, presence: Presence) -> list[str]:
        """The tasks that some processes have, and others have not."""
        counts = self._processes.exchange(None, "tasks", presence=presence).counts.tolist()
        return [n for n, c in zip(self._processes.names, counts) if 0 < c < self.size]

    def everywhere(self, work: Callable[[], tuple[Presence, list[float]]]) -> list[float]:
        """Mean losses of the tasks of ``work``, which all processes must have.

        Raises:
            ConfigurationError: some process lacks one of them.
        """
        found, error = self._processes.attempt(work)
        presence, values = (None, None) if found is None else found
        totals = self._processes.exchange(error, "evaluation", presence=presence, values=values)
        missing = [n for n, c in zip(self._processes.names, totals.counts.tolist()) if 0 < c < self.size]
        if missing:
            self._processes.refuse(
                ConfigurationError(
                    f"task {' and '.join(map(repr, missing))} is in the batch (or the probe) of some processes only: a "
                    f"teleport needs the same tasks on all of them."
                )
            )
        return self._processes.means_of(totals)[1]

    def mean(self, tensors: Sequence[Tensor]) -> None:
        """Each becomes the mean over the processes, in place."""
        self._wire.add(tensors, "teleport")
        for t in tensors:
            t.div_(self._wire.size)

    def alike(self, tensors: Mapping[str, Tensor], who: str) -> None:
        """
        Raises:
            PluginError: these are not the same bits on all processes; on all of them.
        """
        self._processes.exchange(None, "proposal")
        said = self._wire.objects(dict(zip(tensors, agreement.fingerprint(list(tensors.values())))))
        for rank, other in enumerate(said):
            if other != said[0]:
                name = next(n for n in dict.fromkeys([*said[0], *other]) if said[0].get(n) != other.get(n))
                self._processes.refuse(
                    PluginError(
                        f"{who} proposes another point on process {rank} than on process 0 ({name}): gradients that a "
                        f"strategy takes itself must go through problem.averaged(gradients), and chance through its "
                        f"generator."
                    )
                )

    def settled(self, work: Callable[[], T]) -> T:
        """Something of this process's own. Raises on all processes if it does on one."""
        return self._processes.settled(work)

    def averaged(self, leaves: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        """The means of gradients; None where no process has one."""
        return self._processes.averaged(leaves, gradients)
