"""Relative changes of losses."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def relative_changes(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, float]:
    """(after - before) / max(|before|, eps * largest |before| of all tasks), eps the resolution of the dtype.

    The second term is the scale below which a loss is rounding beside the others (an almost fitted task), so that
    nothing depends on the unit of the losses. All losses exactly zero: any change counts as infinite.
    """
    values, moved = ({t: float(v.detach()) for t, v in losses.items()} for losses in (before, after))
    largest = max((abs(v) for v in values.values()), default=0.0)
    changes = {}
    for task, value in values.items():
        difference = moved[task] - value
        scale = max(abs(value), torch.finfo(before[task].dtype).eps * largest)
        changes[task] = difference / scale if scale > 0.0 else (0.0 if difference == 0.0 else float("inf"))
    return changes


def worst_of(changes: Mapping[str, float]) -> tuple[str, float]:
    """The largest change in size; NaN counts as the largest."""
    return max(changes.items(), key=lambda item: abs(item[1]) if item[1] == item[1] else float("inf"))
