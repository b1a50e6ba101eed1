"""Imbalance: the lengths of the task gradients differ by a large factor."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from mtlcore import Conflict, ConflictDetector, Needs, StepView, number
from mtlplugins.detectors import angles


@dataclass(frozen=True)
class Imbalance(ConflictDetector):
    """Magnitude imbalance: max_i |g_i| / min_i |g_i| > ratio, over the tasks whose gradient is not zero. [choice]

    In COST imbalance is what turns a weak conflict into domination; this detector looks at imbalance only.

    Args:
        ratio: largest ratio of gradient norms that does not count as a conflict.

    ``severity`` is log(max |g_i| / min |g_i|) >= 0 (natural logarithm); the verdict is exactly severity > log(ratio).
    ``pairs`` are the pairs of tasks with a ratio larger than ``ratio``. With fewer than two non-zero gradients there is
    no conflict and the severity is 0.
    """

    needs = Needs.GRAMIAN
    paper = "https://arxiv.org/abs/2503.04046"
    claims = frozenset({"permutation-equivariant", "scale-free", "matches-reference"})

    ratio: float = number(10.0, low=1.0, log=True)

    def detect(self, view: StepView) -> Conflict:
        """The verdict on the tasks of ``view``."""
        gram = view.gramian
        size = angles.norms(gram)
        alive = size > 0.0
        largest = float(size[alive].max() / size[alive].min()) if bool(alive.any()) else 1.0
        return Conflict(
            conflicting=largest > self.ratio,
            severity=math.log(largest),
            pairs=_unequal(size, self.ratio),
            dominated=angles.negative(angles.with_mean(gram)),
            diagnostics={"norm_ratio": largest},
        )


def _unequal(size: Tensor, ratio: float) -> Tensor:
    """Pairs of non-zero gradients whose norms differ by more than ``ratio``."""
    alive = size > 0.0
    larger = (size[:, None] / size[None, :] > ratio) & alive[:, None] & alive[None, :]
    return larger | larger.T
