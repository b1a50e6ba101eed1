"""The protocol: how one run is trained and measured, the same for every method.

- *Paired seeds.* Initial weights, data order and probe batches depend on (task, seed, axis), never on the method.
- *Single-task baselines* get the same steps, batches, learning-rate schedule and initial weights.
- *Selection on validation only.* The checkpoint with the best validation score is kept; the test part is
  evaluated once, on that checkpoint, and never in a trial of tuning.
- *Time.* Each step is timed; a plain summed-loss step on a copy of the network runs right before or after it at
  regular steps, so that the ratio compares like with like; it is a ratio of processor times (runs have one thread),
  which waiting for a busy machine does not change.
- *Conflict* is measured on fixed probe batches at a few checkpoints, for every method alike, outside the timed
  part and without touching the run.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import dataclasses
import functools
import gc
import hashlib
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

import mtlcore
from mtlbench.suite import MethodEntry
from mtlbench.tasks.base import BenchmarkTask, Budget, Metric, Network, Split, Splits, evaluate
from mtlcore.errors import ConfigurationError
from mtlcore.report import StepReport, TeleportResult

PROBES = 8
"""Checkpoints at which conflict is measured."""
PROBE_BATCHES = 4
"""Mini-batches per probe: their gradients are looked at one by one (with mini-batch noise) and averaged."""
TIMED_PAIRS = 24
"""Steps that are compared with a plain summed-loss step."""
CURVE_POINTS = 80
"""Points kept of a loss curve; each is the mean of its steps."""

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


def seed_for(axis: str, task: str, seed: int) -> int:
    """The seed of one axis of randomness ("weights", "order", "probe", "method"). The method is not an argument."""
    return int.from_bytes(hashlib.sha256(f"{axis}/{task}/{seed}".encode()).digest()[:7], "big")


def delta_m(metrics: Mapping[str, float], baseline: Mapping[str, float], declared: tuple[Metric, ...]) -> float | None:
    """Mean relative worsening against the baseline in percent; lower is better, negative means "better than".

    [paper] (100 / K) sum_k (-1)^{s_k} (M_k - B_k) / B_k over the K *metrics*, s_k = 1 where higher is better: the
    convention of CAGrad, Nash-MTL and FAMO. None if a baseline value is 0 or a value is missing or not finite: then no
    relative change exists.
    """
    changes = []
    for metric in declared:
        ours, base = metrics.get(metric.key), baseline.get(metric.key)
        if ours is None or base is None or base == 0 or not math.isfinite(ours) or not math.isfinite(base):
            return None
        changes.append((base - ours if metric.higher_is_better else ours - base) / abs(base))
    return 100.0 * statistics.fmean(changes)


# --- one run ----------------------------------------------------------------------------------------------------


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
    with _own_randomness(seed_for("weights", task_name, seed)):
        network = Network(task)
        run = _Run(task_name, task, network, splits, seed, budget)
        multi = _multi_task(method, network, run, task_name, seed)
        clock = _Clock(_PlainTwin(network, run), set() if trial else run.timed)
        best = _Best(lambda metrics: delta_m(metrics, baseline_validation, task.metrics))
        probe = _ConflictProbe(task_name, task, splits.train, seed, budget.batch_size)
        probed = set() if trial else run.probes | {budget.steps}
        log = _Log()
        n_batches = multi.aggregator.batches
        for step in range(budget.steps):
            if step in probed:
                probe.look(network, step)
            batches = run.next_batches(n_batches)
            closures = [_closure(task, network, *batch) for batch in batches]
            run.renew_held_out()
            whole_step = functools.partial(multi.step, closures[0] if n_batches == 1 else closures)
            report = clock.time(step, batches[0], whole_step)
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
        curves={"loss": _thinned(log.losses, task.tasks), "validation": best.seen, "conflict": probe.seen},
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
        with _own_randomness(seed_for("weights", task_name, seed)):
            network = Network(task, only=name)
            run = _Run(task_name, task, network, splits, seed, budget)
            own = tuple(m for m in task.metrics if m.task == name)
            best = _Best(_OwnScore(own))
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
            thin = _thinned(losses, (name,))
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


# --- parts of a run -----------------------------------------------------------------------------------------------


class _Run:
    """Optimizer, schedule, data order and the steps at which things are looked at: equal for all methods."""

    def __init__(
        self, task_name: str, task: BenchmarkTask, network: Network, splits: Splits, seed: int, budget: Budget
    ) -> None:
        self.task, self.budget = task, budget
        self.optimizer, self.schedule = _optimizer(network, budget)
        self._train = splits.train
        self._main = _batches(len(splits.train), budget.batch_size, seed_for("order", task_name, seed))
        # A method that draws further batches must not shift the order that all the others see.
        self._further = _batches(len(splits.train), budget.batch_size, seed_for("further order", task_name, seed))
        self._held_out = _batches(len(splits.train), budget.batch_size, seed_for("held out", task_name, seed))
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


def _optimizer(network: Network, budget: Budget) -> tuple[torch.optim.Optimizer, Any]:
    optimizer = torch.optim.Adam(network.parameters(), lr=budget.learning_rate)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=budget.steps)


def _batches(size: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Endless epochs without replacement; the last incomplete batch of an epoch is dropped."""
    generator = torch.Generator().manual_seed(seed)
    batch_size = min(batch_size, size)
    while True:
        order = torch.randperm(size, generator=generator)
        for start in range(0, size - batch_size + 1, batch_size):
            yield order[start : start + batch_size]


