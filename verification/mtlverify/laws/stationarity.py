"""Laws about where a method stops."""

from __future__ import annotations

from typing import Any

from mtlverify import tolerance
from mtlverify.answer import Answer, ask
from mtlverify.example import Example
from mtlverify.law import Margin, law
from mtlverify.laws.compare import agreement, shown
from mtlverify.strategies import NOT_STATIONARY, STRONGLY_STATIONARY, WEAKLY_STATIONARY, jacobians


def is_zero(answer: Answer) -> float:
    """Margin of d = 0, relative to the gradients: the largest would be a step, the tolerance is half of the digits."""
    norms = answer.jacobian.double().norm(dim=1)
    allowed = tolerance.equality(answer) + tolerance.HALF_DIGITS * float(norms.max())
    return agreement(answer.length, allowed, f"the direction is {shown(answer.direction)}")


@law(
    "pareto-stationary-zero",
    statement="Where some convex combination of the gradients vanishes, the direction is zero.",
    source="Desideri 2012; the definition of Pareto stationarity",
    examples=lambda: jacobians((*STRONGLY_STATIONARY, *WEAKLY_STATIONARY), scalings=("unit", "common scale")),
)
def pareto_stationary_zero(plugin: Any, example: Example) -> float:
    """Strongly and weakly stationary Jacobians, by construction."""
    return is_zero(ask(plugin, example))


@law(
    "strongly-stationary-zero",
    statement="Where a combination of the gradients with all weights > 0 vanishes, the direction is zero.",
    source="Quinton & Rey 2024: what a projection onto the dual cone achieves; weaker than pareto-stationary-zero",
    examples=lambda: jacobians(STRONGLY_STATIONARY, scalings=("unit", "common scale")),
)
def strongly_stationary_zero(plugin: Any, example: Example) -> float:
    """With all weights positive, no direction improves one task without harming another."""
    return is_zero(ask(plugin, example))


@law(
    "zero-only-if-stationary",
    statement="Where no convex combination of the gradients vanishes, the direction is not zero: no stall.",
    source="the converse of pareto-stationary-zero",
    margin="|d| / sum_i |w_i| |g_i|, minus the rounding noise",
    examples=lambda: jacobians(NOT_STATIONARY, scalings=("unit", "common scale")),
)
def zero_only_if_stationary(plugin: Any, example: Example) -> float:
    """All gradients have a positive component along one coordinate, so a common descent direction exists."""
    answer = ask(plugin, example)
    stalls = "the direction is zero, or nothing but rounding"
    if answer.size == 0:
        return Margin(-1.0, stalls)
    return Margin((answer.length - tolerance.rounding(answer)) / answer.size, stalls)
