"""From the worst input that sampling found to worse ones, by small changes of one row: a quarter of a search's inputs.

Where a margin says more than yes or no, it falls towards a violation: a longer row, a row nearer to another one, a
smaller entry. :mod:`mtlverify.hunt` does the same, for any length of time.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mtlverify.example import Example
from mtlverify.law import OutsideLaw
from mtlverify.laws.runs import steps
from mtlverify.strategies.scales import kept_in_range

if TYPE_CHECKING:
    from mtlverify.search import Search

AFFORDABLE = 8
"""Steps of a run that one evaluation may take; a longer run counts as several, lest all the time go into it."""
FLAT = 1.0
"""A margin of 1 is "holds exactly" or a plain yes: there is no slope to follow."""


def climb(state: Search, evaluations: int, seed: int) -> None:
    """Measure so many changed copies of the worst input, each time of the worst so far. Raises the search's
    ``Violation`` when one is a counterexample."""
    if state.worst is None or not isinstance(state.worst[1], Example) or state.law.domain is None:
        return
    rng, left = random.Random(seed), evaluations * AFFORDABLE
    for _ in range(2 * evaluations):  # some changes leave the domain of the law
        if state.worst[0] >= FLAT or left <= 0:
            return
        example: Example = state.worst[1]
        rows = kept_in_range(changed(example.jacobian, rng), example.jacobian.dtype)
        if not bool(rows.isfinite().all()) or not state.law.domain(rows):
            continue
        left -= max(steps(example), AFFORDABLE)
        try:
            state.measure(example.with_(jacobian=rows, family="climbed"))
        except OutsideLaw:
            continue


def changed(rows: Tensor, rng: random.Random) -> Tensor:
    """The rows with one of them, or one entry, changed; all entries remain sums of a few powers of two."""
    out, (k, p) = rows.clone(), rows.shape
    i, j, c = rng.randrange(k), rng.randrange(k), rng.randrange(p)
    kind = rng.randrange(5)
    if kind == 0:
        out[i] *= 2.0 ** rng.randint(-24, 24)
    elif kind == 1:
        out[i, c] += float(rows[i].abs().max()) * rng.choice([-1.0, 1.0]) * 2.0 ** -rng.randint(0, 20)
    elif kind == 2 and i != j:  # towards another row, or its opposite
        norm = torch.where(rows[j].abs().max() > 0, rows[j].abs().max(), torch.ones((), dtype=rows.dtype))
        out[i] += rows[j] / norm * rows[i].abs().max() * rng.choice([-1.0, 1.0]) * 2.0 ** -rng.randint(0, 12)
    elif kind == 3:
        out[i, c] = 0.0
    else:
        out[i] = -out[i]
    return out