class _own_randomness:  # used like a function
    """Everything inside draws from a seed of its own; the caller's random state comes back afterwards."""

    def __init__(self, seed: int) -> None:
        self._fork = torch.random.fork_rng(devices=[])
        self._seed = seed

    def __enter__(self) -> None:
        self._fork.__enter__()
        torch.manual_seed(self._seed)

    def __exit__(self, *exception: Any) -> None:
        self._fork.__exit__(*exception)


def _closure(
    task: BenchmarkTask, network: Network, inputs: Tensor, targets: Mapping[str, Tensor]
) -> Callable[[], tuple[dict[str, Tensor], Tensor]]:
    def closure() -> tuple[dict[str, Tensor], Tensor]:
        outputs, features = network(inputs)
        return {name: task.loss(name, output, targets[name]) for name, output in outputs.items()}, features

    return closure


def _multi_task(method: MethodEntry, network: Network, run: _Run, task_name: str, seed: int) -> mtlcore.MultiTask:
    extra: dict[str, Any] = {}
    if method.teleport is not None:
        extra["teleport"] = mtlcore.create("teleport", method.teleport, **method.teleport_options)
        extra["probe"] = lambda: _closure(run.task, network, *run.held_out)()
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


class _PlainTwin:
    """The yardstick of cost: a copy of the network that takes plain summed-loss steps on the same batches."""

    def __init__(self, network: Network, run: _Run) -> None:
        self._task = run.task
        self._network = copy.deepcopy(network)
        self._optimizer, _ = _optimizer(self._network, run.budget)

    def step(self, inputs: Tensor, targets: Mapping[str, Tensor]) -> float:
        """Processor seconds of one step. The run's random stream is not touched."""
        with torch.random.fork_rng(devices=[]):
            start = time.process_time()
            self._optimizer.zero_grad()
            outputs, _ = self._network(inputs)
            total = sum(self._task.loss(name, output, targets[name]) for name, output in outputs.items())
            assert isinstance(total, Tensor)
            total.backward()
            self._optimizer.step()
            return time.process_time() - start


class _Best:
    """Keeps the checkpoint with the lowest validation score."""

    def __init__(self, score: Callable[[dict[str, float]], float | None]) -> None:
        self._score = score
        self._lowest = float("inf")
        self._weights: dict[str, Tensor] | None = None
        self.step = -1
        self.metrics: dict[str, float] = {}
        self.seen: list[dict[str, Any]] = []

    def look(self, step: int, metrics: dict[str, float], network: Network) -> None:
        score = self._score(metrics)
        if score is not None and math.isnan(score):  # no number is smaller: it would stay the best for ever
            score = None
        self.seen.append({"step": step + 1, "score": score, "metrics": metrics})
        if self._weights is None or (score is not None and score < self._lowest):
            self._lowest = float("inf") if score is None else score
            self._weights = {k: v.detach().clone() for k, v in network.state_dict().items()}
            self.step, self.metrics = step + 1, metrics

    def test(self, task: BenchmarkTask, network: Network, split: Split) -> dict[str, float]:
        """The one and only look at the test part."""
        assert self._weights is not None
        network.load_state_dict(self._weights)
        return evaluate(task, network, split)


