"""What one process finds in its own batch, before anybody hears of it."""

from __future__ import annotations

import dataclasses

from mtlcore.gradients.batch import Batch
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
