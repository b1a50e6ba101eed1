"""Laws about guarantees of a direction: descent, continuity, unbiasedness, fairness."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtlverify import tolerance
from mtlverify.answer import Answer, ask
from mtlverify.example import Example
from mtlverify.law import Margin, anything, given, law
from mtlverify.laws.compare import agreement, same_direction_and_length, shown
from mtlverify.laws.runs import along, histories
from mtlverify.laws.symmetry import same_draws
from mtlverify.laws.weights import returns_weights
from mtlverify.predicates import not_stationary
from mtlverify.references import barrier
from mtlverify.strategies import NOT_STATIONARY, generic, jacobians


@law(
    "per-task-descent",
    statement="No L-smooth task loss grows in a step of length 1/L along -d: <g_i, d> >= |d|^2 / 2 for all i.",
    source="the descent lemma: L_i(x - d / L) <= L_i(x) - <g_i, d> / L + |d|^2 / (2 L)",
    margin="smallest (<g_i, d> - |d|^2 / 2) / ((|g_i| + |d|) |d|), plus rounding noise",
    examples=histories,
    within=anything,
)
def per_task_descent(plugin: Any, example: Example) -> float:
    """The law is about the length of d, too, because the step length 1/L is the same for every method. With a zero
    gradient among the rows, every d != 0 violates it."""
    return along(plugin, example, _nobody_grows)


def _nobody_grows(answer: Answer) -> float:
    if answer.length == 0:
        return 0.0
    rows, unit = answer.jacobian.double(), answer.direction.double() / answer.direction.double().norm()
    gains = (rows @ unit - 0.5 * answer.length) / (rows.norm(dim=1) + answer.length)
    task = int(gains.argmin())
    return Margin(float(gains[task]) + tolerance.cosine_noise(answer), f"a loss like task{task}'s may grow")


MOVED = 2.0**-20
HOELDER = 8.0
"""The share by which gradients are moved, and the constant of the bound."""


def degree_one(plugin: Any) -> str | None:
    """The law applies to directions of degree 1; the bound is relative to the size of the gradients."""
    if float(getattr(plugin, "degree", 1.0)) != 1.0:
        return "its direction is not of the gradients' size (degree is not 1)"
    return same_draws(plugin)


@law(
    "continuous",
    statement="Moving every gradient by a share e = 2^-20 of its length moves the direction by at most "
    "8 K sqrt(e) of the gradients' size: it is Hoelder continuous of order 1/2.",
    source="projections onto the hull are Hoelder of order 1/2 in its corners; a rule that asks whether there is a "
    "conflict, or which task is worst, jumps",
    examples=jacobians,
    applies=degree_one,
)
def continuous(plugin: Any, example: Example) -> float:
    """The gradients are moved in two opposite random directions. Where the answer is discontinuous, one of the two is
    on the other side of the discontinuity."""
    rows, k = example.jacobian, example.n_tasks
    generator = torch.Generator().manual_seed(example.seed)
    noise = torch.randn(rows.shape, generator=generator, dtype=torch.float64)
    noise = noise / noise.norm(dim=1, keepdim=True).clamp_min(1e-300) * rows.double().norm(dim=1, keepdim=True)
    here = ask(plugin, example)
    size = float(rows.double().norm(dim=1).sum())
    moved = [ask(plugin, example, jacobian=(rows.double() + s * MOVED * noise).to(rows.dtype)) for s in (1.0, -1.0)]
    apart = tolerance.largest(float((m.direction.double() - here.direction.double()).norm()) for m in moved)
    return agreement(apart, HOELDER * k * MOVED**0.5 * size, f"from {shown(here.direction)} the direction jumps")


@law(
    "unbiased-in-batches",
    statement="The mean of the directions of two batches is the direction of the two batches together.",
    source="a direction that is linear in the gradients has no bias under mini-batches; any other one has",
    examples=jacobians,
    applies=same_draws,
)
def unbiased_in_batches(plugin: Any, example: Example) -> float:
    """The batches are J + D and J - D. D are the gradients, shifted by one coordinate and halved, which is exact."""
    half = 0.5 * example.jacobian.roll(1, dims=1).flip(0)
    first, second = (ask(plugin, example, jacobian=example.jacobian + s * half) for s in (1.0, -1.0))
    both = ask(plugin, example)
    expected = (first.direction.double() + second.direction.double()) / 2.0
    return same_direction_and_length(both.direction, expected, (first, second, both), None, example.jacobian)


def fairness(plugin: Any) -> float:
    """alpha: the hyper-parameter of that name; 1 (Nash bargaining) if there is none."""
    return float(getattr(plugin, "alpha", 1.0))


def bargains(plugin: Any) -> str | None:
    """The law applies to methods whose reference solves this equation."""
    from mtlverify import references

    known = references.reference_for(plugin)
    home = references.known().get(getattr(plugin, "reference", None) or _name(plugin))
    if known is None or home is None or home.__module__ != barrier.__name__:
        return "is no alpha-fair bargaining method"
    return returns_weights(plugin)


def _name(plugin: Any) -> str:
    from mtlcore.hosting import registry

    return registry().name_of(plugin)


@law(
    "alpha-fair",
    statement="Where the gradients are not stationary, gains and weights satisfy <g_i, d> = w_i^(-1/alpha): the "
    "direction maximises the sum of alpha-fair utilities of the gains.",
    source="Navon et al. 2022 (2202.01017) for alpha = 1; Ban & Ji 2024 (2402.15638)",
    margin="what is left of the tolerance for the largest relative error of a gain",
    examples=lambda: histories(
        (*NOT_STATIONARY, generic.gaussian, generic.independent), scalings=("unit", "common scale")
    ),
    within=not_stationary,
    applies=bargains,
)
def alpha_fair(plugin: Any, example: Example) -> float:
    """Errors are relative to each gain; the rounding error of its summands is allowed."""
    return along(plugin, example, lambda answer: _fair(answer, fairness(plugin)))


def _fair(answer: Answer, alpha: float) -> Margin:
    given(not_stationary(answer.jacobian), "the gradients of those present are not stationary")
    assert answer.weights is not None
    rows = answer.jacobian.double()
    gains: Tensor = rows @ (answer.weights @ rows)
    wanted = answer.weights.clamp_min(0.0) ** (-1.0 / alpha)
    known = tolerance.SOLVER * rows.norm(dim=1) * answer.size / wanted
    error = float(((gains - wanted).abs() / wanted - known).max())
    wrong = f"the gains are {shown(gains)}, w^(-1/alpha) {shown(wanted)}"
    return agreement(max(error, 0.0), tolerance.REFERENCE, wrong)