class _OwnScore:
    """Score of a single-task network: delta-m of its own metrics against its own first look (the first one for which
    that exists), since they may have different units. With one metric this is the order of the metric itself."""

    def __init__(self, own: tuple[Metric, ...]) -> None:
        self._own = own
        self._first: dict[str, float] = {}

    def __call__(self, metrics: dict[str, float]) -> float | None:
        score = delta_m(metrics, self._first, self._own)
        if score is None and delta_m(metrics, metrics, self._own) is not None:
            self._first, score = metrics, 0.0
        return score


class _ConflictProbe:
    """Cosines and norms of the task gradients of the trunk, on the same probe batches for every method.

    In evaluation mode: the network is only looked at (no batch statistics move, no random number is drawn).
    """

    def __init__(self, task_name: str, task: BenchmarkTask, train: Split, seed: int, batch_size: int) -> None:
        stream = _batches(len(train), batch_size, seed_for("probe", task_name, seed))
        self._task = task
        self._batches = [train.batch(next(stream)) for _ in range(PROBE_BATCHES)]
        self.seen: list[dict[str, Any]] = []

    def look(self, network: Network, step: int) -> None:
        training = network.training
        network.eval()
        rows = [self._rows(network, *batch) for batch in self._batches]
        network.train(training)
        averaged = _angles(sum(rows[1:], rows[0]) / len(rows))
        noisy = [_angles(r) for r in rows]
        self.seen.append(
            {
                "step": step,
                "min_cosine": averaged["min"],
                "mean_cosine": averaged["mean"],
                "norm_ratio": averaged["ratio"],
                "min_cosine_minibatch": statistics.fmean(n["min"] for n in noisy) if noisy[0] else None,
            }
        )

    def _rows(self, network: Network, inputs: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        outputs, _ = network(inputs)
        parameters = [p for p in network.trunk.parameters() if p.requires_grad]
        rows = []
        for name, output in outputs.items():
            loss = self._task.loss(name, output, targets[name])
            found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            rows.append(
                torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, found)])
            )
        return torch.stack(rows).to(torch.float64)

    def summary(self) -> dict[str, float | None]:
        """Means over training; the point before training, equal for all methods, is left out."""
        after = self.seen[1:]
        return {
            name: statistics.fmean(point[name] for point in after) if after else None
            for name in ("min_cosine", "mean_cosine", "norm_ratio", "min_cosine_minibatch")
        }


def _angles(rows: Tensor) -> dict[str, float]:
    norms = rows.norm(dim=1)
    unit = rows / norms.clamp_min(torch.finfo(torch.float64).tiny)[:, None]
    cosines = unit @ unit.T
    off = cosines[torch.triu(torch.ones_like(cosines), diagonal=1).bool()]
    least = float(norms.min())
    return {
        "min": float(off.min()) if off.numel() else 1.0,
        "mean": float(off.mean()) if off.numel() else 1.0,
        "ratio": float(norms.max()) / least if least > 0 else float("inf"),
    }


