"""Mergers, one correct twin and its broken copies, each next to the laws that must see it."""

# ruff: noqa: D102  (the docstring of a class says what its one method does)

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from mtlcore import Merger
from mtlcore.contracts import Objective

frozen = dataclasses.dataclass(frozen=True)
Entries = Mapping[str, Tensor]


@frozen
class Average(Merger):
    """The mean of the task vectors."""

    def merge(self, base: Entries, vectors: Sequence[Entries], generator: torch.Generator) -> dict[str, Tensor]:
        return {n: torch.stack([v[n] for v in vectors]).mean(0) for n in base}


LAWS = (
    "finite",
    "pure",
    "deterministic",
    "shape-dtype-device",
    "zero-vectors",
    "one-expert",
    "identical-experts",
    "order-free",
)


@frozen
class DividesByAnEntry(Average):
    """NaN where an expert has not moved."""

    def merge(self, base: Entries, vectors: Sequence[Entries], generator: torch.Generator) -> dict[str, Tensor]:
        return {
            n: sum((v[n] * (v[n].norm() / v[n].norm()) for v in vectors), torch.zeros_like(b)) for n, b in base.items()
        }


@frozen
class AddsInPlace(Average):
    """Sums up in the base."""

    def merge(self, base: Entries, vectors: Sequence[Entries], generator: torch.Generator) -> dict[str, Tensor]:
        for v in vectors:
            for n in base:
                base[n].add_(v[n])
        return super().merge(base, vectors, generator)


@frozen
class DropsAtRandom(Average):
    """Draws from the global generator."""

    def merge(self, base: Entries, vectors: Sequence[Entries], generator: torch.Generator) -> dict[str, Tensor]:
        return {n: v * torch.rand(()).double() for n, v in super().merge(base, vectors, generator).items()}


@frozen
class SinglePrecision(Average):
    """Answers in float32."""

    def merge(self, base: Entries, vectors: Sequence[Entries], generator: torch.Generator) -> dict[str, Tensor]:
        return {n: v.float() for n, v in super().merge(base, vectors, generator).items()}


@frozen
class Decays(Average):
    """Pulls the base towards zero."""

    def merge(self, base: Entries, vectors: Sequence[Entries], generator: torch.Generator) -> dict[str, Tensor]:
        return {n: v - 1e-3 * base[n] for n, v in super().merge(base, vectors, generator).items()}


@frozen
class HalfOfOne(Average):
    """Divides by T + 1."""

    def merge(self, base: Entries, vectors: Sequence[Entries], generator: torch.Generator) -> dict[str, Tensor]:
        t = len(vectors)
        return {n: v * t / (t + 1) for n, v in super().merge(base, vectors, generator).items()}


@frozen
class Sums(Average):
    """Forgets to divide: right for one expert."""

    def merge(self, base: Entries, vectors: Sequence[Entries], generator: torch.Generator) -> dict[str, Tensor]:
        return {n: v * len(vectors) for n, v in super().merge(base, vectors, generator).items()}


@frozen
class FirstWins(Average):
    """Gives the first expert twice the weight."""

    def merge(self, base: Entries, vectors: Sequence[Entries], generator: torch.Generator) -> dict[str, Tensor]:
        return super().merge(base, [vectors[0], *vectors], generator)


@frozen
class MeanLength(Average):
    """One coefficient for all tasks, from their mean length, where each has its own."""

    eta: float = 0.07
    steps: int = 0
    keep: float = 1.0
    coefficients: str = "adaptive"
    rest: str = "merge"

    def merge(self, base: Entries, vectors: Sequence[Entries], generator: torch.Generator) -> dict[str, Tensor]:
        out = {}
        for n in base:
            taus = torch.stack([v[n] for v in vectors])
            length = taus.flatten(1).norm(dim=1).mean() if taus.dim() > 1 else taus.abs().mean()
            out[n] = self.eta * taus.sum(0) / length if length else torch.zeros_like(base[n])
        return out


@frozen
class Ascends(Average):
    """Looks at data, and goes the wrong way."""

    reads_data: ClassVar[bool] = True
    steps: int = 1

    def adapt(
        self, base: Entries, vectors: Sequence[Entries], generator: torch.Generator, objective: Objective
    ) -> dict[str, Tensor]:
        found = self.merge(base, vectors, generator)
        return {n: v * (1.0 + self.steps) for n, v in found.items()}


KILLED_BY: dict[type, tuple[str, ...]] = {
    DividesByAnEntry: ("finite",),
    AddsInPlace: ("pure",),
    DropsAtRandom: ("deterministic", "pure"),
    SinglePrecision: ("shape-dtype-device",),
    Decays: ("zero-vectors",),
    HalfOfOne: ("one-expert",),
    Sums: ("identical-experts",),
    FirstWins: ("order-free",),
    Ascends: ("lowers-objective",),
    MeanLength: ("zero-steps-task-arithmetic",),
}
"""Mutant -> ids of the laws that must refute it."""
