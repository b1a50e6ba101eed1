"""Conflicts layer by layer, the basis of Recon's scores."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mtlcore import Conflict, ConflictDetector, Needs, StepView, linalg, number, vector
from mtlcore.errors import ConfigurationError
from mtlplugins.detectors import angles


@dataclass(frozen=True)
class LayerConflict(ConflictDetector):
    """cos(g_i^l, g_j^l) < -threshold for some layer l and some pair of tasks. [Shi et al. 2023, Recon: official code]

    Recon counts such pairs per layer during the first part of a training run, makes the layers with the largest counts
    task-specific, and trains the new network from the start. ``diagnostics["layer_conflicts"]`` has the counts of the
    step, one per group of ``sizes``; :class:`mtlplugins.recon.LayerScores` adds them up and ranks the layers. The
    paper's S is -threshold: 0 on Cityscapes, -0.02 on NYUv2, -0.1 on Multi-Fashion+MNIST [official code].

    Args:
        threshold: in [0, 1).
        sizes: numbers of parameters per layer, in the trunk's order (:func:`mtlplugins.layers.sizes_of`); None: the
            whole trunk is one layer, and the verdict is that of ``cosine``.

    ``severity`` is minus the smallest cosine in any layer; the verdict is exactly severity > threshold. It does not
    depend on the scale of a task's gradient. Cost: the rows.

    Raises:
        ConfigurationError: the sizes are not whole numbers, or their sum is not the number of the trunk's parameters.
    """

    needs = Needs.JACOBIAN
    paper = "https://openreview.net/forum?id=ivwZO-HnzG_"
    claims = frozenset({"permutation-equivariant", "scale-free"})

    threshold: float = number(0.0, low=0.0, high=1.0, open_high=True)
    sizes: tuple[float, ...] | None = vector(None, low=1.0)

    def detect(self, view: StepView) -> Conflict:
        """The verdict on the tasks of ``view``."""
        rows = view.jacobian
        counts, severities = [], []
        pairs = torch.zeros(view.n_tasks, view.n_tasks, dtype=torch.bool, device="cpu")
        for block in rows.split(self._sizes(rows.shape[1]), dim=1):
            cos = angles.pairwise(linalg.gramian(block).cpu())
            found = angles.negative(cos, self.threshold)
            pairs |= found
            counts.append(int(found.sum()) // 2)
            severities.append(-angles.smallest(cos) + 0.0)
        severity = max(severities)
        return Conflict(
            conflicting=severity > self.threshold,
            severity=severity,
            pairs=pairs,
            dominated=angles.negative(angles.with_mean(view.gramian)),
            diagnostics={
                "layer_conflicts": torch.tensor(counts, device="cpu"),
                "layer_severity": torch.tensor(severities, device="cpu"),
            },
        )

    def _sizes(self, n: int) -> list[int]:
        if self.sizes is None:
            return [n]
        if any(s != int(s) for s in self.sizes) or sum(self.sizes) != n:
            raise ConfigurationError(
                f"layer-conflict: sizes must be whole numbers that sum to the trunk's {n} parameters, found "
                f"{', '.join(f'{s:g}' for s in self.sizes)}; mtlplugins.layers.sizes_of(trunk) makes them."
            )
        return [int(s) for s in self.sizes]
