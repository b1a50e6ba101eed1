"""``adamerging``: merging coefficients that are learned on data without labels (Yang et al. 2024)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from mtlcore import Merger, choice, integer, number
from mtlcore.contracts import Entries, Objective
from mtlcore.errors import ConfigurationError


@dataclasses.dataclass(frozen=True)
class AdaMerging(Merger):
    """theta_0 + sum_t c_t tau_t, where Adam learns c on the user's objective. [paper*]

    In the paper the objective is the entropy of the merged model's predictions on unlabelled test data of all tasks
    [paper*]. Here it is the argument of ``mtlcore.merge(..., objective=...)``, a function that is called with the
    number of the step, to choose a batch. In a module the parameters are merged; the statistics are those of the base.

    Proved: without steps it is task arithmetic with the coefficient ``start``.

    Args:
        per: "layer": one coefficient for each task and entry of the state dict; "task": one for each task [paper*].
        start: first value of every coefficient; 0.3 [paper*].
        steps: number of Adam's steps; 500 [paper*].
        lr: Adam's step size; 1e-3 [paper*].
        low: lower bound of the coefficients; 0 [memory].
        high: upper bound of the coefficients; 1 [memory].
    """

    paper = "https://arxiv.org/abs/2310.02575"

    claims: ClassVar[frozenset[str]] = frozenset({"order-free", "lowers-objective"})
    reads_data: ClassVar[bool] = True

    per: str = choice("layer", ("layer", "task"))
    start: float = number(0.3, low=0.0)
    steps: int = integer(500, low=0)
    lr: float = number(1e-3, low=0.0, open_low=True, log=True)
    low: float = number(0.0)
    high: float = number(1.0)

    def merge(self, base: Entries, vectors: Sequence[Entries], generator: torch.Generator) -> dict[str, Tensor]:
        """It needs an objective: see :meth:`adapt`."""
        raise ConfigurationError("adamerging adapts itself to data: it needs an objective.")

    def adapt(
        self, base: Entries, vectors: Sequence[Entries], generator: torch.Generator, objective: Objective
    ) -> dict[str, Tensor]:
        """Adam on the coefficients."""
        if not self.low <= self.start <= self.high:
            raise ConfigurationError(f"AdaMerging: start={self.start:g} is not between {self.low:g} and {self.high:g}.")
        stacked = {n: torch.stack([v[n].flatten() for v in vectors], dim=1) for n in base}
        one = next(iter(base.values()))
        shape = (len(base), len(vectors)) if self.per == "layer" else (1, len(vectors))
        coefficients = one.new_full(shape, self.start).requires_grad_(True)
        optimizer = torch.optim.Adam([coefficients], lr=self.lr)
        for step in range(self.steps):
            value = objective(_combined(coefficients, stacked, base), step)
            (coefficients.grad,) = torch.autograd.grad(value, [coefficients])
            optimizer.step()
            with torch.no_grad():
                coefficients.clamp_(self.low, self.high)
        return _combined(coefficients.detach(), stacked, {n: torch.zeros_like(v) for n, v in base.items()})


def _combined(coefficients: Tensor, stacked: Entries, base: Entries) -> dict[str, Tensor]:
    """base + sum_t c_t tau_t, with a row of coefficients per entry, or one row for all; stacked has tau (P, T)."""
    rows = coefficients.expand(len(stacked), -1).unbind()
    return {
        n: torch.addmv(base[n].flatten(), taus, row).view(base[n].shape)
        for row, (n, taus) in zip(rows, stacked.items(), strict=True)
    }
