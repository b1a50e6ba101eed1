"""When a step may look for conflict and teleport."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from mtlcore.hyperparameters import Validated, integer


@dataclasses.dataclass(frozen=True)
class Brakes(Validated):
    """When a step may look for conflict and teleport. Without brakes: always.

    Args:
        start_step: no teleport before this step. [paper A.6; code: 50 of 200 epochs]
        cap: at most so many attempts per window, None for no cap. A window is an epoch if ``steps_per_epoch`` is given,
            else the whole run. [paper A.6; code: 1 per epoch]
        steps_per_epoch: length of a window.
        cooldown: at least so many steps between two attempts. [choice]
        detect_every: look for conflict only in every n-th step; for methods that need losses only, detection costs
            task gradients that the step would not compute otherwise. [choice]
    """

    start_step: int = integer(0, low=0)
    cap: int | None = integer(None, low=0)
    steps_per_epoch: int | None = integer(None, low=1)
    cooldown: int = integer(0, low=0)
    detect_every: int = integer(1, low=1)

    def allows(self, step: int, history: Sequence[int]) -> bool:
        """Whether a teleport may be tried in ``step``, given the steps in which one was tried before."""
        if step < self.start_step or (history and step - history[-1] < self.cooldown):
            return False
        if self.cap is None:
            return True
        window = self.steps_per_epoch
        tried = len(history) if window is None else sum(s // window == step // window for s in history)
        return tried < self.cap
