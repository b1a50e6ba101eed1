"""Selection of the largest entries of a task vector."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def largest(vector: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Masks (name -> bool) of the entries with the largest absolute value: the ``share`` of all entries of the model.

    Entries that tie with the smallest selected one are selected, too; zeros only if ``share`` is 1."""
    sizes = torch.cat([v.abs().flatten() for v in vector.values()]) if vector else torch.zeros(0)
    keep = math.ceil(share * len(sizes))
    if keep >= len(sizes):
        return {n: torch.ones_like(v, dtype=torch.bool) for n, v in vector.items()}
    if keep == 0:
        return {n: torch.zeros_like(v, dtype=torch.bool) for n, v in vector.items()}
    threshold = sizes.kthvalue(len(sizes) - keep + 1).values
    return {n: (v.abs() >= threshold) & (v != 0) for n, v in vector.items()}
