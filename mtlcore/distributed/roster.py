"""The parameters outside of the trunk, in one order on all processes.

A step is told the trunk, not the heads: they are found behind the losses. A process that lacks a task in its batch does
not find that task's head, and must take part in its mean all the same; else its copy of the head would differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from mtlcore.distributed.agreement import fingerprint
from mtlcore.distributed.wire import Wire
from mtlcore.errors import ConfigurationError
from mtlcore.gradients import graph
from mtlcore.gradients.batch import Batch


class Roster:
    """Known parameters; the position of each is the same on all processes.

    Args:
        trunk: the trunk's parameters, which are not among them.
        told: those that the user named, in heads and optimizer.
    """

    def __init__(self, trunk: Iterable[Tensor], told: Iterable[Tensor]) -> None:
        self._trunk = {id(p) for p in trunk}
        self.known: list[Tensor] = []
        self.where: dict[int, int] = {}
        for p in told:
            self._append(p)

    def _append(self, parameter: Tensor) -> None:
        if id(parameter) not in self._trunk and id(parameter) not in self.where:
            self.where[id(parameter)] = len(self.known)
            self.known.append(parameter)

    def is_new(self, leaf: Tensor) -> bool:
        """Whether it is a parameter that has not been met. Other leaves (an input that requires gradients) belong to
        the process that made them."""
        return isinstance(leaf, nn.Parameter) and id(leaf) not in self._trunk and id(leaf) not in self.where

    def unknown(self, batch: Batch) -> dict[str, list[Tensor]]:
        """By task, the new parameters that its loss reaches, in the order of the graph."""
        return {
            name: [t for t in graph.leaves([loss])[0].values() if self.is_new(t)]
            for name, loss in zip(batch.names, batch.losses)
        }

    def learn(self, wire: Wire, tasks: Sequence[str], found: dict[str, list[Tensor]]) -> None:
        """Give the new parameters their positions; every process calls it.

        Raises:
            ConfigurationError: a process has not met a parameter that others have, or has another one in its place.
        """
        leaves = list({id(t): t for mine in found.values() for t in mine}.values())
        prints = dict(zip(map(id, leaves), fingerprint(leaves)))
        labels = {id(t): i for i, t in enumerate(leaves)}
        said = {name: [(labels[id(t)], prints[id(t)]) for t in mine] for name, mine in found.items()}
        everybody = wire.objects(said)
        numbers: list[dict[int, int]] = [{} for _ in everybody]
        count = 0
        for task in tasks:
            having = [r for r, said in enumerate(everybody) if task in said]
            if not having:
                continue
            for position, (label, _) in enumerate(everybody[having[0]][task]):
                number = numbers[having[0]].get(label, count)
                count = max(count, number + 1)
                for r in having:
                    self._assign(everybody, numbers, r, having[0], task, position, number)
        _check_met(everybody, numbers, count, tasks)
        by_number = {n: label for label, n in numbers[wire.rank].items()}
        for n in range(count):
            self._append(leaves[by_number[n]])

    @staticmethod
    def _assign(
        everybody: Sequence[dict[str, list[tuple[int, str]]]],
        numbers: list[dict[int, int]],
        rank: int,
        first: int,
        task: str,
        position: int,
        number: int,
    ) -> None:
        mine, theirs = everybody[rank][task], everybody[first][task]
        same = len(mine) == len(theirs) and mine[position][1] == theirs[position][1]
        if not same or numbers[rank].setdefault(mine[position][0], number) != number:
            raise ConfigurationError(
                f"processes {first} and {rank} reach different parameters outside of the trunk from task {task!r}, or "
                f"the same with other values: {len(theirs)} and {len(mine)} of them. Make the heads in the same way on "
                f"every process, and hand them over: MultiTask(..., heads=heads)."
            )


def _check_met(
    everybody: Sequence[dict[str, list[tuple[int, str]]]],
    numbers: Sequence[dict[int, int]],
    count: int,
    tasks: Sequence[str],
) -> None:
    for rank, mine in enumerate(numbers):
        if len(set(mine.values())) < count:
            missing = [t for t in tasks if t not in everybody[rank]]
            raise ConfigurationError(
                f"process {rank} has no batch of task {' and '.join(map(repr, missing)) or '(none)'} and has not met "
                f"all parameters of its head yet, so that its copy of them would stay behind: hand them over "
                f"with MultiTask(..., heads=heads) or optimizer=..., or begin with a batch that has every task on "
                f"every process."
            )
