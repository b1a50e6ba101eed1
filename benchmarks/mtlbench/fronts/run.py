"""One search, and what its front is worth; a line on disk for each, so that a run that is stopped goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import moocore
import numpy as np
import torch
from torch import Tensor, nn

import mtlcore
from mtlbench import pareto, protocol, records
from mtlbench.fronts.plan import Subject
from mtlbench.jobs import environment, one_thread
from mtlbench.protocol.delta_m import delta_m
from mtlbench.protocol.randomness import batches, own_randomness, seed_for
from mtlbench.suite import SINGLE_TASK
from mtlbench.tasks.base import BenchmarkTask, Network, evaluate, losses_of
from mtlcore import simplex
from mtlcore.errors import MtlError

FRONTIER = 201
"""Points of a declared front, for its hypervolume and for IGD+."""
Judge = Callable[[nn.Module], list[float] | None]
"""A model -> its coordinates (K), lower is better; None where one does not exist."""


@dataclasses.dataclass(frozen=True)
class Arena:
    """What a search needs of a subject and a seed, and how its models are judged."""

    model: nn.Module
    losses: Callable[[Any, Any], dict[str, Tensor]]
    batches: Callable[[int], Any]
    trunk: nn.Module | None
    rate: float
    judge: Judge
    best: np.ndarray | None = None


def run(
    subjects: Iterable[Subject],
    methods: Iterable[str],
    seeds: int,
    file: Path,
    say: Callable[[str], None] = lambda text: None,
) -> int:
    """Do what is missing in ``file``, seed by seed, so that all methods have equally many. Returns the number of runs
    that failed."""
    done = {key(line) for line in records.lines(file) if line["status"] == "ok"}
    failed = 0
    subjects, methods = list(subjects), list(methods)
    for seed in range(seeds):
        for subject in subjects:
            for method in methods:
                wanted = (subject.name, method, seed, subject.passes)
                if wanted in done:
                    continue
                with one_thread():
                    line = _line(subject, method, seed, file)
                records.append(file, line)
                failed += line["status"] != "ok"
                say(f"{subject.name}, {method}, seed {seed}: {line['status']}, {line['seconds']:.1f} s")
    return failed


def key(line: dict[str, Any]) -> tuple[str, str, int, int]:
    """By which a run is known."""
    return line["subject"], line["method"], line["seed"], line["passes"]


def _line(subject: Subject, method: str, seed: int, file: Path) -> dict[str, Any]:
    known = {"subject": subject.name, "method": method, "seed": seed, "passes": subject.passes}
    began = time.perf_counter()
    try:
        arena = (on_task if subject.kind == "task" else on_problem)(subject, seed, file)
        found: dict[str, Any] = {"status": "ok", **_searched(subject, arena, method, seed)}
    except MtlError as error:
        found = {"status": "failed", "error": str(error)}
    return known | found | {"seconds": time.perf_counter() - began, "environment": environment()}


def _searched(subject: Subject, arena: Arena, method: str, seed: int) -> dict[str, Any]:
    began = time.perf_counter()
    front = mtlcore.explore(
        arena.model,
        arena.losses,
        arena.batches,
        mtlcore.create("explorer", method, **subject.options(method)),
        passes=subject.passes,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=arena.rate),
        schedule=lambda optimizer, steps: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps),
        trunk=arena.trunk,
        seed=seed_for("method", subject.name, seed) % 2**31,
    )
    trained = time.perf_counter() - began
    few, many = (simplex.grid(subject.n_tasks, n) for n in (subject.points, subject.dense))
    known: dict[bytes, list[float] | None] = {}  # a sweep gives one model to several preferences
    points, dense = ([_judged(front.model(p), arena.judge, known) for p in grid] for grid in (few, many))
    return {"preferences": few.tolist(), "points": points, "training_seconds": trained} | worth(
        points, dense, arena.best
    )


def _judged(model: nn.Module, judge: Judge, known: dict[bytes, list[float] | None]) -> list[float] | None:
    numbers = [v.detach().double().flatten() for v in model.state_dict().values()]
    digest = hashlib.sha256(torch.cat(numbers).numpy().tobytes()).digest()
    if digest not in known:
        known[digest] = judge(model)
    return known[digest]


def worth(points: list[Any], dense: list[Any], best: np.ndarray | None) -> dict[str, float | None]:
    """Hypervolume and spread of a front; with a declared one (n, K) also the share of its hypervolume, and IGD+."""
    if None in points or None in dense:
        return {"hypervolume": None, "dense_hypervolume": None, "spread": None}
    found: dict[str, float | None] = {
        "hypervolume": pareto.hypervolume(np.array(points)),
        "dense_hypervolume": pareto.hypervolume(np.array(dense)),
        "spread": pareto.spread(np.array(points)),
    }
    if best is not None:
        found["igd_plus"] = float(moocore.igd_plus(np.array(points), ref=best))
        found["share"] = pareto.hypervolume(np.array(points)) / pareto.hypervolume(best)
    return found


# --- declared problems ------------------------------------------------------------------------------------------------


class _Placed(nn.Module):
    """A point x (P,) as the output of a linear layer for the input 1, so that every explorer can train it."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.layer = nn.utils.skip_init(nn.Linear, 1, len(start), dtype=torch.float64)
        with torch.no_grad():
            self.layer.weight.zero_()
            self.layer.bias.copy_(start)

    def forward(self) -> Tensor:
        out: Tensor = self.layer(torch.ones(1, dtype=torch.float64))
        return out


