"""Which tasks of a run are in a batch. The one place where absent tasks are left out and put back."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from typing import final

import torch
from torch import Tensor


@final
@dataclasses.dataclass(frozen=True)
class Presence:
    """The K tasks of a run, and the k of them that are present.

    Args:
        names: all K.
        where: the positions of those present, in order; None if all are.
    """

    names: tuple[str, ...]
    where: tuple[int, ...] | None = None

    @classmethod
    def of(cls, names: Sequence[str], present: Iterable[str] | None = None) -> Presence:
        """The tasks ``present`` (default: all) among ``names``."""
        if present is None:
            return cls(tuple(names))
        there = set(present)
        where = tuple(i for i, n in enumerate(names) if n in there)
        return cls(tuple(names), None if len(where) == len(names) else where)

    @property
    def complete(self) -> bool:
        """Whether every task is present."""
        return self.where is None

    @functools.cached_property
    def present(self) -> tuple[str, ...]:
        """The k names."""
        return self.names if self.where is None else tuple([self.names[i] for i in self.where])

    @property
    def index(self) -> tuple[int, ...]:
        """The k positions."""
        return tuple(range(len(self.names))) if self.where is None else self.where

    def mask(self) -> Tensor:
        """(K,) bool."""
        mask = torch.ones(len(self.names), dtype=torch.bool, device="cpu")
        if self.where is not None:
            mask.zero_()[list(self.where)] = True
        return mask

    def pick(self, values: Tensor) -> Tensor:
        """(K, ...) -> (k, ...)."""
        return values if self.where is None else values[list(self.where)]

    def spread(self, values: Tensor, fill: float = 0.0) -> Tensor:
        """(k, ...) -> (K, ...), ``fill`` for absent tasks."""
        if self.where is None:
            return values
        out = values.new_full((len(self.names), *values.shape[1:]), fill)
        out[list(self.where)] = values
        return out

    def spread_numbers(self, values: Sequence[float]) -> list[float]:
        """k numbers -> K numbers, NaN for absent tasks."""
        if self.where is None:
            return list(values)
        out = [math.nan] * len(self.names)
        for i, value in zip(self.where, values):
            out[i] = value
        return out

    def spread_pairs(self, values: Tensor, fill: float = 0.0) -> Tensor:
        """(k, k) -> (K, K), ``fill`` wherever one of the two is absent."""
        return values if self.where is None else self.spread(self.spread(values, fill).T, fill).T
