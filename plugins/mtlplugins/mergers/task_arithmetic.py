"""``task-arithmetic``: the base plus a multiple of the sum of the task vectors (Ilharco et al. 2023)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from mtlcore import Merger, number
from mtlcore.contracts import Entries

RETURNS = frozenset({"one-expert", "identical-experts"})


@dataclasses.dataclass(frozen=True)
class TaskArithmetic(Merger):
    """theta_0 + c sum_t tau_t. [paper*]

    Proved: with c = 1/T the merger of one expert, or of equal experts, is that expert; with another c it is not.

    Args:
        coefficient: c, the same for all tasks; None, the default: 1/T, the mean [choice]. In the paper c is chosen on
            validation data; 0.3 is its value for eight tasks [paper*].
    """

    paper = "https://arxiv.org/abs/2212.04089"

    coefficient: float | None = number(None, low=0.0)

    @property
    def claims(self) -> frozenset[str]:  # type: ignore[override]
        """What is promised."""
        return frozenset({"order-free"}) | (RETURNS if self.coefficient is None else frozenset())

    def merge(self, base: Entries, vectors: Sequence[Entries], generator: torch.Generator) -> dict[str, Tensor]:
        """One sum per entry."""
        c = 1.0 / len(vectors) if self.coefficient is None else self.coefficient
        return {n: c * torch.stack([v[n] for v in vectors]).sum(0) for n in base}
