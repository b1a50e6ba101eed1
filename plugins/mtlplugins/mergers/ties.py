"""``ties``: trim, elect a sign, average what agrees with it (Yadav et al. 2023)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from mtlcore import Merger, number
from mtlcore.contracts import Entries
from mtlplugins.mergers.task_arithmetic import RETURNS
from mtlplugins.mergers.trim import largest


@dataclasses.dataclass(frozen=True)
class Ties(Merger):
    """TIES-merging. [paper*]

    1. Trim: of each task vector the share ``density`` of the largest entries, over the whole model, is kept.
    2. Elect: the sign of an entry is that of its sum over the tasks.
    3. Merge: the mean over the tasks whose entry is not zero and has this sign, times ``scale``.

    If the sum is zero, the sign is positive. [choice]

    Proved: with density 1 and scale 1 the merger of one expert, or of equal experts, is that expert. With a smaller
    density this does not hold.

    Args:
        density: share of the entries that are kept; 0.2 [paper*].
        scale: factor of the merged task vector; 1 without validation data [paper*].
    """

    paper = "https://arxiv.org/abs/2306.01708"

    density: float = number(0.2, low=0.0, high=1.0, open_low=True)
    scale: float = number(1.0, low=0.0)

    @property
    def claims(self) -> frozenset[str]:  # type: ignore[override]
        """What is promised."""
        whole = self.density == 1.0 and self.scale == 1.0
        return frozenset({"order-free"}) | (RETURNS if whole else frozenset())

    def merge(self, base: Entries, vectors: Sequence[Entries], generator: torch.Generator) -> dict[str, Tensor]:
        """Entry by entry, after one threshold per task."""
        masks = [largest(v, self.density) for v in vectors]
        out = {}
        for name in base:
            stacked = torch.stack([v[name] * m[name] for v, m in zip(vectors, masks, strict=True)])
            positive, negative = stacked.clamp_min(0.0).sum(0), -stacked.clamp_max(0.0).sum(0)
            elected = torch.where(positive >= negative, 1.0, -1.0)
            agrees = stacked * elected > 0.0
            out[name] = self.scale * (stacked * agrees).sum(0) / agrees.sum(0).clamp_min(1)
        return out
