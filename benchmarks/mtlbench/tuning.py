"""Tuning in two stages, the same number of trials for every method, linear scalarisation and baseline included.

First the learning rate, with the method's default options; then, at the best learning rate, its options. Drawn
together, the learning rate decides, and options are chosen by accident. Fixed weights of the losses may be searched in
the second stage instead, task by task, in as many rounds as that takes.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import mtlcore
from mtlbench.suite import MethodEntry, Tuning
from mtlbench.tasks.base import Budget

TRIAL_SEED = -1
"""Trials are trained with a seed that no reported run uses."""

Setting = tuple[float, dict[str, Any]]
"""(learning rate, options)"""
Weights = tuple[float, ...]
"""One number per task, with sum 1, rounded so that equal ones are equal."""
FIRST_FACTOR = 4.0
"""By how much a search of weights first moves one of them, up and down."""


def first_stage(method: MethodEntry | None, tuning: Tuning, budget: Budget) -> list[Setting]:
    """Every learning rate of the grid with the default options; the task's own rate comes first and so wins ties.

    ``method`` is None for the baseline, which has a learning rate only.
    """
    factors = sorted(tuning.learning_rate_factors, key=lambda factor: factor != 1.0)
    return [(budget.learning_rate * factor, _defaults(method)) for factor in factors]


def second_stage(method: MethodEntry | None, tuning: Tuning, budget: Budget, rate: float) -> list[Setting]:
    """What the trials that are left are for, when ``rate`` has won the first stage.

    Options other than the defaults, at that rate. A method that has none, or too few, spends the rest on further
    learning rates around it, so that nobody gets fewer trials.
    """
    left = tuning.trials - len(tuning.learning_rate_factors)
    settings = [(rate, options) for options in _draws(method, left)]
    grid = [budget.learning_rate * factor for factor in sorted(tuning.learning_rate_factors)]
    return settings + [(r, _defaults(method)) for r in itertools.islice(_around(rate, grid), left - len(settings))]


def weights_stage(
    tuning: Tuning, rate: float, n_tasks: int, tried: Sequence[tuple[Mapping[str, Any], float]]
) -> list[Setting]:
    """The next trials of a search of weights, at the rate that has won the first stage; none when all are spent.

    Args:
        tried: (options, score) of the trials so far, the first stage's included; infinity for one without a score.
    """
    scores = {weights_of([0.0] * n_tasks): math.inf}
    for options, score in tried:
        weights = tuple(options.get("weights", weights_of([0.0] * n_tasks)))
        scores[weights] = min(score, scores.get(weights, math.inf))
    return [(rate, {"weights": list(w)}) for w in coordinate_search(n_tasks, scores, tuning.trials - len(tried))]


def coordinate_search(n_tasks: int, scores: Mapping[Weights, float], left: int) -> list[Weights]:
    """The next weights to try, at most two, from the scores (lower is better) of those tried so far.

    From coarse to fine: task by task its weight is multiplied and divided by :data:`FIRST_FACTOR`, and the best of the
    three is kept; when all tasks have had their turn the factor is its square root. The whole search is gone through
    again from the scores, so that it needs no memory of its own. [choice]
    """
    centre, step = [0.0] * n_tasks, math.log(FIRST_FACTOR)
    while left > 0 and step > 1e-3:
        for task in range(n_tasks):
            beside = [[x + sign * step * (i == task) for i, x in enumerate(centre)] for sign in (1, -1)]
            if new := [w for w in map(weights_of, beside) if w not in scores]:
                return new[:left]
            centre = min([centre, *beside], key=lambda x: scores[weights_of(x)])  # of equals the one that was there
        step /= 2
    return []


def weights_of(logarithms: Sequence[float]) -> Weights:
    """From their logarithms, of which only the differences count."""
    values = [math.exp(x - max(logarithms)) for x in logarithms]
    return tuple(float(f"{v / sum(values):.6g}") for v in values)


def witness(method: MethodEntry) -> MethodEntry:
    """Whose certificate counts: the method's own, but for weights that were searched. These are one number for each
    task of one benchmark, and a law asks about any number of tasks: a draw of fixed weights stands for them."""
    if not method.search_weights or "weights" not in method.options:
        return method
    return method.model_copy(update={"options": {"draw": 1}})


def settings(method: MethodEntry, tuning: Tuning) -> list[MethodEntry]:
    """The method with its default options and with each of the others that a trial may give it, whichever rate wins."""
    if method.search_weights and tuning.trials:
        return [method, method.model_copy(update={"options": {"draw": 1}})]
    others = _draws(method, tuning.trials - len(tuning.learning_rate_factors)) if tuning.trials else []
    return [method, *(method.model_copy(update={"options": options}) for options in others)]


def at_the_edge(tuning: Tuning, budget: Budget, rate: float) -> bool:
    """Whether no smaller, or no larger, learning rate was on the grid: then a wider one might have done better."""
    rates = [budget.learning_rate * factor for factor in tuning.learning_rate_factors]
    return not min(rates) < rate < max(rates)


def _defaults(method: MethodEntry | None) -> dict[str, Any]:
    return dict(method.options) if method is not None else {}


def _draws(method: MethodEntry | None, count: int) -> list[dict[str, Any]]:
    """Up to ``count`` different combinations of ``method.search`` that are not the default setting in other words."""
    if method is None or not method.search:
        return []
    default = mtlcore.create("aggregator", method.aggregator, **method.options)
    found: dict[str, dict[str, Any]] = {}
    for drawn in itertools.islice(_deals(method.search), 1000):  # exhausts any space smaller than a tuning budget
        if len(found) == count:
            break
        options = {**method.options, **drawn}
        if mtlcore.create("aggregator", method.aggregator, **options) != default:
            found[json.dumps(options, sort_keys=True, default=str)] = options
    return list(found.values())


def _deals(search: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """One card from the shuffled deck of each option: every value comes once before any comes twice.

    The same for all methods with the same search, so that a method with COST tries what it tries without.
    """
    generator = random.Random(0)
    while True:
        decks = {name: generator.sample(values, len(values)) for name, values in search.items()}
        for i in range(max(map(len, decks.values()))):
            yield {name: deck[i % len(deck)] for name, deck in decks.items()}


def _around(rate: float, grid: list[float]) -> Iterator[float]:
    """Half of the way to the next rates of the grid, up and down, then a quarter, and so on, in logarithms.

    Beyond an end of the grid, its step there is continued.
    """
    at = min(range(len(grid)), key=lambda i: abs(math.log(grid[i] / rate)))
    up = grid[at + 1] / grid[at] if at + 1 < len(grid) else grid[at] / grid[at - 1]
    down = grid[at] / grid[at - 1] if at > 0 else up
    for halvings in itertools.count(1):
        yield rate * up**0.5**halvings
        yield rate / down**0.5**halvings
