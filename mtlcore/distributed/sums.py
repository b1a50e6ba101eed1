"""The micro-batches of a step whose trunk is in shards, added up."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from mtlcore.distributed.dtensors import is_sharded
from mtlcore.errors import ConfigurationError
from mtlcore.gradients.task_gradients import Pair


@dataclasses.dataclass
class Sums:
    """So far. Of means over the processes, and of what is this process's own.

    Args:
        rows: by task, (1/R) sum over processes, the columns of this process.
        heads: by task, gradients outside of the trunk: FSDP's means, and apart from them those of this process.
        losses: of this process, by task that it had.
        used: which parameters of the trunk some task reached.
        uneven: whether a process lacked a task of a micro-batch, so that each has met other heads.
        count: how many micro-batches there were.
        overflowed: whether a loss was not finite under a ``GradScaler``.
    """

    rows: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    heads: dict[str, dict[tuple[int, bool], Pair]] = dataclasses.field(default_factory=dict)
    losses: dict[str, float] = dataclasses.field(default_factory=dict)
    used: list[bool] = dataclasses.field(default_factory=list)
    uneven: bool = False
    count: int = 0
    overflowed: bool = False
    _shared: Sequence[Tensor] = ()
    _versions: Sequence[int] = ()

    def check(self, shared: Sequence[Tensor]) -> None:
        """
        Raises:
            ConfigurationError: other parameters than in the micro-batches before require gradients, or one of them was
                changed in between.
        """
        versions = [p._version for p in shared]
        if not self.count:
            self._shared, self._versions = shared, versions
        elif list(map(id, self._shared)) != list(map(id, shared)) or versions != self._versions:
            raise ConfigurationError(
                "parameters of the trunk were changed, frozen or unfrozen between two micro-batches of one step: their "
                "gradients belong to different points. Do that after backward(losses) only. The micro-batches so far "
                "are forgotten."
            )

    def begin(self, losses: Mapping[str, float], uneven: bool) -> None:
        """One more micro-batch; ``losses`` of this process."""
        self.count += 1
        self.uneven |= uneven
        for name, value in losses.items():
            self.losses[name] = self.losses.get(name, 0.0) + value

    def add_row(self, name: str, row: Tensor) -> None:
        """Of one task, all of this process's columns; kept."""
        self.rows[name] = self.rows[name].add_(row) if name in self.rows else row

    def add_heads(self, name: str, pairs: Iterable[Pair]) -> None:
        """Gradients of one task outside of the trunk."""
        sums = self.heads.setdefault(name, {})
        for leaf, g in pairs:
            key = id(leaf), is_sharded([g])
            sums[key] = (leaf, sums[key][1] + g if key in sums else g)
