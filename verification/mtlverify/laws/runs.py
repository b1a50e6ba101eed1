"""A made-up run of a few steps, for laws that must hold beyond the first one."""

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
"""Steps of one run in sixteen: what goes wrong late, a warm-up that ends or a window that is full, shows there only."""
LONGER = 24
"""Of one run in thirty-two."""
VERY_LONG, LONGEST = 120, 300
"""Of the runs whose seed is 900 to 949, and 950 to 999: an ordinary search has one or two of the first, in a stratum of
their own, and a deep one has one in twenty of either."""


def steps(example: Example) -> int:
    """Steps of the run on an example. The seed says so, so a counterexample from a long run is replayed as one."""
    if 900 <= example.seed <= 999:
        return VERY_LONG if example.seed < 950 else LONGEST
    if example.seed % 32 == 16:
        return LONGER
    return LONG if example.seed % 16 == 15 else STEPS


def absences(draw: Draw, k: int, p: int) -> dict[str, Any]:
    """Which tasks are away in which step, as pairs (step, task). In every step one task at least is there.

    A third of the runs have everybody all the time; in a third tasks come and go in the first steps, and late in a
    long one all are there; in a third one task is away for a while, from the start or from later on, and returns.
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
    """As :func:`mtlverify.strategies.jacobians`, and who is away when: inputs of laws about runs."""
    made = jacobians(families, more=_with_absences(more), **others)
    if families[: len(ALL)] != ALL:
        return made
    late = jacobians((patient,), more=_with_absences(more), **others)
    return Strata((*made.strata, *(s.map(_prolonged) for s in late.strata)))


def patient(draw: Draw) -> list[list[int]]:
    """Two or three tasks in general position, for runs of 24 or 120 steps."""
    return entries(draw, draw(st.integers(2, 3)), draw(st.integers(2, 3)), -9, 9)


def _prolonged(example: Example) -> Example:
    """The same with a seed that stands for a long run."""
    return example.with_(seed=816 if example.seed % 2 else 900)


def losses_at(example: Example, number: int) -> Tensor:
    """(K,) losses before step ``number``: each falls at a rate of its own, and late they go up and down a little."""
    rates = torch.linspace(0.5, 0.9, example.n_tasks, dtype=torch.float64)
    return example.losses * rates ** min(number, LONG + number % 5)


def rows_at(example: Example, number: int) -> Tensor:
    """(K, P) gradients in step ``number``: those of the example, turned by a coordinate per step and, after the first
    step, each twice, half or just as long as before.

    Turning keeps inner products, and positive factors keep what families prove: who is stationary, aligned, independent
    stays so."""
    rows = torch.roll(example.jacobian, number, dims=1)
    if "turn" in example.extra:  # another basis of the parameters, the same in every step
        rows = rows @ torch.tensor(example.extra["turn"], dtype=rows.dtype)
    if number == 0:
        return rows
    factors = [2.0 ** ((i + number) % 3 - 1) for i in range(example.n_tasks)]
    return rows * torch.tensor(factors, dtype=rows.dtype)[:, None]


def views(
    plugin: Aggregator, example: Example, number: int, order: Sequence[int] | None = None
) -> tuple[Tensor, StepView, StepView]:
    """The rows of step ``number``, in which gradients have turned and losses fallen, and the views before and after it.

    With ``order`` the same run, in which the tasks are listed in another order, some of them, or some twice. As in a
    real step, a task that is away (``example.extra["away"]``) has rows of zeros and losses of NaN.
    """
    listed = list(range(example.n_tasks) if order is None else order)
    away = {task for at, task in example.extra.get("away", ()) if at == number}
    present = torch.tensor([task not in away for task in listed])
    given(bool(present.any()), "a task is there in every step")
    rows = rows_at(example, number)[listed] * present[:, None]
    shown = None if bool(present.all()) else present
    late = start(plugin, example)

    def view(at: int) -> StepView:
        losses = losses_at(example, at)[listed].masked_fill(~present, float("nan"))
        seed = example.seed + number
        return view_of(plugin, rows, losses, seed=seed, step=late + number, present=shown, tasks=listed)

    return rows, view(number), view(number + 1)


def observed(plugin: Aggregator, seen: StepView, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state after the method has seen the losses after its step, looked at as in a step."""
    with torch.no_grad():
        return plugin.observe(shown_to(plugin, seen), state)


def shown_to(plugin: Aggregator, view: StepView) -> StepView:
    """What a step shows a method of a view: the tasks present, unless it handles absent ones itself."""
    return view if view.complete or plugin.handles_absent else view.restricted(view.present)


def step(
    plugin: Aggregator,
    example: Example,
    number: int,
    state: dict[str, Tensor],
    order: Sequence[int] | None = None,
) -> tuple[Answer, dict[str, Tensor]]:
    """The answer in step ``number`` of the run, and the state after it."""
    rows, before, after = views(plugin, example, number, order)
    aggregation = stepped(plugin, before, state, rows)
    answer = answered(aggregation, rows, before.losses, before.present, degree_of(plugin))
    return answer, observed(plugin, after, dict(aggregation.state))


def length(state: dict[str, Tensor], example: Example) -> int:
    """Steps of a run that are worth asking about: the first only if the method has no state, for then all are alike."""
    return steps(example) if state else 1


def answers(
    plugin: Aggregator, example: Example, order: Sequence[int] | None = None, *, options: bool = False
) -> Iterator[Answer]:
    """The answers of the whole run, or of its first step if the method has no state. A method without a state that
    never hears of absent tasks is asked about all of them, unless it has ``options`` that belong to tasks. One run in
    three is saved and loaded on its way."""
    state = plugin.init(example.n_tasks if order is None else len(order))
    if not state and not plugin.handles_absent and not options:
        example = example.with_(extra={**example.extra, "away": []})
    many = length(state, example)
    for number in range(many):
        if number and number == resumed_at(example, many):
            plugin, state = reopened(plugin, state)
        answer, state = step(plugin, example, number, state, order)
        yield answer


def resumed_at(example: Example, many: int) -> int:
    """The step before which the run is saved, loaded and continued; 0 in two runs of three: never."""
    return 1 + example.seed // 3 % (many - 1) if many > 1 and example.seed % 3 == 1 else 0


def reopened(plugin: Aggregator, state: dict[str, Tensor]) -> tuple[Aggregator, dict[str, Tensor]]:
    """A new object with the same fields, and the state from a file that allows nothing but tensors."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return dataclasses.replace(plugin), torch.load(file, weights_only=True)


def along(plugin: Aggregator, example: Example, judge: Callable[[Answer], float]) -> Margin:
    """The worst margin of ``judge`` over the answers of the run."""
    return worst(map(judge, answers(plugin, example)), of="step")


class Reaction:
    """What a run answers in each step, as a function of its gradients.

    A run on the same gradients is made once, however many of its steps are asked about, and no further than that: one
    run for each step would take the square of the steps.

    Args:
        run: gradients (K, P) -> what counts in each step, a vector.
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
