"""Row scales: 1, one common power of ten, one for each row, or the far ends of what the dtype allows.

A scale is the power of two next to the power of ten: multiplying an integer by it is exact in every binary dtype, so
what a family proves about its integer matrix holds for the scaled one to the last bit.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mtlverify.strategies import pick as st

SCALINGS = ("unit", "unit", "common scale", "spread rows", "spread rows", "extreme")
"""As often as they stand there."""
ORDINARY = ("unit", "spread rows")
"""For laws that multiply the rows themselves."""
COMMON = ("unit", "common scale")

EXTREME = {torch.float64: 120, torch.float32: 16}
"""Decades. The squares of entries below 1e8 at these scales, and their sums, stay normal numbers: in float64 from
1e-240 to 1e+260, and float32 rows have squares in float32 down to 1e-32 and up to 1e+38 only if a method leaves
float64."""


def decade(exponent: int) -> float:
    """The power of two nearest to 10^exponent on a logarithmic scale."""
    return 2.0 ** round(exponent * math.log2(10.0))


def row_scales(draw: Any, k: int, scaling: str, dtype: torch.dtype = torch.float64) -> Tensor:
    """(K,) positive factors."""
    if scaling == "unit":
        return torch.ones(k, dtype=torch.float64)
    if scaling == "common scale":
        return torch.full((k,), decade(draw(st.integers(-12, 12))), dtype=torch.float64)
    if scaling == "extreme":
        end = EXTREME[dtype]
        return torch.full((k,), decade(draw(st.sampled_from([-end, end]))), dtype=torch.float64)
    exponents = draw(st.lists(st.integers(-8, 8), min_size=k, max_size=k))
    return torch.tensor([decade(e) for e in exponents], dtype=torch.float64)
