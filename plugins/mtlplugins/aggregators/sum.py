"""The sum of the losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from mtlcore import Aggregation, Aggregator, Needs, StepView, linalg

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Sum(Aggregator):
    """d = sum_i g_i, the same as ``sum(losses).backward()``.

    It costs one backward pass, O(1) in K. Not promised: no conflict. [textbook]
    """

    needs: ClassVar[Needs] = Needs.LOSSES
    claims: ClassVar[frozenset[str]] = frozenset(
        {
            "permutation-equivariant",
            "positively-homogeneous",
            "linear-under-scaling",
            "conic-combination",
            "matches-reference",
            "resume-equivalent",
            "one-backward-pass",
            "coefficient-identity",
            "parameter-rotation",
            "zero-only-if-stationary",
            "no-conflict-identity",
        }
    )

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """Ones."""
        return Aggregation(weights=linalg.vector([1.0] * view.n_tasks), state=state)
