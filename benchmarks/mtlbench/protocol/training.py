"""One run: a network trained with one method, or the single-task networks beside it, and what is measured on them."""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

import mtlcore
from mtlbench.protocol.conflict import ConflictProbe
from mtlbench.protocol.cost import Clock, PlainTwin
from mtlbench.protocol.delta_m import delta_m
from mtlbench.protocol.log import Log, thinned
from mtlbench.protocol.memory import peak_memory_mb, reset_peak_memory
from mtlbench.protocol.optimizer import optimizer_of
from mtlbench.protocol.randomness import batches, own_randomness, seed_for
from mtlbench.protocol.selection import Best, OwnScore
from mtlbench.suite import MethodEntry
from mtlbench.tasks.base import BenchmarkTask, Budget, Network, Splits, closure, evaluate
from mtlcore.errors import ConfigurationError

PROBES = 8
"""Checkpoints at which conflict is measured."""
TIMED_PAIRS = 24
"""Steps that are compared with a plain summed-loss step."""
Progress = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one run gave; the fields are those of a record."""

    metrics: dict[str, float]
    validation: dict[str, float]
    selected_step: int
    seconds_per_step: float | None = None
    ratio_to_sum: float | None = None
    seconds: float = 0.0
    peak_memory_mb: float | None = None
    memory_above_start_mb: float | None = None
    curves: dict[str, Any] = dataclasses.field(default_factory=dict)
    conflict: dict[str, float | None] = dataclasses.field(default_factory=dict)
    teleports: dict[str, Any] | None = None
    gradient_source: str | None = None
    diagnostics: dict[str, Any] = dataclasses.field(default_factory=dict)
    splits: dict[str, str] = dataclasses.field(default_factory=dict)


def train(
    task_name: str,
    task: BenchmarkTask,
    method: MethodEntry,
    seed: int,
    budget: Budget,
    baseline_validation: Mapping[str, float],
    progress: Progress = lambda step: None,
    *,
    trial: bool = False,
) -> Outcome:
    """Train one network with one method and measure it.

    Args:
        baseline_validation: validation metrics of the single-task networks of this seed; the checkpoint is
            selected by delta-m against them.
        trial: all that tuning needs, and no more: the validation part. No test part, no conflict, no cost.
    """
    began = time.perf_counter()
    splits = task.load()
    resident = reset_peak_memory()
    with own_randomness(seed_for("weights", task_name, seed)):
        network = Network(task)
        run = _Run(task_name, task, network, splits, seed, budget)
        multi = _multi_task(method, network, run, task_name, seed)
        clock = Clock(PlainTwin(network, task, budget), set() if trial else run.timed)
        best = Best(lambda metrics: delta_m(metrics, baseline_validation, task.metrics))
        probe = ConflictProbe(task_name, task, splits.train, seed, budget.batch_size)
        probed = set() if trial else run.probes | {budget.steps}
        log = Log()
        n_batches = multi.aggregator.batches
        for step in range(budget.steps):
            if step in probed:
                probe.look(network, step)
            drawn = run.next_batches(n_batches)
            closures = [closure(task, network, *batch) for batch in drawn]
            run.renew_held_out()
            whole_step = functools.partial(multi.step, closures[0] if n_batches == 1 else closures)
            report = clock.time(step, drawn[0], whole_step)
            run.schedule.step()
            log.note(report)
            if step in run.looks:
                best.look(step, evaluate(task, network, splits.validation), network)
            progress(step + 1)
        if budget.steps in probed:
            probe.look(network, budget.steps)
        test = {} if trial else best.test(task, network, splits.test)
    per_step, ratio = clock.cost(budget.steps)
    return Outcome(
        metrics=test,
        validation=best.metrics,
        selected_step=best.step,
        seconds_per_step=per_step,
        ratio_to_sum=ratio,
        seconds=time.perf_counter() - began,
        peak_memory_mb=(peak := peak_memory_mb()),
        memory_above_start_mb=None if peak is None or resident is None else peak - resident,
        curves={"loss": thinned(log.losses, task.tasks), "validation": best.seen, "conflict": probe.seen},
        conflict=probe.summary(),
        teleports=log.teleports(per_step * budget.steps) if multi.detector is not None or method.teleport else None,
        gradient_source=log.source,
        diagnostics={name: total / budget.steps for name, total in log.diagnostics.items()},
        splits=splits.fingerprints(),
    )


def train_single_tasks(
    task_name: str,
    task: BenchmarkTask,
    seed: int,
    budget: Budget,
    progress: Progress = lambda step: None,
    *,
    trial: bool = False,
) -> Outcome:
    """The baseline: one network per sub-task, each with the whole budget and the same initial weights.

    ``trial``: as for :func:`train`.
    """
    began = time.perf_counter()
    splits = task.load()
    resident = reset_peak_memory()
    metrics: dict[str, float] = {}
    validation: dict[str, float] = {}
    curves: dict[str, Any] = {"loss": {"step": [], "by_task": {}}, "validation": [], "conflict": []}
    selected: dict[str, int] = {}
    per_step: list[float] = []
    for position, name in enumerate(task.tasks):
        with own_randomness(seed_for("weights", task_name, seed)):
            network = Network(task, only=name)
            run = _Run(task_name, task, network, splits, seed, budget)
            own = tuple(m for m in task.metrics if m.task == name)
            best = Best(OwnScore(own))
            losses: list[list[float]] = []
            for step in range(budget.steps):
                inputs, targets = run.next_batches(1)[0]
                start = time.perf_counter()
                run.optimizer.zero_grad()
                loss = task.loss(name, network(inputs)[0][name], targets[name])
                loss.backward()
                run.optimizer.step()
                per_step.append(time.perf_counter() - start)
                run.schedule.step()
                losses.append([float(loss.detach())])
                if step in run.looks:
                    best.look(step, evaluate(task, network, splits.validation), network)
                progress(position * budget.steps + step + 1)
            metrics |= {} if trial else best.test(task, network, splits.test)
            validation |= best.metrics
            selected[name] = best.step
            thin = thinned(losses, (name,))
            curves["loss"]["step"] = thin["step"]
            curves["loss"]["by_task"] |= thin["by_task"]
    return Outcome(
        metrics=metrics,
        validation=validation,
        selected_step=max(selected.values()),
        # All K networks have to be trained, so one "step" of the baseline is one step of each.
        seconds_per_step=statistics.median(per_step) * len(task.tasks),
        seconds=time.perf_counter() - began,
        peak_memory_mb=(peak := peak_memory_mb()),
        memory_above_start_mb=None if peak is None or resident is None else peak - resident,
        curves=curves,
        splits=splits.fingerprints(),
    )


class _Run:
    """Optimizer, schedule, data order and the steps at which things are looked at: equal for all methods."""

    def __init__(
        self, task_name: str, task: BenchmarkTask, network: Network, splits: Splits, seed: int, budget: Budget
    ) -> None:
        self.task, self.budget = task, budget
        self.optimizer, self.schedule = optimizer_of(network, budget)
        self._train = splits.train
        self._main = batches(len(splits.train), budget.batch_size, seed_for("order", task_name, seed))
        # A method that draws further batches must not shift the order that all the others see.
        self._further = batches(len(splits.train), budget.batch_size, seed_for("further order", task_name, seed))
        self._held_out = batches(len(splits.train), budget.batch_size, seed_for("held out", task_name, seed))
        self.looks = {round((i + 1) * budget.steps / budget.evaluations) - 1 for i in range(budget.evaluations)}
        self.probes = {round(i * budget.steps / PROBES) for i in range(PROBES)}
        first = min(3, budget.steps - 1)  # the first steps pay for warming up
        count = max(1, min(TIMED_PAIRS, (budget.steps - first) // 2))
        self.timed = {first + round(i * (budget.steps - first) / count) for i in range(count)}

    def next_batches(self, n: int) -> list[tuple[Tensor, dict[str, Tensor]]]:
        further = [self._train.batch(next(self._further)) for _ in range(n - 1)]
        return [self._train.batch(next(self._main)), *further]

    def renew_held_out(self) -> None:
        """Another training batch than the step's own: the probe on which a teleport must keep its promise."""
        self.held_out = self._train.batch(next(self._held_out))


def _multi_task(method: MethodEntry, network: Network, run: _Run, task_name: str, seed: int) -> mtlcore.MultiTask:
    extra: dict[str, Any] = {}
    if method.teleport is not None:
        extra["teleport"] = mtlcore.create("teleport", method.teleport, **method.teleport_options)
        extra["probe"] = lambda: closure(run.task, network, *run.held_out)()
        if method.tolerance is not None:
            extra["tolerance"] = method.tolerance
    if method.detector is not None:
        extra["detector"] = mtlcore.create("detector", method.detector, **method.detector_options)
    if method.brakes:
        try:
            extra["brakes"] = mtlcore.Brakes(**method.brakes)
        except TypeError as error:
            raise ConfigurationError(f"method {method.name!r}: brakes: {error}") from error
    return mtlcore.MultiTask(
        network.trunk,
        aggregator=mtlcore.create("aggregator", method.aggregator, **method.options),
        optimizer=run.optimizer,
        seed=seed_for("method", task_name, seed),
        tasks=run.task.tasks,
        heads=network.heads,
        **extra,
    )
