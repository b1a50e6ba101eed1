"""One run: a network trained with one method, or the single-task networks beside it, and what is measured on them."""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import mtlcore
from mtlbench.devices import Device, repeatable
from mtlbench.protocol.conflict import ConflictProbe
from mtlbench.protocol.cost import Clock, PlainTwin
from mtlbench.protocol.delta_m import delta_m
from mtlbench.protocol.log import Log, thinned
from mtlbench.protocol.memory import peak_memory_mb, reset_peak_memory
from mtlbench.protocol.plan import Plan
from mtlbench.protocol.precision import scaled, scaler_of
from mtlbench.protocol.randomness import own_randomness, seed_for
from mtlbench.protocol.selection import OwnScore
from mtlbench.suite import MethodEntry
from mtlbench.tasks.base import BenchmarkTask, Budget, Network, Splits, closure, evaluate, losses_of
from mtlcore.errors import ConfigurationError

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
    device_memory_mb: float | None = None
    curves: dict[str, Any] = dataclasses.field(default_factory=dict)
    conflict: dict[str, float | None] = dataclasses.field(default_factory=dict)
    teleports: dict[str, Any] | None = None
    gradient_source: str | None = None
    diagnostics: dict[str, Any] = dataclasses.field(default_factory=dict)
    splits: dict[str, str] = dataclasses.field(default_factory=dict)


class _Meter:
    """Time and memory of a run from its start to its end."""

    def __init__(self, device: Device) -> None:
        self._device, self._began = device, time.perf_counter()
        self._resident = reset_peak_memory()
        device.reset_peak_memory()

    def read(self) -> dict[str, float | None]:
        peak = peak_memory_mb()
        return {
            "seconds": time.perf_counter() - self._began,
            "peak_memory_mb": peak,
            "memory_above_start_mb": None if peak is None or self._resident is None else peak - self._resident,
            "device_memory_mb": self._device.peak_memory_mb(),
        }


def train(
    task_name: str,
    task: BenchmarkTask,
    method: MethodEntry,
    seed: int,
    budget: Budget,
    baseline_validation: Mapping[str, float | None],
    progress: Progress = lambda step: None,
    *,
    trial: bool = False,
    device: str = "cpu",
) -> Outcome:
    """Train one network with one method and measure it.

    Args:
        baseline_validation: validation metrics of the single-task networks of this seed; the checkpoint is
            selected by delta-m against them.
        trial: all that tuning needs, and no more: the validation part. No test part, no conflict, no cost.
        device: where, as torch names it.
    """
    run = _Training(task_name, task, method, seed, budget, baseline_validation, trial=trial, device=device)
    return run.go(progress)


class _Training:
    """One run of :func:`train`."""

    def __init__(
        self,
        task_name: str,
        task: BenchmarkTask,
        method: MethodEntry,
        seed: int,
        budget: Budget,
        baseline_validation: Mapping[str, float | None],
        *,
        trial: bool,
        device: str,
    ) -> None:
        self.name, self.task, self.method, self.seed, self.trial = task_name, task, method, seed, trial
        self.device = Device(device)
        self.splits = task.load()
        self.budget = budget.resolved(len(self.splits.train))
        self.baseline = baseline_validation
        self.meter = _Meter(self.device)
        self.log = Log()

    def go(self, progress: Progress) -> Outcome:
        seed = seed_for("weights", self.name, self.seed)
        with own_randomness(seed, self.device.random_devices()), repeatable(self.device):
            self._prepare()
            for step in range(self.budget.steps):
                self._step(step)
                progress(step + 1)
            if not self.trial:
                self.probe.look(self.network, self.budget.steps)
            test = {} if self.trial else self.best.test(self.network, self._test)
        return self._outcome(test)

    def _prepare(self) -> None:
        network = self.network = Network(self.task).to(self.device.name)
        self.plan = Plan(self.name, self.task, network, self.splits, self.seed, self.budget, self.device, self.trial)
        self.scaler = scaler_of(self.budget, self.device)
        self.multi = _multi_task(
            self.method, network, self.plan, self.name, self.seed, self.method.taken and not self.trial
        )
        twin = PlainTwin(network, self.task, self.budget, self.device)
        self.clock = Clock(twin, set() if self.trial else self.plan.timed, self.device)
        metrics = self.task.metrics
        self.best = self.plan.selection(lambda found: delta_m(found, self.baseline, metrics), self._test)
        self.probe = ConflictProbe(
            self.name, self.task, self.splits.train, self.seed, self.budget.batch_size, self.device.name
        )

    def _step(self, step: int) -> None:
        if step in self.plan.probes and not self.trial:
            self.probe.look(self.network, step)
        drawn = self.plan.next_batches(self.multi.aggregator.batches)
        closures = [closure(self.task, self.network, *batch, self.plan.context) for batch in drawn]
        self.plan.renew_held_out()
        what = closures[0] if len(closures) == 1 else closures
        whole_step = functools.partial(self.multi.step, what, **scaled(self.scaler))
        self.log.note(self.clock.time(step, drawn[0], whole_step))
        self.plan.after_step(step, self.best, self.network)

    def _test(self, network: Network) -> dict[str, float]:
        return evaluate(self.task, network, self.splits.test)

    def _outcome(self, test: dict[str, float]) -> Outcome:
        steps = self.budget.steps
        per_step, ratio = self.clock.cost(steps)
        moves = self.multi.detector is not None or self.method.teleport
        losses = thinned(self.log.losses, self.task.tasks)
        return Outcome(
            metrics=test,
            validation=self.best.metrics,
            selected_step=self.best.step,
            seconds_per_step=per_step,
            ratio_to_sum=ratio,
            **self.meter.read(),  # type: ignore[arg-type]  # seconds are always there
            curves={"loss": losses, "validation": self.best.seen, "conflict": self.probe.seen},
            conflict=self.probe.summary() | self.log.steps(),
            teleports=self.log.teleports((per_step or 0.0) * steps) if moves else None,
            gradient_source=self.log.source,
            diagnostics={name: total / steps for name, total in self.log.diagnostics.items()},
            splits=self.splits.fingerprints(),
        )


