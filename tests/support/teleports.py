"""The smallest detector and teleport there are, for tests of what happens around them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mtlcore import Conflict, ConflictDetector, Displacement, TeleportStrategy


@dataclass(frozen=True)
class always(ConflictDetector):
    """Cries conflict whatever it sees; its severity is the first task's gradient norm."""

    def detect(self, view):
        k = view.n_tasks
        return Conflict(True, float(view.gramian[0, 0].sqrt()), torch.zeros(k, k).bool(), torch.zeros(k).bool())


@dataclass(frozen=True)
class Shift(TeleportStrategy):
    """Adds a constant to the first parameter of the trunk."""

    by: float = 0.0

    def propose(self, problem, generator):
        name, p = next(iter(problem.parameters().items()))
        return Displacement(parameters={name: p.detach() + self.by})
