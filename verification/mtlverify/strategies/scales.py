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

EXTREME = {torch.float64: 150, torch.float32: 20}
"""Decades. The longest row of an extreme input is 10^150 long, or its smallest entry is 10^-150 times an integer:
squares of norms, and sums of K of them, are from 1e-300 to 1e+302, normal numbers of float64. Squares of float32 rows
of 10^20 or 10^-20 are beyond the ends of float32: who leaves float64 for them has infinities or zeros. (Weights of one
over a loss of 1e-12 leave room for no more: the direction itself, 1e33, has to fit into float32.)"""


def decade(exponent: int) -> float:
    """The power of two nearest to 10^exponent on a logarithmic scale."""
    return 2.0 ** round(exponent * math.log2(10.0))


def row_scales(draw: Any, rows: Tensor, scaling: str, dtype: torch.dtype = torch.float64) -> Tensor:
    """(K,) positive factors for the rows (K, P), integers that are to be in ``dtype``."""
    k = len(rows)
    if scaling == "unit":
        return torch.ones(k, dtype=torch.float64)
    if scaling == "common scale":
        return torch.full((k,), decade(draw(st.integers(-12, 12))), dtype=torch.float64)
    if scaling == "extreme":
        longest = float(rows.double().norm(dim=1).max()) or 1.0
        far = draw(st.booleans())
        end = decade(EXTREME[dtype]) * 2.0 ** -math.ceil(math.log2(longest)) if far else decade(-EXTREME[dtype])
        return torch.full((k,), end, dtype=torch.float64)
    exponents = draw(st.lists(st.integers(-8, 8), min_size=k, max_size=k))
    return torch.tensor([decade(e) for e in exponents], dtype=torch.float64)


def kept_in_range(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows whose largest entry is beyond what is asked of ``dtype`` are brought to its end by powers of two, which keep
    what the families prove of rows. For engines that make rows longer and shorter."""
    power = torch.log2(torch.where(rows == 0, 1.0, rows.abs()).amax(dim=1)).floor()
    most = math.floor(EXTREME[dtype] * math.log2(10.0))
    if bool((power.abs() <= most).all()):
        return rows
    return rows * torch.exp2(power.clamp(-most, most) - power)[:, None]
