"""Task losses: ordinary, tiny, huge, equal, and such as a logarithm cannot take: zero and negative ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtlverify.strategies import pick as st
from mtlverify.strategies.scales import decade

POSITIVE = ("ordinary", "equal", "spread", "tiny", "huge")
ODD = ("some zero", "some negative")
ODD_SHARE = 8
"""One input in so many has losses that are not positive. A method that cannot take them refuses them
(mtlcore.errors.LossError), and the input does not count."""


def losses(draw: Any, k: int) -> Tensor:
    """(K,) float64: integers / 8, all the same, over sixteen decades, about 1e-12, about 1e+12; or one of ODD."""
    kind = draw(st.sampled_from(ODD if draw(st.integers(1, ODD_SHARE)) == ODD_SHARE else POSITIVE))
    if kind == "equal":
        return torch.full((k,), draw(st.integers(1, 40)) / 8.0, dtype=torch.float64)
    values = torch.tensor(draw(st.lists(st.integers(1, 40), min_size=k, max_size=k)), dtype=torch.float64) / 8.0
    if kind in ODD:
        hit = torch.tensor(draw(st.lists(st.booleans(), min_size=k, max_size=k)))
        return torch.where(hit, 0.0 if kind == "some zero" else -values, values)
    if kind == "spread":
        exponents = draw(st.lists(st.integers(-8, 8), min_size=k, max_size=k))
        return values * torch.tensor([decade(e) for e in exponents], dtype=torch.float64)
    return values * {"ordinary": 1.0, "tiny": decade(-12), "huge": decade(12)}[kind]