class _Clock:
    """Times every step, and some of them against a plain summed-loss step right before or after."""

    def __init__(self, plain: _PlainTwin, paired: set[int]) -> None:
        self._plain, self._paired = plain, paired
        self.calm: list[float] = []  # wall seconds of the steps without a teleport
        self.calm_cpu: list[float] = []
        self.pairs: list[tuple[float, float]] = []  # processor seconds: this method, plain
        self.teleport_wall = 0.0
        self.teleport_cpu: list[float] = []  # whole steps in which a teleport was tried

    def time(self, step: int, batch: tuple[Tensor, dict[str, Tensor]], do: Callable[[], StepReport]) -> StepReport:
        """Do a step. The plain step goes first every other time, so that a warm cache favours neither."""
        paired = step in self._paired
        plain_first = paired and len(self.pairs) % 2 == 0
        plain = self._plain.step(*batch) if plain_first else 0.0
        start, start_cpu = time.perf_counter(), time.process_time()
        report = do()
        wall, cpu = time.perf_counter() - start, time.process_time() - start_cpu
        if paired and not plain_first:
            plain = self._plain.step(*batch)
        if report.teleport is not None:
            self.teleport_wall += report.teleport.seconds
            self.teleport_cpu.append(cpu)
        elif step > 0:  # the first step pays for warming up
            self.calm.append(wall)
            self.calm_cpu.append(cpu)
            if paired:
                self.pairs.append((cpu, plain))
        return report

    def cost(self, steps: int) -> tuple[float, float | None]:
        """Wall seconds per step, and the ratio of processor time to a plain summed-loss step.

        Medians, because other work on the machine only ever adds time. What teleports took beyond an ordinary step
        is spread over all steps.
        """
        per_step = (statistics.median(self.calm) if self.calm else 0.0) + self.teleport_wall / steps
        if not self.pairs:
            return per_step, None
        beyond = sum(self.teleport_cpu) - len(self.teleport_cpu) * statistics.median(self.calm_cpu)
        plain = statistics.median(p for _, p in self.pairs)
        return per_step, statistics.median(m / p for m, p in self.pairs) + beyond / steps / plain


class _Log:
    """What the steps reported."""

    def __init__(self) -> None:
        self.losses: list[list[float]] = []
        self.diagnostics: dict[str, float] = {}
        self.source: str | None = None
        self._looked = 0
        self._fired = 0
        self._tried: list[tuple[int, TeleportResult]] = []

    def note(self, report: StepReport) -> None:
        self.losses.append(report.losses.tolist())
        self.source = report.gradient_source
        self._looked += report.conflict is not None
        self._fired += bool(report.conflict is not None and report.conflict.conflicting)
        if report.teleport is not None:
            self._tried.append((report.step, report.teleport))
        for name, value in report.diagnostics.items():  # plain numbers and flags; a record keeps their means
            if isinstance(value, Tensor) and value.numel() == 1:
                value = value.item()
            if isinstance(value, (bool, int, float)):
                self.diagnostics[name] = self.diagnostics.get(name, 0.0) + float(value)

    def teleports(self, total_seconds: float) -> dict[str, Any]:
        """Attempts and what came of them."""
        accepted = [result for _, result in self._tried if result.accepted]
        reasons: dict[str, int] = {}
        for _, result in self._tried:
            if not result.accepted:
                reasons[result.reason] = reasons.get(result.reason, 0) + 1
        changes = [abs(v) for r in accepted for v in r.relative_loss_change.values()]
        seconds = sum(result.seconds for _, result in self._tried)
        return {
            "detector_looked": self._looked,
            "detector_fired": self._fired,
            "tried": len(self._tried),
            "accepted": len(accepted),
            "steps": [step for step, _ in self._tried],
            "seconds": seconds,
            "share_of_time": seconds / total_seconds if total_seconds else None,
            "refused_because": reasons,
            "conflict_before": statistics.fmean(r.conflict_before for r in accepted) if accepted else None,
            "conflict_after": statistics.fmean(r.conflict_after for r in accepted) if accepted else None,
            "largest_relative_loss_change": max(changes) if changes else None,
        }


def _thinned(losses: list[list[float]], names: tuple[str, ...]) -> dict[str, Any]:
    """{"step": [...], "by_task": {name: [...]}} with at most CURVE_POINTS bins, each the mean of its steps."""
    n = len(losses)
    edges = sorted({round(i * n / min(n, CURVE_POINTS)) for i in range(min(n, CURVE_POINTS) + 1)})
    bins = list(itertools.pairwise(edges))
    return {
        "step": [b for _, b in bins],
        "by_task": {
            name: [statistics.fmean(row[i] for row in losses[a:b]) for a, b in bins] for i, name in enumerate(names)
        },
    }


# --- memory -------------------------------------------------------------------------------------------------------


def reset_peak_memory() -> float | None:
    """Start measuring anew, where the system can (a worker process serves many runs); resident MB at the start."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what earlier runs freed must not count as memory that this one found
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return None
    return peak_memory_mb()


def peak_memory_mb() -> float | None:
    """Peak resident memory of this process since the reset (Linux), else since it started."""
    with contextlib.suppress(OSError), open("/proc/self/status") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024.0
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024.0**2 if sys.platform == "darwin" else 1024.0)
