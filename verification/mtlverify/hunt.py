"""The second engine: an evolution strategy that makes the margin of a law as small as it can.

Sampling finds what is wrong in a visible share of some family. What is wrong in a corner of size 1e-6 is found by going
where the margin falls: CMA-ES (package ``cmaes``) starts from inputs of the families, the worst of a few each time,
moves the entries of the Jacobian, the logarithms of its rows' lengths and those of the losses, and begins anew where it
gets stuck. Where a law speaks about a set of measure zero (stationary gradients, say), a chart of that set is searched,
so that every input is exactly inside.

What it finds is rounded to as few binary digits as still violate the law; then the minimiser makes it small.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mtlcore.errors import MissingExtraError
from mtlverify import predicates
from mtlverify.climb import FLAT
from mtlverify.example import Example
from mtlverify.law import Law, OutsideLaw
from mtlverify.laws import stationarity
from mtlverify.strategies.pick import Rejected
from mtlverify.strategies.scales import kept_in_range
from mtlverify.strategies.strata import NeedsHypothesis, Stratum

if TYPE_CHECKING:
    from mtlverify.search import Search

LARGEST = 36
"""Entries of the Jacobians that are searched; more dimensions take more evaluations than a hunt has."""
STARTS = 6
"""Inputs of the families of which the one with the smallest margin is where a descent starts."""
STUCK = 12
"""Generations without a smaller margin after which another start is taken."""
FLAT_STUCK = 3
"""The same where the margin has been 1 all the time, as that of a yes is: there is no slope."""
YES_OR_NO = 0.25
"""Share of the seconds for a law that only says yes or no."""
PATIENT = 4.0
"""Seconds are those of this processor, and at most so many times as many on the clock: others use the machine, too."""
SPREAD = 0.5
"""First standard deviation: of entries relative to the largest, of the rows' lengths in factors of 2^(8 SPREAD)."""
OCTAVES = 8.0
GRID = 2.0**8
"""Entries of a chart are multiples of 1 / GRID, and its weights powers of two from 2^-24 to 1: sums are exact."""
LOUD = 40.0
"""Losses and lengths of rows are hunted from 2^-40 to 2^40: wider than the families draw them."""
OUTSIDE = 1e3
"""Margin of an input that the law does not speak about: the search turns back."""

Chart = Callable[[Tensor, Tensor], Tensor]
"""(K, P) free entries, (K,) free logarithms -> a Jacobian in the domain of a law."""


def _free(entries: Tensor, logs: Tensor) -> Tensor:
    """Every Jacobian; lengths of the rows by whole powers of two."""
    return entries * torch.exp2((OCTAVES * logs).clamp(-LOUD, LOUD).round())[:, None]


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


def not_hunted(law: Law) -> str:
    """Why a law cannot be hunted, or ""."""
    if law.domain is None:
        return "its inputs are recipes, and have no slope"
    return ""


@dataclasses.dataclass(frozen=True)
class Hunted:
    """What a hunt has done.

    Args:
        evaluations: inputs measured.
        margin: the smallest margin of those that the law speaks about; None if there was none.
    """

    evaluations: int = 0
    margin: float | None = None


@dataclasses.dataclass
class _Hunt:
    search: Search
    chart: Chart
    seconds: float
    evaluations: int = 0
    smallest: float = float("inf")

    def __post_init__(self) -> None:
        self._until = time.process_time() + self.seconds
        self._latest = time.monotonic() + PATIENT * self.seconds

    @property
    def over(self) -> bool:
        """Whether the time is spent."""
        return time.process_time() >= self._until or time.monotonic() >= self._latest

    def margin(self, example: Example) -> float:
        """The margin of one input, measured outside the search's own counts; a violation is the search's finding."""
        domain = self.search.law.domain
        if domain is not None and not domain(example.jacobian):
            return OUTSIDE
        tried, families = self.search.tried, self.search.families.copy()
        self.evaluations += 1
        try:
            margin = self.search.measure(example)
        except OutsideLaw:
            self.evaluations -= 1
            return OUTSIDE
        finally:
            self.search.tried, self.search.families = tried, families
        self.smallest = min(self.smallest, margin)
        return margin

    def start(self, strata: list[Stratum], rng: random.Random) -> Example | None:
        """The worst of a few inputs; None if none of them can be moved."""
        found: tuple[float, Example] | None = None
        for _ in range(STARTS):
            if self.over:
                break
            with contextlib.suppress(Rejected):
                example = rng.choice(strata).sample(rng)
                if 1 < example.jacobian.numel() <= LARGEST and bool(example.jacobian.any()):
                    margin = self.margin(example)
                    if found is None or margin < found[0]:
                        found = (margin, example)
        return None if found is None else found[1]

    def descend(self, start: Example, seed: int) -> None:
        """From one start, until it gets stuck. Raises the search's ``Violation`` when it finds one."""
        strategy = _strategy(start, seed)
        best, waited = float("inf"), 0
        while waited < (FLAT_STUCK if best >= FLAT else STUCK) and not self.over:
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
        rows = self.chart(numbers[: k * p].reshape(k, p), numbers[k * p : k * p + k]) * _scale(start)
        rows = kept_in_range(torch.where(rows.isfinite(), rows, 0.0), start.jacobian.dtype)
        cast = rows.to(start.jacobian.dtype)
        if self.chart is _closing and not torch.equal(cast.double(), rows):
            cast = rows  # rounded to float32 the rows would be stationary no longer
        sizes = torch.exp2((OCTAVES * numbers[k * p + k :]).clamp(-LOUD, LOUD))
        return start.with_(jacobian=cast, losses=start.losses.sign() * sizes, family="hunted")

    def result(self) -> Hunted:
        """What was done so far."""
        return Hunted(self.evaluations, self.smallest if self.evaluations else None)


def _scale(start: Example) -> float:
    """The unit of the gradients: that of the start."""
    return 2.0 ** math.floor(math.log2(float(start.jacobian.double().abs().max())))


def _strategy(start: Example, seed: int) -> Any:
    try:
        from cmaes import CMA
    except ImportError as error:
        raise MissingExtraError("cmaes", "verify", "Hunting for counterexamples") from error
    rows = start.jacobian.double()
    lengths = rows.abs().amax(dim=1)
    shortest = torch.where(lengths > 0, lengths, 1.0)
    logs = torch.log2(shortest / shortest.max()) / OCTAVES
    losses = torch.log2(torch.where(start.losses == 0, 1.0, start.losses.abs())) / OCTAVES
    mean = torch.cat([(rows / shortest[:, None]).flatten(), logs, losses]).numpy()
    return CMA(mean=mean, sigma=SPREAD, seed=seed % 2**31)


def hunted_for(search: Search, examples: Any, seconds: float, seed: int) -> Hunted:
    """Hunt for so many seconds, or until a violation is found.

    Only inputs that are an :class:`Example` can be hunted, and only where the law says what it speaks about.
    """
    from mtlverify.laws.universal import VERDICT
    from mtlverify.search import Violation

    strata = [s for s in getattr(examples, "strata", ()) if isinstance(s, Stratum)]
    if not strata or not_hunted(search.law):
        return Hunted()
    rng = random.Random(seed)
    share = YES_OR_NO if search.law.margin == VERDICT else 1.0
    hunt = _Hunt(search, CHARTS.get(search.law.domain, _free), share * seconds)
    with contextlib.suppress(Violation, NeedsHypothesis):
        while not hunt.over:
            start = hunt.start(strata, rng)
            if start is not None:
                hunt.descend(start, rng.randrange(2**31))
    if search.found is not None and search.found[2] is None:
        _round(search)
    return hunt.result()


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
