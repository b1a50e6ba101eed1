"""The tuning budget: the same number of trials for every method, linear scalarisation and baseline included."""

from __future__ import annotations

import math
from typing import Any

from scipy.stats import qmc

from mtlbench.suite import MethodEntry, Tuning
from mtlbench.tasks.base import Budget

TRIAL_SEED = -1
"""Trials are trained with a seed that no reported run uses."""


def candidates(method: MethodEntry | None, tuning: Tuning, budget: Budget) -> list[tuple[float, dict[str, Any]]]:
    """(learning rate, options) of each trial: first the default, then a Halton sequence, the same for all methods.

    Without a sequence of decisions there is nothing for one method to exploit better than another, and trials can
    run in parallel and be resumed. ``method`` is None for the baseline, which has a learning rate only.
    """
    options = dict(method.options) if method is not None else {}
    search = method.search if method is not None else {}
    chosen = [(budget.learning_rate, options)]
    if tuning.trials <= 1:
        return chosen
    low, high = (math.log(f) for f in tuning.learning_rate_factors)
    # The first coordinate is the learning rate, so all methods try the same ones.
    # Its first two points are the lower end and the middle, which is the default again: both are skipped.
    points = qmc.Halton(d=1 + len(search), scramble=False).random(tuning.trials + 1)[2:]
    for point in points:
        drawn = {
            name: values[min(int(x * len(values)), len(values) - 1)]
            for (name, values), x in zip(search.items(), point[1:])
        }
        chosen.append((budget.learning_rate * math.exp(low + (high - low) * point[0]), {**options, **drawn}))
    return chosen
