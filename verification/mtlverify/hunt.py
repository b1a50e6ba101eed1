"""The second engine: an evolution strategy that makes the margin of a law as small as it can.

Sampling finds what is wrong in a visible share of some family. What is wrong in a corner of size 1e-6 is found by going
where the margin falls: CMA-ES (package ``cmaes``) starts from inputs of the families, moves the entries of the Jacobian
and the logarithms of its rows' lengths, and begins anew where it gets stuck. Where a law speaks about a set of measure
zero (stationary gradients, say), a chart of that set is searched, so that every input is exactly inside.

What it finds is rounded to as few binary digits as still violate the law; then the minimiser makes it small.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mtlcore.errors import MissingExtraError
from mtlverify import predicates
from mtlverify.example import Example
from mtlverify.law import OutsideLaw
from mtlverify.laws import stationarity
from mtlverify.strategies.pick import Rejected
from mtlverify.strategies.strata import NeedsHypothesis, Stratum

if TYPE_CHECKING:
    from mtlverify.search import Search

LARGEST = 36
"""Entries of the Jacobians that are searched; more dimensions take more evaluations than a hunt has."""
STUCK = 12
"""Generations without a smaller margin after which another start is taken."""
SPREAD = 0.5
"""First standard deviation: of entries relative to the largest, of the rows' lengths in factors of 2^(8 SPREAD)."""
OCTAVES = 8.0
GRID = 2.0**8
"""Entries of a chart are multiples of 1 / GRID, and its weights powers of two from 2^-24 to 1: sums are exact."""
OUTSIDE = 1e3
"""Margin of an input that the law does not speak about: the search turns back."""

Chart = Callable[[Tensor, Tensor], Tensor]
"""(K, P) free entries, (K,) free logarithms -> a Jacobian in the domain of a law."""


def _free(entries: Tensor, logs: Tensor) -> Tensor:
    """Every Jacobian; lengths of the rows by whole powers of two."""
    return entries * torch.exp2((OCTAVES * logs).clamp(-40.0, 40.0).round())[:, None]


def _closing(entries: Tensor, logs: Tensor) -> Tensor:
    """The last row makes a combination with positive weights vanish exactly."""
    rows = (entries * GRID).clamp(-8 * GRID, 8 * GRID).round() / GRID
    weights = torch.exp2((-OCTAVES * logs.abs()).clamp(-24.0, 0.0).round())
    return torch.cat([rows[:-1], -(weights[:-1, None] * rows[:-1]).sum(0, keepdim=True)])


def _aligned(entries: Tensor, logs: Tensor) -> Tensor:
    """No entry is negative."""
    return _free(entries.abs(), logs)


def _escapable(entries: Tensor, logs: Tensor) -> Tensor:
    """The first column is positive."""
    first = entries[:, :1].abs() + 1.0 / GRID
    return _free(torch.cat([first, entries[:, 1:]], dim=1), 0.0 * logs)


CHARTS: dict[Any, Chart] = {
    predicates.stationary: _closing,
    stationarity.visibly_strong: _closing,
    predicates.aligned: _aligned,
    predicates.not_stationary: _escapable,
}
"""Domain of a law -> the chart that is searched; else everything is, and what is outside the domain is turned down."""


@dataclasses.dataclass
class _Hunt:
    search: Search
    chart: Chart
    until: float
    evaluations: int = 0

    def margin(self, example: Example) -> float:
        """The margin of one input, measured outside the search's own counts; a violation is the search's finding."""
        domain = self.search.law.domain
        if domain is not None and not domain(example.jacobian):
            return OUTSIDE
        self.evaluations += 1
        tried, families = self.search.tried, self.search.families.copy()
        try:
            return self.search.measure(example)
        except OutsideLaw:
            return OUTSIDE
        finally:
            self.search.tried, self.search.families = tried, families

    def from_(self, start: Example, seed: int) -> None:
        """One descent. Raises the search's ``Violation`` when it finds one."""
        strategy = _strategy(start, seed)
        best, waited = float("inf"), 0
        while waited < STUCK and time.monotonic() < self.until:
            told = []
            for _ in range(strategy.population_size):
                point = strategy.ask()
                told.append((point, self.margin(self.at(point, start))))
            strategy.tell(told)
            smallest = min(margin for _, margin in told)
            waited = 0 if smallest < best - 1e-12 else waited + 1
            best = min(best, smallest)
            if strategy.should_stop():
                return

    def at(self, point: np.ndarray[Any, Any], start: Example) -> Example:
        """The input that a point of the search space stands for."""
        k, p = start.jacobian.shape
        numbers = torch.from_numpy(point)
        rows = self.chart(numbers[: k * p].reshape(k, p), numbers[k * p :])
        rows = torch.where(rows.isfinite(), rows, 0.0)
        return start.with_(jacobian=rows.to(start.jacobian.dtype), family="hunted")


def _strategy(start: Example, seed: int) -> Any:
    try:
        from cmaes import CMA
    except ImportError as error:
        raise MissingExtraError("cmaes", "verify", "Hunting for counterexamples") from error
    rows = start.jacobian.double()
    lengths = rows.abs().amax(dim=1)
    shortest = torch.where(lengths > 0, lengths, 1.0)
    logs = torch.log2(shortest / shortest.max()) / OCTAVES
    mean = torch.cat([(rows / shortest[:, None]).flatten(), logs]).numpy()
    return CMA(mean=mean, sigma=SPREAD, seed=seed % 2**31)


def hunted_for(search: Search, examples: Any, seconds: float, seed: int) -> int:
    """Hunt for so many seconds, or until a violation is found: the number of evaluations.

    Only inputs that are an :class:`Example` can be hunted, and only where the law says what it speaks about.
    """
    from mtlverify.search import Violation

    strata = [s for s in getattr(examples, "strata", ()) if isinstance(s, Stratum)]
    if not strata or search.law.domain is None:
        return 0
    rng = random.Random(seed)
    chart = CHARTS.get(search.law.domain, _free)
    hunt = _Hunt(search, chart, time.monotonic() + seconds)
    with contextlib.suppress(Violation):
        while time.monotonic() < hunt.until:
            try:
                start = rng.choice(strata).sample(rng)
            except Rejected:
                continue
            except NeedsHypothesis:
                return hunt.evaluations
            if not isinstance(start, Example):
                return 0
            if 1 < start.jacobian.numel() <= LARGEST and bool(start.jacobian.any()):
                hunt.from_(start, rng.randrange(2**31))
    if search.found is not None and search.found[2] is None:
        _round(search)
    return hunt.evaluations


def _round(search: Search) -> None:
    """Keep as few binary digits as still violate the law, where its domain allows."""
    from mtlverify.search import Violation

    assert search.found is not None
    example = search.found[1]
    scale = torch.exp2(torch.log2(example.jacobian.double().abs().amax(dim=1).clamp_min(1e-300)).floor())[:, None]
    for digits in range(0, 45, 2):
        grid = scale * 2.0**-digits
        rows = ((example.jacobian.double() / grid).round() * grid).to(example.jacobian.dtype)
        if search.law.domain is not None and not search.law.domain(rows):
            continue
        try:
            search.measure(example.with_(jacobian=rows))
        except Violation:
            return
        except OutsideLaw:
            continue
