"""By which rules the runs of a table were trained and selected, and where these are not those of its protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtlbench.protocols import budget_for
from mtlbench.suite import BudgetChanges
from mtlbench.tasks.declaration import Budget
from mtlcore.errors import ConfigurationError

_SELECTION = {
    "best-validation": "the checkpoint with the best validation score",
    "last": "the end of training",
    "mean-of-last-epochs": "the mean of the test metrics at the ends of the last epochs",
}
_OF_ANY_PROTOCOL = {"selection", "train_on_validation"}


def in_words(budget: Mapping[str, Any]) -> str:
    """Optimizer, schedule, selection: one sentence of a record's budget. What an old record lacks was the default."""
    used = _used(budget)
    parts = [
        _called(used["optimizer"], {**used["optimizer_options"], **_given(used, "weight_decay", "head_learning_rate")}),
        f"schedule {_called(used['schedule'], used['schedule_options'])}",
        *([] if used["precision"] == "float32" else [used["precision"]]),
    ]
    selection = _SELECTION.get(used["selection"], used["selection"])
    if used["selection"] == "mean-of-last-epochs":
        selection = selection.replace("the last", f"the last {used['last_epochs']}")
    also = ", trained on the validation part, too" if used["train_on_validation"] else ""
    return f"{', '.join(parts)}. Judged: {selection}{also}."


def departures(protocol: str, task: str, budget: Mapping[str, Any], tuned: bool) -> list[str]:
    """What of a record's budget is not as the protocol has it, each as "setting = used (protocol: its own)".

    Args:
        tuned: tuning chose the learning rates, which is then no departure.
    """
    expected = _defaults()
    try:
        changes = budget_for(protocol, task)
    except ConfigurationError:  # a folder of another version: the task is not one of the protocol's
        return [f"the protocol has no rules for {task}"]
    if changes == BudgetChanges():  # it leaves the length and the optimizer to the task
        expected = {name: expected[name] for name in _OF_ANY_PROTOCOL}
    expected = {**expected, **changes.model_dump(exclude_none=True)}
    used = _used(budget)
    if used["selection"] != "mean-of-last-epochs" != expected["selection"]:
        expected.pop("last_epochs", None)  # says nothing then
    skipped = {"learning_rate", "head_learning_rate"} if tuned else set()
    return [
        f"{name} = {used[name]} (protocol: {value})"
        for name, value in expected.items()
        if name not in skipped and used.get(name) != value
    ]


def _defaults() -> dict[str, Any]:
    """Of all settings but those that every task has its own of."""
    budget = vars(Budget(steps=1, batch_size=1, learning_rate=1.0))
    return {n: v for n, v in budget.items() if n not in ("steps", "batch_size", "learning_rate", "evaluations")}


def _used(budget: Mapping[str, Any]) -> dict[str, Any]:
    """With defaults where a record says nothing, or nothing that can be understood."""
    usual = _defaults()
    alike = {
        n: v
        for n, v in budget.items()
        if usual.get(n) is None or isinstance(v, (int, float) if isinstance(usual[n], float) else type(usual[n]))
    }
    return {**usual, **alike}


def _given(used: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: used[name] for name in names if used[name]}


def _called(name: str, options: Mapping[str, Any]) -> str:
    return name + (f" ({', '.join(f'{k} = {v}' for k, v in options.items())})" if options else "")
