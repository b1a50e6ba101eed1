"""Laws about symmetry: under a new order of the tasks, and under a rotation of the parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from mtlverify.answer import Answer, uses_randomness
from mtlverify.example import Example
from mtlverify.law import Margin, anything, law, worst
from mtlverify.laws.compare import agreement, same_direction_and_length, shown
from mtlverify.laws.runs import Reaction, answers, directions, histories
from mtlverify.strategies import ALL, TIED, Draw
from mtlverify.tolerance import VANISHED, half_digits, sensitivity


def same_draws(plugin: Any) -> str | None:
    """The law applies to methods that draw no random numbers; others can be equivariant in distribution only."""
    if uses_randomness(plugin):
        return "draws from the generator: its draws follow the order of the tasks, see equivariant-in-distribution"
    return None


def permutation(draw: Draw, k: int, p: int) -> dict[str, Any]:
    """Another order of the tasks."""
    from mtlverify.strategies import pick as st

    return {"permutation": draw(st.permutations(range(k)))}


@law(
    "permutation-equivariant",
    statement="Reordering the tasks leaves the direction as it is and reorders the weights with them.",
    source="no task is special by its position",
    examples=lambda: histories((*ALL, *TIED), more=permutation),
    within=anything,
    applies=same_draws,
)
def permutation_equivariant(plugin: Any, example: Example) -> float:
    """The direction is compared, because equal tasks may share their weight in any way. If the method has a state, the
    law is checked along a run: an effect of the order may appear after the first step only. Tasks come and go in the
    run; a method fails if it confuses the position of a task among the tasks present with that among all tasks.

    For interchangeable tasks conditioning is not taken into account. An answer may be discontinuous next to a tie, so a
    method that takes the first of equal tasks looks ill-conditioned; but at the tie its answer depends on the order."""
    order = example.extra["permutation"]
    if interchangeable(example.jacobian):
        example = example.with_(losses=example.losses[0].expand(example.n_tasks))
    both = zip(answers(plugin, example), answers(plugin, example, order), strict=True)
    react, heads = directions(plugin, example), _heads(plugin, example)
    margins = (
        worst([_same_answer(react.at(number), example, *pair), _heads_follow(heads.at(number), example, *pair)])
        for number, pair in enumerate(both)
    )
    return worst(margins, of="step")


def _same_answer(respond: Callable[[Tensor], Tensor], example: Example, first: Answer, second: Answer) -> Margin:
    strict = same_direction_and_length(second.direction, first.direction, (first, second), None, example.jacobian)
    if strict >= 0 or (interchangeable(example.jacobian) and interchangeable(first.jacobian)):
        return strict
    return same_direction_and_length(second.direction, first.direction, (first, second), respond, example.jacobian)


def _heads(plugin: Any, example: Example) -> Reaction:
    """Weights of task-specific parameters in each step, as functions of the gradients; infinite if there are none."""

    def run(rows: Tensor) -> Iterator[Tensor]:
        for answer in answers(plugin, example.with_(jacobian=rows)):
            heads = answer.head_weights
            yield rows.new_full((len(answer.tasks),), torch.inf).double() if heads is None else heads

    return Reaction(run)


def _heads_follow(respond: Callable[[Tensor], Tensor], example: Example, first: Answer, second: Answer) -> Margin:
    """Margin of the same law for the weights of task-specific parameters, on which d does not depend; as exact as the
    data determine them."""
    order = example.extra["permutation"]
    if first.head_weights is None or second.head_weights is None:
        same_kind = (first.head_weights is None) == (second.head_weights is None)
        return Margin(1.0 if same_kind else -1.0, "head_weights are there in one order and not in the other")
    there = dict(zip((order[i] for i in second.tasks), second.head_weights.tolist(), strict=True))
    moved = torch.tensor([there[i] for i in first.tasks], dtype=torch.float64)
    if len(set(first.losses.tolist() if first.losses is not None else [])) < len(moved):
        return Margin(1.0)  # equal tasks may share their weight in any way
    if first.cancels or second.cancels:
        return Margin(1.0)  # a bargain without a solution: huge weights that cancel are what rounding makes of them
    error = float((moved - first.head_weights).abs().max())
    allowed = half_digits(first) * float(first.head_weights.abs().max()) * len(moved)
    if error > allowed:
        allowed += sensitivity(respond, example.jacobian)
    wrong = f"head_weights {shown(first.head_weights)} become {shown(moved)}, tasks in their first order"
    return agreement(error, allowed + VANISHED, wrong)


def interchangeable(rows: Tensor) -> bool:
    """Whether several tasks have the same inner products, to the last bit, and the input is regular otherwise: no inner
    product is zero, where a conflict begins, and the rows are far from dependent."""
    if len(rows) < 2:
        return False
    gram = rows.double() @ rows.double().T
    each = gram.sort(dim=1).values
    if not bool((each == each[0]).all() and (gram != 0).all()):
        return False
    spectrum = torch.linalg.eigvalsh(gram)
    return bool(spectrum[0] > spectrum[-1] / 100.0)


def plane(draw: Draw, k: int, p: int) -> dict[str, Any]:
    """Two coordinates, the plane of a rotation."""
    from mtlverify.strategies import pick as st

    return {"plane": [draw(st.integers(0, p - 1)), draw(st.integers(0, p - 1))]}


@law(
    "parameter-rotation",
    statement="An orthogonal change of the parameters' coordinates turns the direction with them: A(J Q) = A(J) Q.",
    source="true of every method that sees gradients only through their inner products",
    examples=lambda: histories(more=plane),
    within=anything,
)
def parameter_rotation(plugin: Any, example: Example) -> float:
    """5 Q = [[3, 4], [-4, 3]] in a plane and 5 elsewhere (a sign change if the plane is one coordinate): both 5 J and
    5 J Q are exact integer matrices times the row scales, so the rotation itself adds no rounding."""
    (i, j), p = example.extra["plane"], example.jacobian.shape[1]
    turn = 5.0 * torch.eye(p, dtype=example.jacobian.dtype)
    if i == j:
        turn[i, i] = -5.0
    else:
        turn[i, i], turn[i, j], turn[j, i], turn[j, j] = 3.0, 4.0, -4.0, 3.0
    # The rows of step n are those of the first step, shifted by n coordinates, and then rotated.
    plain, other = (example.with_(extra={**example.extra, "turn": by.tolist()}) for by in (5.0 * torch.eye(p), turn))
    both, react = zip(answers(plugin, plain), answers(plugin, other), strict=True), directions(plugin, plain)
    margins = (
        same_direction_and_length(
            turned.direction,
            straight.direction.double() @ turn.double() / 5.0,
            (straight, turned),
            react.at(number),
            plain.jacobian,
        )
        for number, (straight, turned) in enumerate(both)
    )
    return worst(margins, of="step")


@law(
    "duplicate-task",
    statement="Listing a task twice changes nothing.",
    source="a property of methods that see the set of gradients, such as the minimum-norm point of their hull",
    examples=histories,
    within=anything,
    applies=same_draws,
)
def duplicate_task(plugin: Any, example: Example) -> float:
    """The last task is listed twice. If the method has a state, the law is checked along a run."""
    again = [*range(example.n_tasks), example.n_tasks - 1]
    both, react = (
        zip(answers(plugin, example), answers(plugin, example, again), strict=True),
        directions(plugin, example),
    )
    margins = (
        same_direction_and_length(twice.direction, once.direction, (once, twice), react.at(number), example.jacobian)
        for number, (once, twice) in enumerate(both)
    )
    return worst(margins, of="step")
