"""Laws about the inner products of the direction with the task gradients.

Parameters move along -d, so <g_i, d> > 0 means that task i gains.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtlverify import tolerance
from mtlverify.answer import Answer
from mtlverify.example import Example
from mtlverify.law import Margin, anything, given, law
from mtlverify.laws.compare import agreement, shown
from mtlverify.laws.runs import along, histories
from mtlverify.predicates import aligned, independent
from mtlverify.strategies import ALIGNED_OR_ZERO, INDEPENDENT


def cosines(answer: Answer) -> list[float]:
    """<g_i, d> / (|g_i| |d|) for every task whose gradient is not zero; empty if d is zero."""
    rows, direction = answer.jacobian.double(), answer.direction.double()
    norms, length = rows.norm(dim=1), direction.norm()
    if length == 0:
        return []
    units = rows[norms > 0] / norms[norms > 0, None]
    return [float(c) for c in units @ (direction / length)]


@law(
    "non-conflicting",
    statement="No task gradient has a negative inner product with the direction: min_i <g_i, d> >= 0.",
    source="Quinton & Rey 2024 (2406.16232), non-conflicting aggregators",
    margin="smallest cosine <g_i, d> / (|g_i| |d|), plus the rounding noise of that cosine",
    examples=histories,
    within=anything,
)
def non_conflicting(plugin: Any, example: Example) -> float:
    """The margin is a cosine: in a comparison of norms a violation of size e would have size e^2 only. If the method
    has a state, the law is checked along a run, for the tasks present."""
    return along(plugin, example, _nobody_harmed)


def _nobody_harmed(answer: Answer) -> float:
    smallest = min(cosines(answer), default=0.0)
    return Margin(smallest + tolerance.cosine_noise(answer), _harm(answer))


def _harm(answer: Answer) -> str:
    """A message that names the task that is harmed most."""
    gains = answer.jacobian.double() @ answer.direction.double()
    norms = answer.jacobian.double().norm(dim=1)
    task = int(torch.where(norms > 0, gains / norms, float("inf")).argmin())
    cosine = float(gains[task] / norms[task]) / answer.length if answer.length > 0 and norms[task] > 0 else 0.0
    return f"task{task} is harmed: the cosine of its gradient with the direction is {cosine:.3g}"


@law(
    "descent-lower-bound",
    statement="Every task gains at least |d|^2: <g_i, d> >= |d|^2 for all i.",
    source="Desideri 2012: the minimum-norm point of the convex hull of the gradients",
    margin="smallest (<g_i, d> - |d|^2) / ((|g_i| + |d|) |d|), plus rounding noise",
    examples=histories,
    within=anything,
)
def descent_lower_bound(plugin: Any, example: Example) -> float:
    """It is stronger than non-conflicting. If d is also in the convex hull, d is the minimum-norm point."""
    return along(plugin, example, _all_gain)


def _all_gain(answer: Answer) -> float:
    if answer.length == 0:
        return 0.0
    rows, unit = answer.jacobian.double(), answer.direction.double() / answer.direction.double().norm()
    gains = (rows @ unit - answer.length) / (rows.norm(dim=1) + answer.length)
    return Margin(
        float(gains.min()) + tolerance.cosine_noise(answer), f"task{int(gains.argmin())} gains less than |d|^2"
    )


@law(
    "no-worse-than-mean",
    statement="The task that gains least gains at least as much as under the mean gradient: "
    "min_i <g_i, d> >= min_i <g_i, g_0>.",
    source="Liu et al. 2021 (2110.14048): g_0 is feasible in CAGrad's problem",
    examples=histories,
    within=anything,
    margin="(min_i <g_i, d> - min_i <g_i, g_0>) / (max_i |g_i| (|d| + |g_0|)), plus rounding noise",
)
def no_worse_than_mean(plugin: Any, example: Example) -> float:
    """It holds for methods that maximise the smallest gain in a ball around the mean."""
    return along(plugin, example, _at_least_the_means_gain)


def _at_least_the_means_gain(answer: Answer) -> float:
    rows, direction = answer.jacobian.double(), answer.direction.double()
    mean = rows.mean(dim=0)
    scale = float(rows.norm(dim=1).max()) * float(direction.norm() + mean.norm())
    if scale == 0:
        return 0.0
    noise = tolerance.rounding(answer) * float(rows.norm(dim=1).max()) / scale
    gains = rows @ direction
    return Margin(
        float(gains.min() - (rows @ mean).min()) / scale + noise,
        f"task{int(gains.argmin())} gains less than the task that gains least under the mean",
    )


@law(
    "no-conflict-identity",
    statement="Where no two gradients conflict, the direction is their sum or their mean: nothing is repaired.",
    source="Yu et al. 2020 (2001.06782), section 2; Quinton & Rey 2024",
    examples=lambda: histories(ALIGNED_OR_ZERO),
    within=aligned,
)
def no_conflict_identity(plugin: Any, example: Example) -> float:
    """Sum and mean are both allowed, because they differ in the step size only. Some gradients may be zero; the mean
    may count them or not."""
    return along(plugin, example, _plain)


def _plain(answer: Answer) -> float:
    total, k = answer.jacobian.double().sum(dim=0), len(answer.jacobian)
    moving = int((answer.jacobian != 0).any(dim=1).sum())
    allowed = tolerance.equality(answer)
    error = min(float((answer.direction.double() - total / max(n, 1)).norm()) for n in (1, k, moving))
    return agreement(error, allowed, f"the direction is {shown(answer.direction)}, the sum {shown(total)}")


def weights_add_up(rows: Tensor) -> bool:
    """Whether the rows are independent, and the weights t G^-1 |g| of the combination with equal projections have a sum
    that is not zero, so that they can be scaled to sum 1."""
    if not independent(rows):
        return False
    norms = rows.double().norm(dim=1)
    units = rows.double() / norms[:, None]
    b = torch.linalg.lstsq(units.T, torch.linalg.pinv(units) @ torch.ones(len(units), dtype=torch.float64)[:, None])
    w = b.solution[:, 0] / norms
    return bool(w.sum().abs() > ADDS_UP * w.abs().sum())


@law(
    "equal-projections",
    statement="Where the gradients are linearly independent and the numbers (G^-1 |g|)_i do not sum to zero, the "
    "direction has the same inner product with every unit gradient g_i / |g_i|.",
    source="Liu et al. 2021 (IMTL-G, equation 3); Liu et al. 2024 (2408.11104, ConFIG)",
    examples=lambda: histories(INDEPENDENT),
    within=weights_add_up,
)
def equal_projections(plugin: Any, example: Example) -> float:
    """The law is about linearly independent gradients; for dependent ones there may be no such direction."""
    return along(plugin, example, _equally_far)


ADDS_UP = 1e-4
"""Smallest |sum of the weights| / sum of their absolute values; nearer to zero IMTL-G's direction has no bound."""


def _equally_far(answer: Answer) -> float:
    given(weights_add_up(answer.jacobian), "the gradients are independent and sum_i (G^-1 |g|)_i is not zero")
    values = cosines(answer)
    if not values:
        return Margin(tolerance.share_left(1.0, 0.0), "the direction is zero")
    apart = max(values) - min(values)
    return agreement(apart, tolerance.equality(answer) / answer.length, f"the cosines are from {min(values):.5g} on")
