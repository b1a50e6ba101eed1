"""Small sets of experts for mergers: task vectors in float64, built from a seed.

An example is a recipe, so it shrinks to the fewest experts and fits into a file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mtlverify.strategies import Strata, Stratum
from mtlverify.strategies import pick as st
from mtlverify.strategies.strata import Draw

FAMILIES = ("generic", "tiny", "huge", "low-rank", "sparse", "opposed", "zero-expert")


@dataclasses.dataclass(frozen=True)
class ExpertsExample:
    """The recipe of a base and its experts.

    Args:
        family: one of ``FAMILIES``. "opposed": two experts point apart; "zero-expert": the first has not moved.
        n_experts: T.
        width: of the matrices.
        seed: of all numbers, and of the generator that a method receives.
    """

    family: str
    n_experts: int
    width: int
    seed: int

    def simpler(self) -> Iterator[ExpertsExample]:
        """The same family with less, boldest first."""
        yield from (dataclasses.replace(self, n_experts=t) for t in (1, 2, 3) if t < self.n_experts)
        yield from (dataclasses.replace(self, width=w) for w in (2, 3) if w < self.width)
        yield from (dataclasses.replace(self, seed=s) for s in (0, 1, 2) if s < self.seed)

    def size(self) -> tuple[int, int, int]:
        """What "smaller" means."""
        return self.n_experts, self.width, self.seed

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> ExpertsExample:
        """The inverse of :meth:`to_json`."""
        return ExpertsExample(**data)

    def build(self) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
        """(base, task vectors): a matrix, a kernel, a vector and a number each."""
        generator = torch.Generator().manual_seed(self.seed)
        w = self.width
        shapes = {"weight": (w, w + 2), "kernel": (w, 2, 2, 1), "bias": (w,), "scale": ()}

        def drawn() -> dict[str, Tensor]:
            return {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in shapes.items()}

        base, vectors = drawn(), [drawn() for _ in range(self.n_experts)]
        return base, [self._formed(v, number, vectors) for number, v in enumerate(vectors)]

    def _formed(self, vector: dict[str, Tensor], number: int, others: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        if self.family == "low-rank":
            return {n: v[:, :1] @ v[:1] if v.dim() == 2 else v for n, v in vector.items()}
        if self.family == "sparse":
            return {n: v * (v.abs() > 0.8) for n, v in vector.items()}
        if self.family == "opposed" and number == 1:
            return {n: -0.9 * v for n, v in others[0].items()}
        factor = {"tiny": 1e-6, "huge": 1e3, "zero-expert": float(number > 0)}.get(self.family, 1.0)
        return {n: factor * v for n, v in vector.items()}


def experts() -> Strata:
    """One to five experts of every family."""

    def recipe(family: str) -> Stratum:
        def drawn(draw: Draw) -> ExpertsExample:
            return ExpertsExample(family, draw(st.integers(1, 5)), draw(st.integers(2, 7)), draw(st.integers(0, 2**16)))

        return Stratum(drawn, family)

    return Strata(tuple(recipe(family) for family in FAMILIES), pool="experts")
