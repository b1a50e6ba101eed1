"""Options with one number per task."""

from __future__ import annotations

from collections.abc import Sequence

from mtlcore.contracts import StepView
from mtlcore.errors import ConfigurationError


def check_length(method: str, option: str, values: Sequence[float] | None, n_tasks: int) -> None:
    """Check the length of an option; called before the first step, when the number of tasks is known.

    Raises:
        ConfigurationError: there are more or fewer values than tasks.
    """
    if values is not None and len(values) != n_tasks:
        raise ConfigurationError(
            f"{method}: {option} has {len(values)} entries for {n_tasks} tasks: give one number per task."
        )


def preferences_present(method: str, preferences: Sequence[float] | None, view: StepView) -> list[float]:
    """The preferences (K,) of the tasks in this view, normalised to sum 1, for the option ``preferences``.

    The option has the same meaning in every method: the relative importance of the tasks. A common factor changes
    nothing; None is the same as equal numbers. A task of preference 0 does not pull, but what the method guarantees to
    all tasks holds for it, too.

    Raises:
        ConfigurationError: the preferences of the tasks present are all zero, or one is missing.
    """
    if preferences is None:
        return [1.0 / view.n_tasks] * view.n_tasks
    chosen = weights_present(method, preferences, view, "preferences")
    largest = max(chosen)
    chosen = [value / largest for value in chosen]
    total = sum(chosen)
    return [value / total for value in chosen]


def weights_present(method: str, weights: Sequence[float], view: StepView, option: str = "weights") -> list[float]:
    """The weights (K,) of the tasks in this view.

    Raises:
        ConfigurationError: all of them are zero, so there would be no step; or one is missing.
    """
    if max(view.task_index) >= len(weights):
        raise ConfigurationError(f"{method}: {option} has {len(weights)} entries, but there are more tasks.")
    chosen = [float(weights[i]) for i in view.task_index]
    if not any(chosen):
        names = ", ".join(map(repr, view.task_names))
        raise ConfigurationError(
            f"{method}: the {option} of the tasks present ({names}) are all zero: give one number per task, some > 0."
        )
    return chosen
