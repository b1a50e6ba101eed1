"""An artificial run of a few steps, for laws that must hold after the first step, too."""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mtlcore import Aggregator, StepView
from mtlverify.answer import Answer, answered, degree_of, start, stepped, view_of
from mtlverify.example import Example
from mtlverify.law import Margin, given, worst
from mtlverify.strategies import ALL, Draw, Strata, jacobians
from mtlverify.strategies import pick as st
from mtlverify.strategies.generic import entries

STEPS = 3
LONG = 8
"""Steps of one run in sixteen, for late errors: at the end of a warm-up, or when a window is full."""
LONGER = 24
"""Steps of one run in thirty-two."""
VERY_LONG, LONGEST = 120, 300
"""Steps of the runs with a seed of 900 to 949, and of 950 to 999. An ordinary search has one or two of the former, in a
stratum of their own; in a deep search one run in twenty is of either kind."""


def steps(example: Example) -> int:
    """Number of steps of the run on an example. It depends on the seed, so a counterexample is replayed with it."""
    if 900 <= example.seed <= 999:
        return VERY_LONG if example.seed < 950 else LONGEST
    if example.seed % 32 == 16:
        return LONGER
    return LONG if example.seed % 16 == 15 else STEPS


def absences(draw: Draw, k: int, p: int) -> dict[str, Any]:
    """Which tasks are absent in which step, as pairs (step, task). In every step at least one task is present.

    In a third of the runs all tasks are always present. In a third tasks come and go in the first steps, and all are
    present late in a long run. In a third one task is absent for some steps, from the start or later, and returns.
    """
    kind = draw(st.sampled_from(["nobody", "come and go", "a while"])) if k > 1 else "nobody"
    away: list[list[int]] = []
    if kind == "a while":
        task, first, many = draw(st.integers(0, k - 1)), draw(st.integers(0, 2)), draw(st.integers(1, 5))
        away = [[number, task] for number in range(first, first + many)]
    for number in range(STEPS) if kind == "come and go" else ():
        stays = draw(st.integers(0, k - 1))
        out = draw(st.lists(st.booleans(), min_size=k, max_size=k))
        away += [[number, task] for task in range(k) if out[task] and task != stays]
    return {"away": away}


More = Callable[[Draw, int, int], dict[str, Any]]


@functools.cache
def _with_absences(more: More | None) -> More:
    def both(draw: Draw, k: int, p: int) -> dict[str, Any]:
        return {**({} if more is None else more(draw, k, p)), **absences(draw, k, p)}

    return both


def histories(families: Sequence[Any] = ALL, *, more: More | None = None, **others: Any) -> Strata:
    """Inputs of laws about runs: as :func:`mtlverify.strategies.jacobians`, with absent tasks."""
    made = jacobians(families, more=_with_absences(more), **others)
    if families[: len(ALL)] != ALL:
        return made
    late = jacobians((patient,), more=_with_absences(more), **others)
    return Strata((*made.strata, *(s.map(_prolonged) for s in late.strata)))


def patient(draw: Draw) -> list[list[int]]:
    """Two or three tasks in general position, for runs of 24 or 120 steps."""
    return entries(draw, draw(st.integers(2, 3)), draw(st.integers(2, 3)), -9, 9)


def _prolonged(example: Example) -> Example:
    """The same example with a seed that means a long run."""
    return example.with_(seed=816 if example.seed % 2 else 900)


def losses_at(example: Example, number: int) -> Tensor:
    """(K,) losses before step ``number``: they decrease at different rates, and late they oscillate a little."""
    return example.losses * _rates(example.n_tasks) ** min(number, LONG + number % 5)


@functools.cache
def _rates(k: int) -> Tensor:
    return torch.linspace(0.5, 0.9, k, dtype=torch.float64)


def rows_at(example: Example, number: int) -> Tensor:
    """(K, P) gradients in step ``number``: those of the example, with coordinates rotated by one place per step. After
    the first step each is also multiplied by 2, 1/2 or 1.

    The rotation keeps inner products. Positive factors keep the properties of the families: stationary, aligned or
    independent rows stay so."""
    rows = torch.roll(example.jacobian, number, dims=1)
    if "turn" in example.extra:  # another basis of the parameters, the same in every step
        rows = rows @ torch.tensor(example.extra["turn"], dtype=rows.dtype)
    if number == 0:
        return rows
    return rows * _factors(example.n_tasks, number % 3, rows.dtype)


@functools.cache
def _factors(k: int, number: int, dtype: torch.dtype) -> Tensor:
    return torch.tensor([2.0 ** ((i + number) % 3 - 1) for i in range(k)], dtype=dtype)[:, None]


def views(
    plugin: Aggregator, example: Example, number: int, order: Sequence[int] | None = None
) -> tuple[Tensor, StepView, StepView]:
    """The rows of step ``number``, and the views before and after the step; see :func:`moment`."""
    rows, view = moment(plugin, example, number, order)
    return rows, view(number), view(number + 1)


