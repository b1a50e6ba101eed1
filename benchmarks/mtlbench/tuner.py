"""Runs the trials of tuning and chooses by validation; :mod:`mtlbench.tuning` says which trials those are."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mtlbench import protocol, tuning
from mtlbench.formats import Record
from mtlbench.jobs import Job, make_task, name_of
from mtlbench.suite import SINGLE_TASK, MethodEntry, TaskEntry, Tuning
from mtlbench.tasks.base import Budget

Metrics = dict[str, Any]
MakeTrial = Callable[[MethodEntry | None, float, dict[str, Any], int], Job]
"""(method, learning rate, options, number) -> the job of one trial."""
DoTrials = Callable[[list[Job], str], dict[str, Record]]
"""(jobs, label) -> {configuration hash: record} of those that succeeded."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """What tuning chose for one method: the setting, which trial it was, and how good."""

    learning_rate: float
    options: dict[str, Any]
    trial: int
    score: float
    """Delta-m on validation data."""
    at_the_edge: bool
    validation: Metrics


class Tuner:
    """Tuning on one task."""

    def __init__(self, entry: TaskEntry, budget: Budget, plan: Tuning, make: MakeTrial, do: DoTrials) -> None:
        self._entry, self._budget, self._plan, self._make, self._do = entry, budget, plan, make, do
        task = make_task(entry)
        self._metrics, self._n_tasks = task.metrics, len(task.tasks)

    def choices(self, methods: Sequence[MethodEntry]) -> dict[str, Choice]:
        """The choice of each method by validation, the baseline first: the others are held against it. A method of
        which no trial could be scored is not in the answer."""
        chosen = self._together([None], None, f"{self._entry.name}: tuning baselines")
        if SINGLE_TASK in chosen:
            against = chosen[SINGLE_TASK].validation
            chosen |= self._together(methods, against, f"{self._entry.name}: tuning")
        return chosen

    def _together(
        self, methods: Sequence[MethodEntry | None], against: Metrics | None, label: str
    ) -> dict[str, Choice]:
        """All stages of tuning for all of ``methods``, one stage after the other, so that processes stay busy.

        Args:
            against: validation metrics that delta-m is relative to. Default: those of the method's own first trial that
                has a score.
        """
        trials: dict[str, list[Job]] = {name_of(method): [] for method in methods}
        results: dict[str, Record] = {}
        for stage in itertools.count(1):
            todo: list[Job] = []
            for method in methods:
                done = trials[name_of(method)]
                for rate, options in self._settings(stage, method, self._scored(done, results, against)):
                    job = self._make(method, rate, options, len(done))
                    done.append(dataclasses.replace(job, baseline_validation=against or {}))
                    todo.append(done[-1])
            if not todo:
                break
            results |= self._do(todo, f"{label}, stage {stage}")
        best = {name: self._best(self._scored(jobs, results, against)) for name, jobs in trials.items()}
        return {name: choice for name, choice in best.items() if choice is not None}

    def _settings(self, stage: int, method: MethodEntry | None, tried: list[_Trial]) -> list[tuning.Setting]:
        if stage == 1:
            return tuning.first_stage(method, self._plan, self._budget)
        first = self._best(tried[: len(self._plan.learning_rate_factors)])
        if first is None:
            return []
        if method is not None and method.search_weights:
            at_it = [(t.options, t.score) for t in tried]
            return tuning.weights_stage(self._plan, first.learning_rate, self._n_tasks, at_it)
        if stage == 2:
            return tuning.second_stage(method, self._plan, self._budget, first.learning_rate)
        return []

    def _scored(self, jobs: Sequence[Job], results: dict[str, Record], against: Metrics | None) -> list[_Trial]:
        """The trials in their order, with infinity where there is no score."""
        done = {i: results[job.config_hash] for i, job in enumerate(jobs) if job.config_hash in results}
        found: dict[int, Metrics] = {i: dict(record.validation or {}) for i, record in done.items()}
        scorable = (v for v in found.values() if protocol.delta_m(v, v, self._metrics) is not None)
        reference = next(scorable, {}) if against is None else against
        scores = {i: protocol.delta_m(v, reference, self._metrics) for i, v in found.items()}
        return [
            _Trial(
                rate=job.budget.learning_rate,
                options={} if job.method is None else job.method.options,
                score=math.inf if (score := scores.get(i)) is None else score,
                validation=found.get(i, {}),
            )
            for i, job in enumerate(jobs)
        ]

    def _best(self, tried: Sequence[_Trial]) -> Choice | None:
        number = min(range(len(tried)), key=lambda i: tried[i].score, default=0)  # of equals the earliest: defaults win
        if not tried or math.isinf(tried[number].score):
            return None
        best = tried[number]
        return Choice(
            learning_rate=best.rate,
            options=best.options,
            trial=number,
            score=best.score,
            at_the_edge=tuning.at_the_edge(self._plan, self._budget, best.rate),
            validation=best.validation,
        )


class _Trial(NamedTuple):
    """One setting, and what came of it."""

    rate: float
    options: dict[str, Any]
    score: float
    validation: Metrics
