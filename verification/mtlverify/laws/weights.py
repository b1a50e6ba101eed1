"""Laws about the weights behind a direction."""

from __future__ import annotations

from typing import Any

from mtlverify import tolerance
from mtlverify.answer import Answer, ask
from mtlverify.example import Example
from mtlverify.law import Margin, anything, law
from mtlverify.laws.compare import agreement, shown
from mtlverify.laws.runs import along, histories


def returns_weights(plugin: Any) -> str | None:
    """The law applies to methods that return weights; the method is asked once."""
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
    examples=histories,
    within=anything,
)
def conic_combination(plugin: Any, example: Example) -> float:
    """Negative weights may describe a direction inside the cone if the gradients are dependent, and a method may return
    no weights. Then the distance to the cone is computed by non-negative least squares. If the method has a state, the
    law is checked along a run, because weights may become negative after the first step only."""
    return along(plugin, example, _in_cone)


def _in_cone(answer: Answer) -> float:
    norms = answer.jacobian.double().norm(dim=1)
    alive = norms > 0
    if answer.length <= tolerance.rounding(answer) or not bool(alive.any()):
        return 0.0
    noise = tolerance.equality(answer) / answer.length
    if answer.weights is not None:
        smallest = float((answer.weights * norms)[alive].min()) / answer.size
        if smallest >= -tolerance.half_digits(answer):
            return smallest + tolerance.half_digits(answer)
    from scipy.optimize import nnls

    if not bool(answer.direction.isfinite().all()):
        return Margin(float("nan"), "the direction is not finite")
    units = answer.jacobian.double()[alive] / norms[alive, None]
    _, distance = nnls(units.T.numpy(), (answer.direction.double() / answer.length).numpy(), maxiter=1000)
    weights = "" if answer.weights is None else f", whose weights are {shown(answer.weights)}"
    return Margin(
        noise - float(distance),
        f"the direction{weights}, is {distance:.3g} of its length away from the gradients' cone",
    )


@law(
    "simplex-weights",
    statement="The weights are >= 0 and sum to 1; all may be 0 where every loss is 0 and nothing is left to be done.",
    source="the direction is in the convex hull of the gradients",
    examples=histories,
    within=anything,
    applies=returns_weights,
)
def simplex_weights(plugin: Any, example: Example) -> float:
    """The weights themselves are checked; they have no unit. If the method has a state, it is checked along a run."""
    return along(plugin, example, _on_simplex)


def _on_simplex(answer: Answer) -> float:
    assert answer.weights is not None
    if answer.losses is not None and not bool(answer.losses.any()) and not bool(answer.weights.any()):
        return Margin(1.0)
    error = tolerance.largest([float(-answer.weights.min()), abs(float(answer.weights.sum()) - 1.0), 0.0])
    return agreement(error, tolerance.half_digits(answer), f"the weights are {shown(answer.weights)}")