def train_single_tasks(
    task_name: str,
    task: BenchmarkTask,
    seed: int,
    budget: Budget,
    progress: Progress = lambda step: None,
    *,
    trial: bool = False,
    device: str = "cpu",
) -> Outcome:
    """The baseline: one network per sub-task, each with the whole budget and the same initial weights.

    ``trial``, ``device``: as for :func:`train`.
    """
    where = Device(device)
    splits = task.load()
    meter = _Meter(where)
    budget = budget.resolved(len(splits.train))
    alone = []
    for position, name in enumerate(task.tasks):
        first = position * budget.steps
        with own_randomness(seed_for("weights", task_name, seed), where.random_devices()), repeatable(where):
            one = _SingleTask(task_name, task, name, splits, seed, budget, where, trial)
            one.go(lambda step, first=first: progress(first + step))  # type: ignore[misc]
            alone.append(one)
    per_step = [s for one in alone for s in one.per_step]
    losses: dict[str, Any] = {"step": [], "by_task": {}}
    for one in alone:
        thin = thinned(one.losses, (one.name,))
        losses = {"step": thin["step"], "by_task": losses["by_task"] | thin["by_task"]}
    return Outcome(
        metrics={key: value for one in alone for key, value in one.test.items()},
        validation={key: value for one in alone for key, value in one.best.metrics.items()},
        selected_step=max(one.best.step for one in alone),
        # All K networks have to be trained, so one "step" of the baseline is one step of each.
        seconds_per_step=statistics.median(per_step) * len(task.tasks),
        **meter.read(),  # type: ignore[arg-type]
        curves={"loss": losses, "validation": [], "conflict": []},
        splits=splits.fingerprints(),
    )


class _SingleTask:
    """The network of one sub-task, trained alone."""

    def __init__(
        self,
        task_name: str,
        task: BenchmarkTask,
        name: str,
        splits: Splits,
        seed: int,
        budget: Budget,
        device: Device,
        trial: bool,
    ) -> None:
        self.name, self._task, self._trial, self._splits, self._device = name, task, trial, splits, device
        self._network = Network(task, only=name).to(device.name)
        self._plan = Plan(task_name, task, self._network, splits, seed, budget, device, trial)
        self._scaler = scaler_of(budget, device)
        own = tuple(m for m in task.metrics if m.task == name)
        self.best = self._plan.selection(OwnScore(own), self._evaluate)
        self.losses: list[list[float]] = []
        self.per_step: list[float] = []
        self.test: dict[str, float] = {}

    def go(self, progress: Progress) -> None:
        for step in range(self._plan.budget.steps):
            self._step()
            self._plan.after_step(step, self.best, self._network)
            progress(step + 1)
        if not self._trial:
            self.test = self.best.test(self._network, self._evaluate)

    def _step(self) -> None:
        plan = self._plan
        inputs, targets = plan.next_batches(1)[0]
        start = self._device.wall()
        plan.optimizer.zero_grad()
        with plan.context():
            outputs, _ = self._network(inputs)
        loss = losses_of(self._task, outputs, targets).get(self.name)
        if loss is None:  # no label in this batch
            self.losses.append([float("nan")])
            return
        if self._scaler is None:
            loss.backward()
            plan.optimizer.step()
        else:
            self._scaler.scale(loss).backward()
            self._scaler.step(plan.optimizer)
            self._scaler.update()
        self.per_step.append(self._device.wall() - start)
        self.losses.append([float(loss.detach())])

    def _evaluate(self, network: Network) -> dict[str, float]:
        return evaluate(self._task, network, self._splits.test)


def _multi_task(
    method: MethodEntry, network: Network, plan: Plan, task_name: str, seed: int, taken: bool
) -> mtlcore.MultiTask:
    extra: dict[str, Any] = {}
    if method.teleport is not None:
        extra["teleport"] = mtlcore.create("teleport", method.teleport, **method.teleport_options)
        extra["probe"] = lambda: closure(plan.task, network, *plan.held_out, plan.context)()
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
        optimizer=plan.optimizer,
        seed=seed_for("method", task_name, seed),
        tasks=plan.task.tasks,
        heads=network.heads,
        metric=method.metric,
        taken=taken,
        **extra,
    )
