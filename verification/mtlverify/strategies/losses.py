"""Task losses: ordinary, tiny, huge, equal. All positive, because most loss-level methods take logarithms or ratios."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from mtlverify.strategies.scales import decade

SHAPES = ("ordinary", "equal", "spread", "tiny", "huge")


def losses(draw: Any, k: int) -> Tensor:
    """(K,) float64, all positive: integers / 8, all the same, over sixteen decades, about 1e-12, about 1e+12."""
    kind = draw(st.sampled_from(SHAPES))
    if kind == "equal":
        return torch.full((k,), draw(st.integers(1, 40)) / 8.0, dtype=torch.float64)
    values = torch.tensor(draw(st.lists(st.integers(1, 40), min_size=k, max_size=k)), dtype=torch.float64) / 8.0
    if kind == "spread":
        exponents = draw(st.lists(st.integers(-8, 8), min_size=k, max_size=k))
        return values * torch.tensor([decade(e) for e in exponents], dtype=torch.float64)
    return values * {"ordinary": 1.0, "tiny": decade(-12), "huge": decade(12)}[kind]