def moment(
    plugin: Aggregator, example: Example, number: int, order: Sequence[int] | None = None
) -> tuple[Tensor, Callable[[int], StepView]]:
    """The rows of step ``number``, and the view of them as a function of the number of steps that are done.

    With ``order`` it is the same run with the tasks in another order, or with some of them, or with some twice. As in a
    real step, an absent task (``example.extra["away"]``) has rows of zeros and losses of NaN.
    """
    listed = list(range(example.n_tasks) if order is None else order)
    away = {task for at, task in example.extra.get("away", ()) if at == number}
    there = [task not in away for task in listed]
    given(any(there), "a task is there in every step")
    present = None if all(there) else torch.tensor(there)
    rows, late = rows_at(example, number), start(plugin, example)
    # Most steps show all tasks in their order, and a step is made a million times.
    rows = rows if order is None else rows[listed]
    rows = rows if present is None else rows * present[:, None]

    def view(at: int) -> StepView:
        losses = losses_at(example, at)
        losses = losses if order is None else losses[listed]
        losses = losses if present is None else losses.masked_fill(~present, float("nan"))
        seed = example.seed + number
        return view_of(plugin, rows, losses, seed=seed, step=late + number, present=present, tasks=listed)

    return rows, view


def observed(plugin: Aggregator, seen: StepView, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state after the method's second look at the losses, checked as in a real step."""
    with torch.no_grad():
        return plugin.observe(shown_to(plugin, seen), state)


def shown_to(plugin: Aggregator, view: StepView) -> StepView:
    """The view as a real step gives it to a method: without absent tasks, unless the method handles them."""
    return view if view.complete or plugin.handles_absent else view.restricted(view.present)


def step(
    plugin: Aggregator,
    example: Example,
    number: int,
    state: dict[str, Tensor],
    order: Sequence[int] | None = None,
) -> tuple[Answer, dict[str, Tensor]]:
    """The answer in step ``number`` of the run, and the state after it."""
    rows, view = moment(plugin, example, number, order)
    before = view(number)
    aggregation = stepped(plugin, before, state, rows)
    answer = answered(aggregation, rows, before.losses, before.present, degree_of(plugin))
    later = dict(aggregation.state)
    # A view costs as much as many a method: the one after the step is made for who looks at it.
    return answer, observed(plugin, view(number + 1), later) if plugin.looks_twice() else later


def length(state: dict[str, Tensor], example: Example) -> int:
    """Number of steps that are checked: one if the method has no state, because then all steps are alike."""
    return steps(example) if state else 1


def answers(
    plugin: Aggregator, example: Example, order: Sequence[int] | None = None, *, options: bool = False
) -> Iterator[Answer]:
    """The answers of the whole run, or of its first step if the method has no state. A method that has no state and
    does not handle absent tasks is asked with all tasks present, unless it has ``options`` per task. One run in three
    goes on with a new object and a copy of the state (through a file: the law "resume-equivalent")."""
    state = plugin.init(example.n_tasks if order is None else len(order))
    if not state and not plugin.handles_absent and not options:
        example = example.with_(extra={**example.extra, "away": []})
    many = length(state, example)
    for number in range(many):
        if number and number == resumed_at(example, many):
            plugin, state = dataclasses.replace(plugin), {name: v.detach().clone() for name, v in state.items()}
        answer, state = step(plugin, example, number, state, order)
        yield answer


def resumed_at(example: Example, many: int) -> int:
    """The step before which the run is handed to a new object; 0 in two runs of three: never."""
    return 1 + example.seed // 3 % (many - 1) if many > 1 and example.seed % 3 == 1 else 0


def reopened(plugin: Aggregator, state: dict[str, Tensor]) -> tuple[Aggregator, dict[str, Tensor]]:
    """A new object with the same fields, and the state from a file that may hold tensors only."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return dataclasses.replace(plugin), torch.load(file, weights_only=True)


def along(plugin: Aggregator, example: Example, judge: Callable[[Answer], float]) -> Margin:
    """The smallest margin of ``judge`` over the answers of the run."""
    return worst(map(judge, answers(plugin, example)), of="step")


class Reaction:
    """The answer in each step of a run, as a function of its gradients.

    A run on the same gradients is made only once, and only as far as it is needed. (With one run for each step, the
    cost would be quadratic in the number of steps.)

    Args:
        run: gradients (K, P) -> one vector for each step.
    """

    def __init__(self, run: Callable[[Tensor], Iterator[Tensor]]) -> None:
        self._run = run
        self._known: dict[bytes, tuple[Iterator[Tensor], list[Tensor]]] = {}

    def at(self, number: int) -> Callable[[Tensor], Tensor]:
        """The vector of step ``number`` as a function of the gradients."""

        def respond(rows: Tensor) -> Tensor:
            key = rows.contiguous().numpy().tobytes()
            if key not in self._known:
                self._known[key] = (self._run(rows), [])
            rest, done = self._known[key]
            while len(done) <= number:
                done.append(next(rest))
            return done[number]

        return respond


def directions(plugin: Aggregator, example: Example) -> Reaction:
    """The directions of the run on ``example``, as functions of its gradients."""
    return Reaction(lambda rows: (a.direction for a in answers(plugin, example.with_(jacobian=rows))))
