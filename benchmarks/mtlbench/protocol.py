"""The protocol: how one run is trained and measured, the same for every method.

- *Paired seeds.* Initial weights, data order and probe batches depend on (task, seed, axis), never on the method.
- *Single-task baselines* get the same steps, batches, learning-rate schedule and initial weights.
- *Selection on validation only.* The checkpoint with the best validation score is kept; the test part is
  evaluated once, on that checkpoint.
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
import gc
import hashlib
import itertools
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
    convention of CAGrad, Nash-MTL and FAMO. None if a baseline value is 0 or a value is missing: then no relative
    change exists.
    """
    changes = []
    for metric in declared:
        ours, base = metrics.get(metric.key), baseline.get(metric.key)
        if ours is None or base is None or base == 0:
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
) -> Outcome:
    """Train one network with one method and measure it.

    Args:
        baseline_validation: validation metrics of the single-task networks of this seed; the checkpoint is
            selected by delta-m against them.
    """
    began = time.perf_counter()
    splits = task.load()
    resident = reset_peak_memory()
    with _own_randomness(seed_for("weights", task_name, seed)):
        network = Network(task)
        run = _Run(task_name, task, network, splits, seed, budget)
        multi = _multi_task(method, network, run, task_name, seed)
        plain = _PlainTwin(network, run)
        best = _Best(lambda metrics: delta_m(metrics, baseline_validation, task.metrics))
        probe = _ConflictProbe(task_name, task, splits.train, seed, budget.batch_size)
        teleports = _Teleports(method.teleport is not None)
        losses: list[list[float]] = []
        pairs: list[tuple[float, float]] = []
        calm: list[float] = []
        calm_cpu: list[float] = []
        fired = 0
        source = None
        diagnostics: dict[str, Any] = {}
        n_batches = multi.aggregator.batches

        for step in range(budget.steps):
            if step in run.probes:
                probe.look(network, step)
            batches = run.next_batches(n_batches)
            closures = [_closure(task, network, *batch) for batch in batches]
            run.renew_held_out()
            paired = step in run.timed
            plain_first = paired and len(pairs) % 2 == 0
            plain_cpu = plain.step(*batches[0]) if plain_first else 0.0
            start, start_cpu = time.perf_counter(), time.process_time()
            report = multi.step(closures[0] if n_batches == 1 else closures)
            seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
            if paired and not plain_first:
                plain_cpu = plain.step(*batches[0])
            run.schedule.step()
            losses.append(report.losses.tolist())
            fired += bool(report.conflict is not None and report.conflict.conflicting)
            source = report.gradient_source
            teleports.note(step, report.teleport, cpu)
            if report.teleport is None and step > 0:  # the first step pays for warming up
                calm.append(seconds)
                calm_cpu.append(cpu)
                if paired:
                    pairs.append((cpu, plain_cpu))
            _note_diagnostics(diagnostics, report.diagnostics)
            if step in run.looks:
                best.look(step, evaluate(task, network, splits.validation), network)
            progress(step + 1)
        probe.look(network, budget.steps)
        test = best.test(task, network, splits.test)

    per_step, ratio = _cost(calm, pairs, teleports.seconds, teleports.beyond(calm_cpu), budget.steps)
    curves = {
        "loss": _thinned(losses, task.tasks),
        "validation": best.seen,
        "conflict": probe.seen,
    }
    noted = teleports.summary(fired, per_step * budget.steps if per_step else None)
    return Outcome(
        metrics=test,
        validation=best.metrics,
        selected_step=best.step,
        seconds_per_step=per_step,
        ratio_to_sum=ratio,
        seconds=time.perf_counter() - began,
        peak_memory_mb=(peak := peak_memory_mb()),
        memory_above_start_mb=None if peak is None or resident is None else peak - resident,
        curves=curves,
        conflict=probe.summary(),
        teleports=noted if method.teleport is not None or method.detector is not None else None,
        gradient_source=source,
        diagnostics={k: v / budget.steps for k, v in diagnostics.items()},
        splits=splits.fingerprints(),
    )


def train_single_tasks(
    task_name: str, task: BenchmarkTask, seed: int, budget: Budget, progress: Progress = lambda step: None
) -> Outcome:
    """The baseline: one network per sub-task, each with the whole budget and the same initial weights."""
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
            best = _Best(lambda found, own=own: _own_score(found, own))
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
            metrics |= best.test(task, network, splits.test)
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


def _own_score(metrics: Mapping[str, float], own: tuple[Metric, ...]) -> float:
    """Score of a single-task network: its metrics, turned so that lower is better."""
    return sum((-1.0 if m.higher_is_better else 1.0) * metrics[m.key] for m in own)


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


class _Teleports:
    """Counts attempts and what came of them."""

    def __init__(self, expected: bool) -> None:
        self.expected = expected
        self.results: list[tuple[int, Any]] = []
        self.seconds = 0.0
        self._cpu: list[float] = []

    def note(self, step: int, result: Any, cpu: float) -> None:
        if result is not None:
            self.results.append((step, result))
            self.seconds += result.seconds
            self._cpu.append(cpu)

    def beyond(self, calm: list[float]) -> float:
        """Processor seconds that the steps with a teleport took beyond a step without."""
        return sum(self._cpu) - len(self._cpu) * statistics.median(calm) if self._cpu and calm else 0.0

    def summary(self, fired: int, total_seconds: float | None) -> dict[str, Any]:
        accepted = [r for _, r in self.results if r.accepted]
        reasons: dict[str, int] = {}
        for _, result in self.results:
            reasons[result.reason] = reasons.get(result.reason, 0) + 1
        changes = [abs(v) for r in accepted for v in r.relative_loss_change.values()]
        return {
            "detector_fired": fired,
            "tried": len(self.results),
            "accepted": len(accepted),
            "steps": [step for step, _ in self.results],
            "seconds": self.seconds,
            "share_of_time": self.seconds / total_seconds if total_seconds else None,
            "reasons": reasons,
            "conflict_before": statistics.fmean(r.conflict_before for r in accepted) if accepted else None,
            "conflict_after": statistics.fmean(r.conflict_after for r in accepted) if accepted else None,
            "largest_relative_loss_change": max(changes) if changes else None,
        }


def _cost(
    calm: list[float], pairs: list[tuple[float, float]], teleport_wall: float, teleport_cpu: float, steps: int
) -> tuple[float | None, float | None]:
    """Wall seconds per step, and the ratio of processor time to a plain summed-loss step.

    Medians, because other work on the machine only ever adds time; what teleports took is spread over all steps.
    """
    if not calm:
        return None, None
    per_step = statistics.median(calm) + teleport_wall / steps
    if not pairs:
        return per_step, None
    plain = statistics.median(p for _, p in pairs)
    return per_step, statistics.median(m / p for m, p in pairs) + teleport_cpu / steps / plain


def _note_diagnostics(sums: dict[str, Any], found: Mapping[str, Any]) -> None:
    """Add up what a method logs as plain numbers and flags; a record keeps their means."""
    for name, value in found.items():
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if isinstance(value, (bool, int, float)):
            sums[name] = sums.get(name, 0.0) + float(value)


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
