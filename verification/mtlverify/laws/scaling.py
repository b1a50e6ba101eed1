"""Laws about the units in which gradients and losses are measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from mtlverify import tolerance
from mtlverify.answer import Answer
from mtlverify.example import Example
from mtlverify.law import Margin, anything, given, law, worst
from mtlverify.laws.compare import agreement, same_direction_and_length, shown
from mtlverify.laws.runs import Reaction, answers, directions, histories, step, steps
from mtlverify.strategies import Draw
from mtlverify.strategies import pick as st
from mtlverify.strategies.scales import ORDINARY, decade


def factor(draw: Draw, k: int, p: int) -> dict[str, Any]:
    """One factor: from 1e-12 to 1e+12, or 1e-100, or 1e+100."""
    return {
        "factor": decade(draw(st.integers(-12, 12)) if draw(st.integers(0, 5)) else draw(st.sampled_from([-100, 100])))
    }


@law(
    "positively-homogeneous",
    statement="Multiplying all gradients by t > 0 multiplies the direction by t^degree (degree 1 unless declared).",
    source="a change of the unit of loss; a method that breaks it has a length scale of its own, such as an epsilon",
    examples=lambda: histories(more=factor, scalings=ORDINARY),
    within=anything,
)
def positively_homogeneous(plugin: Any, example: Example) -> float:
    """t is a power of two, so t J is exact, and a violation cannot come from rounding of the data. If the method has a
    state, the law is checked along a run, because the state depends on the unit of the gradients, too."""
    t, degree = example.extra["factor"], float(getattr(plugin, "degree", 1.0))
    exact = t * example.jacobian
    given(bool((exact / t == example.jacobian).all()), "the scaled gradients exist in their dtype")
    both = zip(answers(plugin, example), answers(plugin, example.with_(jacobian=t * example.jacobian)), strict=True)
    react = directions(plugin, example)
    margins = (
        same_direction_and_length(
            large.direction.double() * t**-degree, small.direction, (small,),
            react.at(number), example.jacobian,
        )
        for number, (small, large) in enumerate(both)
    )  # fmt: skip
    return worst(margins, of="step")


def row_factors(draw: Draw, k: int, p: int) -> dict[str, Any]:
    """A factor from 1e-3 to 1e+3 for each task."""
    exponents = draw(st.lists(st.integers(-3, 3), min_size=k, max_size=k))
    return {"factors": [decade(e) for e in exponents]}


@law(
    "scale-free",
    statement="Multiplying the gradient of one task by a positive number does not turn the direction.",
    source="a change of the unit of one loss; Navon et al. 2022 (2202.01017) for Nash-MTL",
    examples=lambda: histories(more=row_factors),
    within=anything,
)
def scale_free(plugin: Any, example: Example) -> float:
    """Only the direction is compared; its length may change. If the method has a state, it is checked along a run."""
    factors = torch.tensor(example.extra["factors"], dtype=example.jacobian.dtype)[:, None]
    other = example.with_(jacobian=factors * example.jacobian)
    both = zip(answers(plugin, example), answers(plugin, other), strict=True)
    react = Reaction(lambda rows: map(unit, answers(plugin, example.with_(jacobian=rows))))
    where = (example.jacobian, other.jacobian)
    return worst((_unturned(react.at(number), where, *pair) for number, pair in enumerate(both)), of="step")


def unit(answer: Answer) -> Tensor:
    """The direction, normalised."""
    return answer.direction.double() / answer.length if answer.length > 0 else answer.direction.double()


def _unturned(respond: Callable[[Tensor], Tensor], where: tuple[Tensor, ...], plain: Answer, scaled: Answer) -> float:
    """Margin of one step of two runs that differ in the units of the tasks."""
    if not bool(plain.direction.isfinite().all() and scaled.direction.isfinite().all()):
        return float("nan")
    error = float((unit(plain) - unit(scaled)).norm())
    allowed = sum(tolerance.equality(a) / a.length if a.length > 0 else 0.0 for a in (plain, scaled))
    wrong = _turned(unit(plain), unit(scaled))
    if error <= allowed:
        return agreement(error, allowed, wrong)
    # One answer is zero and the other one rounding error: lengths are compared instead of directions.
    if min(plain.length, scaled.length) == 0 and all(a.length <= tolerance.equality(a) for a in (plain, scaled)):
        return 0.0
    return agreement(error, allowed + sum(tolerance.sensitivity(respond, rows) for rows in where), wrong)


def two_factors(draw: Draw, k: int, p: int) -> dict[str, Any]:
    """Two positive factors for each task, integers so that their sum is exact."""
    pairs = draw(st.lists(st.tuples(st.integers(1, 8), st.integers(1, 8)), min_size=k, max_size=k))
    return {"left": [a for a, _ in pairs], "right": [b for _, b in pairs]}


@law(
    "linear-under-scaling",
    statement="As a function of positive row scales c, A(diag(c) J) is linear: A(diag(a + b) J) = A(diag(a) J) + "
    "A(diag(b) J).",
    source="Quinton & Rey 2024 (2406.16232), linearity under scaling",
    examples=lambda: histories(more=two_factors),
    within=anything,
)
def linear_under_scaling(plugin: Any, example: Example) -> float:
    """The influence of a task is proportional to the norm of its gradient. If the method has a state, the law is
    checked along a run."""
    left, right = (torch.tensor(example.extra[n], dtype=example.jacobian.dtype)[:, None] for n in ("left", "right"))

    def run(rows: torch.Tensor) -> Iterator[tuple[Answer, ...]]:
        """The answers under a, b and a + b, step by step."""
        scaled = (example.with_(jacobian=c * rows) for c in (left, right, left + right))
        return zip(*(answers(plugin, e) for e in scaled), strict=True)

    react = Reaction(lambda rows: (torch.cat([a.direction for a in three]) for three in run(rows)))
    margins = (
        same_direction_and_length(
            both.direction, first.direction.double() + second.direction.double(), (first, second, both),
            react.at(number), example.jacobian,
        )
        for number, (first, second, both) in enumerate(run(example.jacobian))
    )  # fmt: skip
    return worst(margins, of="step")


@law(
    "loss-unit-invariant",
    statement="Measuring one task in another unit (loss and gradient times c_i > 0) does not turn the direction, in "
    "the first step and in those after it, whether or not a task is there from the first step on.",
    source="Lin et al. 2023 (2308.12029); Liu et al. 2023 (2306.03792): methods that work on log-losses",
    examples=lambda: histories(more=row_factors),
    within=anything,
)
def loss_unit_invariant(plugin: Any, example: Example) -> float:
    """Unlike in scale-free, the losses are in the new unit, too, along a run: what a method remembers (a first loss,
    logits, a running mean) depends on the unit. For a task that appears late the method must not introduce a unit of
    its own. Factors are powers of two, so the data are exact."""
    factors = torch.tensor(example.extra["factors"], dtype=torch.float64)
    rows = factors.to(example.jacobian.dtype)[:, None] * example.jacobian
    other = example.with_(jacobian=rows, losses=factors * example.losses)
    here, there, margins = plugin.init(example.n_tasks), plugin.init(example.n_tasks), []
    for number in range(steps(example)):
        plain, here = step(plugin, example, number, here)
        scaled, there = step(plugin, other, number, there)
        if 0 in (plain.length, scaled.length):
            # Where the gradients cancel, one answer is zero and the other one rounding error: that is no change.
            rounding = all(a.length <= tolerance.equality(a) for a in (plain, scaled))
            margin = 1.0 if plain.length == scaled.length else 0.0 if rounding else -1.0
            margins.append(Margin(margin, "the direction is zero in one unit and not in the other"))
            continue
        units = [a.direction.double() / a.length for a in (plain, scaled)]
        allowed = sum(tolerance.equality(a) / a.length for a in (plain, scaled))
        margins.append(agreement(float((units[0] - units[1]).norm()), allowed, _turned(*units)))
    return worst(margins, of="step")


def _turned(plain: Tensor, scaled: Tensor) -> str:
    return f"the direction points to {shown(plain)}, and in other units to {shown(scaled)}"
