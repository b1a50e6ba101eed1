"""Laws about the option ``preferences``: the relative importance of the tasks, the same in every method."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any

from mtlcore import Aggregator
from mtlcore.errors import ConfigurationError
from mtlverify.answer import Answer
from mtlverify.example import Example
from mtlverify.law import anything, law, worst
from mtlverify.laws.compare import same_direction_and_length
from mtlverify.laws.runs import Reaction, answers, histories
from mtlverify.laws.symmetry import permutation, same_draws
from mtlverify.strategies import ALL, Draw

FACTOR = 8.0
"""Common factor of all preferences: a power of two, so that their ratios do not change in the last bit."""


def has_preferences(plugin: Any) -> str | None:
    """The law applies to methods with this option."""
    if not dataclasses.is_dataclass(plugin) or all(f.name != "preferences" for f in dataclasses.fields(plugin)):
        return "has no option `preferences`"
    if not takes(plugin, (1.0, 2.0)):
        return "refuses preferences under these hyper-parameters"
    return same_draws(plugin)


def takes(plugin: Any, preferences: tuple[float, ...]) -> bool:
    """Whether the method accepts these preferences."""
    try:
        dataclasses.replace(plugin, preferences=preferences)
    except ConfigurationError:
        return False
    return True


def numbers(draw: Draw, k: int, p: int) -> dict[str, Any]:
    """A preference from 1 to 9 for each task."""
    from mtlverify.strategies import pick as st

    return {"preferences": draw(st.lists(st.integers(1, 9), min_size=k, max_size=k))}


def both(draw: Draw, k: int, p: int) -> dict[str, Any]:
    """Preferences (one is 0 if the method allows it) or none; and another order of the tasks."""
    from mtlverify.strategies import pick as st

    idle = draw(st.integers(-3, k - 1)) if k > 1 else -1
    return {**numbers(draw, k, p), "idle": max(idle, -1), **permutation(draw, k, p)}


@law(
    "preferences-belong-to-tasks",
    statement="Reordering the tasks together with their preferences, and multiplying all preferences by 8, leaves the "
    "direction as it is; equal preferences are none.",
    source="a preference is a task's, and only ratios matter",
    examples=lambda: histories(ALL, more=both),
    within=anything,
    applies=has_preferences,
)
def preferences_belong_to_tasks(plugin: Any, example: Example) -> float:
    """The law is checked along a run in which tasks come and go. A method fails if it confuses the position of a task
    among the tasks present with its position among all tasks."""
    order = example.extra["permutation"]
    one, other = preferring(plugin, example), preferring(plugin, example, order)
    renamed = zip(_run(one, example), _run(other, example, order), strict=True)
    plain = zip(_run(without(plugin), example), _run(even(plugin, example), example), strict=True)
    react, calm = _reaction(one, example), _reaction(without(plugin), example)
    margins = [
        same_direction_and_length(b.direction, a.direction, (a, b), respond.at(number), example.jacobian)
        for pairs, respond in ((renamed, react), (plain, calm))
        for number, (a, b) in enumerate(pairs)
    ]
    return worst(margins)


@law(
    "preferences-weigh-losses",
    statement="Preferences u > 0 give the direction that equal ones give for the losses (K u_i / sum u) L_i.",
    source="what a user means who multiplies a loss by a constant",
    examples=lambda: histories(more=numbers),
    within=anything,
    applies=has_preferences,
)
def preferences_weigh_losses(plugin: Any, example: Example) -> float:
    """Losses and gradients are multiplied. All tasks are present, because without one of them the shares of the others
    are larger."""
    example = example.with_(extra={**example.extra, "away": []})
    wish = example.jacobian.new_tensor(example.extra["preferences"]).double()
    factors = wish * len(wish) / wish.sum()
    scaled = example.with_(
        jacobian=(example.jacobian.double() * factors[:, None]).to(example.jacobian.dtype),
        losses=example.losses * factors,
    )
    one = preferring(plugin, example)
    react = _reaction(one, example)
    pairs = zip(_run(one, example), _run(without(plugin), scaled), strict=True)
    margins = (
        same_direction_and_length(b.direction, a.direction, (a, b), react.at(number), example.jacobian)
        for number, (a, b) in enumerate(pairs)
    )
    return worst(margins, of="step")


def _run(plugin: Aggregator, example: Example, order: Any = None) -> Iterator[Answer]:
    return answers(plugin, example, order, options=True)


def _reaction(plugin: Aggregator, example: Example) -> Reaction:
    return Reaction(lambda rows: (a.direction for a in _run(plugin, example.with_(jacobian=rows))))


def preferring(plugin: Any, example: Example, order: Any = None) -> Aggregator:
    """The method with the example's preferences; with ``order``, in that order and times :data:`FACTOR`."""
    wish, idle = list(example.extra["preferences"]), example.extra.get("idle", -1)
    if idle >= 0 and not _ever_alone(idle, example) and takes(plugin, (0.0, 1.0)):
        wish[idle] = 0
    listed = [float(v) for v in wish] if order is None else [FACTOR * wish[i] for i in order]
    return dataclasses.replace(plugin, preferences=tuple(listed))


def _ever_alone(task: int, example: Example) -> bool:
    """Whether all other tasks are absent in some step; preferences that are all zero are an error."""
    others = Counter(step for step, i in example.extra["away"] if i != task)
    return example.n_tasks - 1 in others.values()


def without(plugin: Any) -> Aggregator:
    """The method without preferences."""
    return dataclasses.replace(plugin, preferences=None)


def even(plugin: Any, example: Example) -> Aggregator:
    """The method with the same preference for every task."""
    return dataclasses.replace(plugin, preferences=(3.0,) * example.n_tasks)
