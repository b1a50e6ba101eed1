"""``weight-average``: a weighted mean of the experts' weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from mtlcore import Merger, vector
from mtlcore.contracts import Entries
from mtlcore.errors import ConfigurationError


@dataclasses.dataclass(frozen=True)
class WeightAverage(Merger):
    """sum_t a_t theta_t, a on the simplex; hence theta_0 + sum_t a_t tau_t. [textbook]

    Proved: it is a convex combination, so the merger of one expert, or of equal experts, is that expert.

    Args:
        weights: a (T,), not negative; they are divided by their sum. None: equal weights.

    Raises:
        ConfigurationError: not one weight per expert, or all are zero.
    """

    claims: ClassVar[frozenset[str]] = frozenset({"one-expert", "identical-experts", "order-free"})

    weights: tuple[float, ...] | None = vector(None, low=0.0)

    def merge(self, base: Entries, vectors: Sequence[Entries], generator: torch.Generator) -> dict[str, Tensor]:
        """One sum per entry."""
        given = self.weights or (1.0,) * len(vectors)
        if len(given) != len(vectors) or not sum(given) > 0.0:
            raise ConfigurationError(
                f"WeightAverage(weights={given}): {len(vectors)} experts need {len(vectors)} weights, not all zero."
            )
        shares = [w / sum(given) for w in given]
        return {n: torch.stack([a * v[n] for a, v in zip(shares, vectors, strict=True)]).sum(0) for n in base}
