"""Weak conflict: a negative cosine between two task gradients."""

from __future__ import annotations

from dataclasses import dataclass

from mtlcore import Conflict, ConflictDetector, Needs, StepView, number
from mtlplugins.detectors import angles


@dataclass(frozen=True)
class Cosine(ConflictDetector):
    """Weak conflict: cos(g_i, g_j) < -threshold for some pair. [paper Def. 1; the threshold is a choice]

    Args:
        threshold: in [0, 1). 0 is the paper's definition.

    ``severity`` is minus the smallest cosine of two tasks, in [-1, 1]; the verdict is exactly severity > threshold.
    Fewer than two non-zero gradients: no conflict, severity 0.
    """

    needs = Needs.GRAMIAN
    paper = "https://arxiv.org/abs/2503.04046"
    claims = frozenset({"permutation-equivariant", "scale-free"})

    threshold: float = number(0.0, low=0.0, high=1.0, open_high=True)

    def detect(self, view: StepView) -> Conflict:
        """The verdict on the tasks of ``view``."""
        gram = view.gramian
        cos = angles.pairwise(gram)
        severity = -angles.smallest(cos) + 0.0
        return Conflict(
            conflicting=severity > self.threshold,
            severity=severity,
            pairs=angles.negative(cos, self.threshold),
            dominated=angles.negative(angles.with_mean(gram)),
            diagnostics={"smallest_cosine": -severity},
        )
