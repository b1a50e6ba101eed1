"""The law that a method agrees with its exact reference."""

from __future__ import annotations

from typing import Any

import torch

from mtlverify import references, tolerance
from mtlverify.answer import Answer
from mtlverify.example import Example
from mtlverify.law import Margin, OutsideLaw, anything, law, worst
from mtlverify.laws.compare import agreement, shown
from mtlverify.laws.runs import answers, histories, steps


def has_reference(plugin: Any) -> str | None:
    """The law applies to registered names, and hyper-parameters, for which there is a reference."""
    if references.reference_for(plugin) is None:
        return "no exact reference is known for this method with these hyper-parameters"
    return None


@law(
    "matches-reference",
    statement="The direction is that of the exact reference (a convex program, or a closed form, in float64).",
    source="the references' docstrings",
    examples=histories,
    within=anything,
    applies=has_reference,
    effort=0.5,
)
def matches_reference(plugin: Any, example: Example) -> float:
    """Errors are relative to the size of the summands of the direction. The error of the reference is allowed, too; and
    if the strict tolerance fails, the conditioning of the *problem* (not of the method). If the method has a state, the
    first two steps of a run and the last are checked."""
    reference = references.reference_for(plugin)
    assert reference is not None
    last, margins, none = steps(example) - 1, [], ""
    for number, answer in enumerate(answers(plugin, example)):
        if number in (0, 1, last):
            try:
                margins.append(_as_the_reference(plugin, reference, answer))
            except references.NoUniqueAnswer as unknown:
                none = str(unknown)
    if not margins:
        raise OutsideLaw(none)
    return worst(margins, of="step")


def _as_the_reference(plugin: Any, reference: references.Reference, answer: Answer) -> Margin:
    rows = answer.jacobian
    losses = torch.ones(len(rows)).double().numpy() if answer.losses is None else answer.losses.double().numpy()
    exact = reference(rows.double().numpy(), plugin, losses)
    error = float((answer.direction.double() - torch.from_numpy(exact.direction)).norm())
    allowed = tolerance.REFERENCE * exact.size + exact.distance + tolerance.rounding(answer)
    wrong = f"the direction is {shown(answer.direction)}, the reference's {shown(torch.from_numpy(exact.direction))}"
    if not error > allowed:
        return agreement(error, allowed, wrong)

    def respond(moved: torch.Tensor) -> torch.Tensor:
        try:
            return torch.from_numpy(reference(moved.double().numpy(), plugin, losses).direction)
        except references.NoUniqueAnswer:
            return torch.full((rows.shape[1],), float("inf"), dtype=torch.float64)

    return agreement(error, allowed + tolerance.sensitivity(respond, rows), wrong)
