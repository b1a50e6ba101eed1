"""Small honest (and dishonest) aggregators for tests of the core."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from mtlcore import Aggregation, Aggregator, Needs


@dataclass(frozen=True)
class Fixed(Aggregator):
    """Given weights, whatever the gradients."""

    values: tuple[float, ...] = ()

    def aggregate(self, view, state):
        return Aggregation(weights=torch.tensor(self.values, dtype=torch.float64), state=state)


@dataclass(frozen=True)
class FixedOnLosses(Fixed):
    needs: ClassVar[Needs] = Needs.LOSSES


@dataclass(frozen=True)
class FixedOnRows(Fixed):
    """The same as a direction."""

    needs: ClassVar[Needs] = Needs.JACOBIAN

    def aggregate(self, view, state):
        rows = view.jacobian
        weights = torch.tensor(self.values, dtype=rows.dtype, device=rows.device)
        return Aggregation(direction=rows.T @ weights, state=state)


@dataclass(frozen=True)
class Calls(Aggregator):
    """Does what it is told; for misbehaviour."""

    function: Callable = None
    needs: ClassVar[Needs] = Needs.JACOBIAN

    def aggregate(self, view, state):
        return self.function(view, state)
