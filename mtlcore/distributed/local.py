"""What one process finds in its own batch, before anybody hears of it."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from mtlcore import reading
from mtlcore.contracts import Needs
from mtlcore.distributed.roster import Roster
from mtlcore.distributed.sharded import Sharded
from mtlcore.errors import NonFiniteError
from mtlcore.gradients import graph
from mtlcore.gradients.batch import Batch
from mtlcore.gradients.features_only import AtFeatures
from mtlcore.gradients.jacobian import Stored
from mtlcore.gradients.task_gradients import TaskGradients
from mtlcore.presence import Presence


@dataclasses.dataclass(frozen=True)
class Local:
    """One evaluated batch, differentiated as far as the method asks.

    Args:
        batch: the forward pass.
        presence: the tasks that came (in micro-batches: in any of them).
        found: their task gradients.
        reason: which source made them, and why.
        kept: whether the last weights are to be used again.
        values: the k losses, where they have been read already.
    """

    batch: Batch
    presence: Presence
    found: TaskGradients
    reason: str
    kept: bool = False
    values: list[float] | None = None

    @property
    def has_gramian(self) -> bool:
        """Whether the step reads one."""
        return not self.kept and not self.found.weights_whole_losses

    @property
    def kind(self) -> str:
        """What the processes add up: they must all have the same."""
        if isinstance(self.found, Sharded):
            return f"shards, {self.found.mode}, {len(self.batch.features)} features"  # where a task's pass may begin
        if self.found.weights_whole_losses:
            return "losses"
        return "features" if isinstance(self.found, AtFeatures) else "rows"

    def described(self, needs: Needs) -> str:
        """What is averaged, in words for a report."""
        if self.found.weights_whole_losses:
            return "mean losses, and gradients averaged"
        if isinstance(self.found, AtFeatures) or (isinstance(self.found, Sharded) and self.found.mode != "rows"):
            return "Gramians of disjoint samples, and gradients, averaged"
        if isinstance(self.found, Sharded):
            whole = " gathered whole (K x P numbers on each process)" if needs == Needs.JACOBIAN else ""
            return f"shards of mean rows{whole}"
        if needs == Needs.JACOBIAN:
            return "whole rows averaged"
        return "rows averaged, each process with a share of the columns,"

    def checked(self) -> Local:
        """Itself with its losses read, all finite: a Gramian of the means would not say whose are not.

        Raises:
            NonFiniteError: a loss or a gradient is NaN or infinite; names the tasks.
        """
        values = self.values
        if values is None:
            values, _ = reading.read(self.batch, self.found, None)
        names = self.presence.present
        if isinstance(self.found, AtFeatures):
            reading.checked(self.found.gramian().cpu(), names)
        elif not isinstance(self.found, Sharded) and not self.found.weights_whole_losses:
            sums = self.found.rows().sum(1).tolist()
            bad = [i for i, s in enumerate(sums) if not graph.finite([torch.tensor(s)])]
            bad = [i for i in bad if not bool(torch.isfinite(self.found.rows()[i]).all())]
            if bad:
                raise NonFiniteError(
                    f"the gradient of task {' and '.join(repr(names[i]) for i in bad)} is NaN or infinite. Parameters, "
                    f"method state and .grad are untouched."
                )
        return dataclasses.replace(self, values=values)

    def reached(self) -> frozenset[int]:
        """Identities of the leaves whose ``.grad`` this process would write."""
        if isinstance(self.found, Stored):
            own = [id(t) for pairs in self.found.heads for t, _ in pairs]
            return frozenset([*map(id, self.found.used), *own])
        return frozenset(self.batch.leaves)

    def unknown(self, roster: Roster) -> dict[str, list[Tensor]]:
        """By task, the parameters that the roster lacks."""
        if isinstance(self.found, Stored):
            return {
                name: [t for t, _ in pairs if roster.is_new(t)]
                for name, pairs in zip(self.presence.present, self.found.heads)
            }
        if not any(map(roster.is_new, self.batch.leaves.values())):
            return {name: [] for name in self.batch.names}
        return roster.unknown(self.batch)
