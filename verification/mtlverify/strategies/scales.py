"""Row scales: 1, one common power of ten from 1e-12 to 1e+12, or one from 1e-8 to 1e+8 for each row.

A scale is the power of two next to the power of ten: multiplying an integer by it is exact in every binary dtype, so
what a family proves about its integer matrix holds for the scaled one to the last bit.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

SCALINGS = ("unit", "common scale", "spread rows")


def decade(exponent: int) -> float:
    """The power of two nearest to 10^exponent on a logarithmic scale."""
    return 2.0 ** round(exponent * math.log2(10.0))


def row_scales(draw: Any, k: int, scaling: str) -> Tensor:
    """(K,) positive factors."""
    if scaling == "unit":
        return torch.ones(k, dtype=torch.float64)
    if scaling == "common scale":
        return torch.full((k,), decade(draw(st.integers(-12, 12))), dtype=torch.float64)
    exponents = draw(st.lists(st.integers(-8, 8), min_size=k, max_size=k))
    return torch.tensor([decade(e) for e in exponents], dtype=torch.float64)
