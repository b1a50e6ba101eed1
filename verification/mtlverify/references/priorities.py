"""PIVRG in its first step, in which no task has a history and all count alike: FairGrad with alpha = 2.
[Qin et al., CVPR 2025; official code]"""

from __future__ import annotations

from typing import Any

from mtlverify.references import Array, Solution, reference
from mtlverify.references.barrier import barrier


@reference("pivrg")
def pivrg(rows: Array, plugin: Any) -> Solution:
    """G w = (p / w)^(1/2) with p = 1."""
    return barrier(rows, 2.0)