def on_problem(subject: Subject, seed: int, file: Path) -> Arena:
    """Coordinates: the losses in units of their ranges on the declared front, 0 the best and 1 the worst."""
    problem = mtlcore.create("problem", subject.name)
    steps = torch.linspace(0.0, 1.0, FRONTIER, dtype=torch.float64)
    front = torch.stack([problem.losses(problem.pareto_point(torch.stack([t, 1.0 - t]))) for t in steps])
    low = torch.tensor(problem.optimal_values, dtype=torch.float64)
    high = front.amax(0)
    start = problem.start(torch.Generator().manual_seed(seed_for("weights", subject.name, seed) % 2**31))

    def losses(model: Any, batch: Any) -> dict[str, Tensor]:
        return dict(zip(("first", "second"), problem.losses(model()), strict=True))

    def judge(model: nn.Module) -> list[float]:
        found: list[float] = ((problem.losses(model().detach()) - low) / (high - low)).tolist()
        return found

    best = ((front - low) / (high - low)).numpy()
    return Arena(_Placed(start), losses, lambda step: None, None, subject.rate, judge, best)


# --- real data --------------------------------------------------------------------------------------------------------


class _Batches:
    """The batch of the n-th step: the same for all methods, and for all models of a sweep."""

    def __init__(self, name: str, task: BenchmarkTask, seed: int) -> None:
        self._train = task.load().train
        self._orders = batches(len(self._train), task.budget.batch_size, seed_for("order", name, seed))
        self._known: list[Tensor] = []

    def __call__(self, step: int) -> Any:
        while len(self._known) <= step:
            self._known.append(next(self._orders))
        return self._train.batch(self._known[step])


def on_task(subject: Subject, seed: int, file: Path) -> Arena:
    """Coordinates: relative worsenings against the single-task networks of the seed (:mod:`mtlbench.pareto`)."""
    task: BenchmarkTask = mtlcore.create("task", subject.name)
    with own_randomness(seed_for("weights", subject.name, seed)):
        network = Network(task)
    baseline = _alone(subject, task, seed, file)

    def losses(model: Any, batch: Any) -> dict[str, Tensor]:
        inputs, targets = batch
        return losses_of(task, model(inputs)[0], targets)

    def judge(model: nn.Module) -> list[float] | None:
        assert isinstance(model, Network)
        metrics = evaluate(task, model, task.load().test)
        return worsenings(task, metrics, baseline)

    return Arena(
        network, losses, _Batches(subject.name, task, seed), network.trunk, task.budget.learning_rate, judge
    )  # fmt: skip


def worsenings(task: BenchmarkTask, metrics: dict[str, float], baseline: dict[str, float]) -> list[float] | None:
    """(K,) fractions, each the mean over the metrics of a sub-task; None where one does not exist."""
    found = [delta_m(metrics, baseline, tuple(m for m in task.metrics if m.task == name)) for name in task.tasks]
    whole = [c / 100.0 for c in found if c is not None]
    return whole if len(whole) == len(found) else None


def _alone(subject: Subject, task: BenchmarkTask, seed: int, file: Path) -> dict[str, float]:
    """Test metrics of the single-task networks, trained as long as one model of a sweep."""
    name = f"{SINGLE_TASK}:{subject.points}"
    for line in records.lines(file):
        if key(line) == (subject.name, name, seed, subject.passes):
            found: dict[str, float] = line["metrics"]
            return found
    budget = dataclasses.replace(
        task.budget, steps=subject.passes // subject.points, epochs=None, evaluations=1, selection="last"
    )
    outcome = protocol.train_single_tasks(subject.name, task, seed, budget)
    line = {"subject": subject.name, "method": name, "seed": seed, "passes": subject.passes, "status": "ok"}
    records.append(file, line | {"metrics": outcome.metrics, "seconds": outcome.seconds})
    return outcome.metrics
