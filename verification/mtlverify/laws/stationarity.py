"""Laws about the points at which the direction is zero."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

from mtlverify import tolerance
from mtlverify.answer import Answer
from mtlverify.example import Example
from mtlverify.law import Margin, given, law
from mtlverify.laws.compare import agreement, shown
from mtlverify.laws.runs import along, histories
from mtlverify.predicates import exactly_strongly_stationary, not_stationary, stationary
from mtlverify.strategies import NOT_STATIONARY, STRONGLY_STATIONARY, WEAKLY_STATIONARY, WITH_ZERO_ROWS

SAFE = ("unit", "common scale", "extreme")
"""All rows are of one scale: for rows of very different size "zero" would have no scale."""


def is_zero(answer: Answer, resolution: float = 1.0) -> float:
    """Margin of d = 0, relative to the gradients; the tolerance is half of the digits, divided by ``resolution``."""
    norms = answer.jacobian.double().norm(dim=1)
    allowed = tolerance.equality(answer) + tolerance.HALF_DIGITS * float(norms.max())
    return agreement(answer.length, allowed / resolution, f"the direction is {shown(answer.direction)}")


def smallest_weight(rows: Tensor) -> float:
    """The largest r for which a combination of the *unit* rows with weights from r to 1 vanishes; 0 if there is none.

    It is found by a linear program, to about 1e-7."""
    data = rows.double()
    norms = data.norm(dim=1)
    units = (data / torch.where(norms > 0, norms, 1.0)[:, None]).numpy()
    k, p = units.shape
    upper = np.hstack([-np.eye(k), np.ones((k, 1))])  # r <= w_i
    found = linprog(
        [0.0] * k + [-1.0], A_ub=upper, b_ub=np.zeros(k), A_eq=np.hstack([units.T, np.zeros((p, 1))]),
        b_eq=np.zeros(p), bounds=[(0.0, 1.0)] * (k + 1),
    )  # fmt: skip
    return float(found.x[-1]) if found.status == 0 else 0.0


def visibly_strong(rows: Tensor) -> bool:
    """Whether the rows are strongly stationary, with weights whose ratios are less than 1 / RESOLVED."""
    return exactly_strongly_stationary(rows) and smallest_weight(rows) >= RESOLVED


RESOLVED = 1e-5
"""Smallest ratio of two weights of the unit gradients for which the law says something."""


@law(
    "pareto-stationary-zero",
    statement="Where some convex combination of the gradients vanishes, the direction is zero.",
    source="Desideri 2012; the definition of Pareto stationarity",
    examples=lambda: histories((*STRONGLY_STATIONARY, *WEAKLY_STATIONARY, *WITH_ZERO_ROWS), scalings=SAFE),
    within=stationary,
)
def pareto_stationary_zero(plugin: Any, example: Example) -> float:
    """The Jacobians are strongly or weakly stationary by construction. All tasks are always present, because a subset
    of the tasks need not be stationary."""
    return along(plugin, example.with_(extra={}), is_zero)


@law(
    "strongly-stationary-zero",
    statement="Where a combination of the unit gradients with weights from r to 1 vanishes, r >= 1e-5, the direction "
    "is zero to 1.5e-8 / r of the gradients.",
    source="Quinton & Rey 2024: what a projection onto the dual cone achieves; weaker than pareto-stationary-zero. The "
    "resolution: cosines that are known to 1e-16 tell <u_j, d> from 0 down to 1e-8, and w_j u_j = -sum_i w_i u_i "
    "bounds it by 1e-8 / w_j from above",
    examples=lambda: histories(STRONGLY_STATIONARY, scalings=SAFE),
    within=visibly_strong,
)
def strongly_stationary_zero(plugin: Any, example: Example) -> float:
    """With all weights positive, no direction improves one task without harming another. All tasks are present."""
    r = smallest_weight(example.jacobian)
    given(r >= RESOLVED, "the weights differ by less than the resolution")
    return along(plugin, example.with_(extra={}), lambda answer: is_zero(answer, r))


@law(
    "zero-only-if-stationary",
    statement="Where no convex combination of the gradients vanishes, the direction is not zero: no stall.",
    source="the converse of pareto-stationary-zero",
    margin="|d| / sum_i |w_i| |g_i|, minus the rounding noise",
    examples=lambda: histories(NOT_STATIONARY, scalings=SAFE),
    within=not_stationary,
)
def zero_only_if_stationary(plugin: Any, example: Example) -> float:
    """All gradients have a positive component along one coordinate, so every subset of the tasks has a common descent
    direction."""
    return along(plugin, example, _moves)


def _moves(answer: Answer) -> float:
    stalls = "the direction is zero, or nothing but rounding"
    if answer.size == 0:
        return Margin(-1.0, stalls)
    return Margin((answer.length - tolerance.rounding(answer)) / answer.size, stalls)
