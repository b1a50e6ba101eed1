"""Laws about the weights behind a direction."""

from __future__ import annotations

from typing import Any

from mtlverify import tolerance
from mtlverify.answer import Answer, ask
from mtlverify.example import Example
from mtlverify.law import law
from mtlverify.laws.runs import answers
from mtlverify.strategies import jacobians


def returns_weights(plugin: Any) -> str | None:
    """Asks the method once what it returns."""
    import torch

    rows = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    if ask(plugin, Example(rows, torch.ones(2, dtype=torch.float64))).weights is None:
        return "returns a direction, not weights"
    return None


@law(
    "conic-combination",
    statement="The direction is a combination of the gradients with weights >= 0.",
    source="a direction outside the cone of the gradients spends length on what no task asked for",
    margin="smallest w_i |g_i| / sum_j |w_j| |g_j|, else minus the distance of d / |d| to the cone; plus noise",
    examples=jacobians,
)
def conic_combination(plugin: Any, example: Example) -> float:
    """Negative weights may still describe a direction inside the cone, if the gradients are dependent; and a method may
    return no weights at all. Then the distance to the cone is found by non-negative least squares. Along a run, if the
    method has a state: what turns a weight negative may be tied in the first step."""
    return min(map(_in_cone, answers(plugin, example)))


def _in_cone(answer: Answer) -> float:
    norms = answer.jacobian.double().norm(dim=1)
    alive = norms > 0
    if answer.length <= tolerance.rounding(answer) or not bool(alive.any()):
        return 0.0
    noise = tolerance.equality(answer) / answer.length
    if answer.weights is not None:
        smallest = float((answer.weights * norms)[alive].min()) / answer.size
        if smallest >= -tolerance.HALF_DIGITS:
            return smallest + tolerance.HALF_DIGITS
    from scipy.optimize import nnls

    units = answer.jacobian.double()[alive] / norms[alive, None]
    _, distance = nnls(units.T.numpy(), (answer.direction.double() / answer.length).numpy(), maxiter=1000)
    return noise - float(distance)


@law(
    "simplex-weights",
    statement="The weights are >= 0 and sum to 1.",
    source="the direction is in the convex hull of the gradients",
    examples=jacobians,
    applies=returns_weights,
)
def simplex_weights(plugin: Any, example: Example) -> float:
    """Judged on the weights themselves, which have no unit. Along a run, if the method has a state."""
    error = 0.0
    for answer in answers(plugin, example):
        assert answer.weights is not None
        error = max(error, float(-answer.weights.min()), abs(float(answer.weights.sum()) - 1.0))
    return tolerance.share_left(error, tolerance.HALF_DIGITS)
