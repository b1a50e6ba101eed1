"""One search, and what its front is worth; a line on disk for each, so that a run that is stopped goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import moocore
import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

import mtlcore
from mtlbench import pareto, protocol, records
from mtlbench.fronts import plan
from mtlbench.fronts.plan import Subject
from mtlbench.jobs import environment, one_thread
from mtlbench.lock import alone_in
from mtlbench.protocol.delta_m import delta_m
from mtlbench.protocol.randomness import batches, own_randomness, seed_for
from mtlbench.runner import Summary
from mtlbench.suite import SINGLE_TASK, suggestion
from mtlbench.tasks.base import BenchmarkTask, Network, evaluate, losses_of
from mtlcore import simplex
from mtlcore.errors import ConfigurationError, MtlError

T = TypeVar("T")
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


def compare(
    folder: Path,
    *,
    methods: Sequence[str] = (),
    tasks: Sequence[str] = (),
    seeds: int | None = None,
    console: Console | None = None,
) -> Summary:
    """Do what is missing of the comparison in ``folder``.

    Args:
        methods: only these explorers; tasks: only these subjects. Default: all.
        seeds: paired seeds; None: as many as planned.
        console: where to say how far it is.

    Raises:
        ConfigurationError: there is no such method or task in it, or the folder cannot be used: another run is at work
            there, or its records are of something else.
    """
    console = console or Console()
    subjects = _some({s.name: s for s in plan.SUBJECTS}, tasks, "task")
    chosen = _some({m: m for m in plan.METHODS}, methods, "method")
    with records.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with alone_in(folder, console):
        say = lambda text: console.print(text, markup=False)
        return run(subjects, chosen, seeds or plan.SEEDS, folder / records.RECORDS, say)


def _some(known: Mapping[str, T], wanted: Sequence[str], what: str) -> list[T]:
    """The values of the names that are wanted; all, if none is."""
    for name in wanted:
        if name not in known:
            raise ConfigurationError(f"fronts has no {what} {name!r}. {suggestion(name, list(known), 'It has')}")
    return [value for name, value in known.items() if not wanted or name in wanted]


def holds_fronts(folder: Path) -> bool:
    """Whether the records in a folder are of this comparison."""
    first = next(records.lines(folder / records.RECORDS), {})
    return "subject" in first


def run(
    subjects: Iterable[Subject],
    methods: Iterable[str],
    seeds: int,
    file: Path,
    say: Callable[[str], None] = lambda text: None,
) -> Summary:
    """Do what is missing in ``file``, seed by seed, so that all methods have equally many.

    Raises:
        ConfigurationError: the file has records of something else.
    """
    there = list(records.lines(file))
    if any("subject" not in line for line in there):
        raise ConfigurationError(f"{file} has records of another suite. Give fronts a folder of its own: --out.")
    done = {key(line) for line in there if line["status"] == "ok"}
    summary = Summary()
    subjects, methods = list(subjects), list(methods)
    for seed, subject, method in itertools.product(range(seeds), subjects, methods):
        if (subject.name, method, seed, subject.passes) in done:
            summary.already += 1
            continue
        with one_thread():
            line = _line(subject, method, seed, file)
        records.append(file, line)
        name = f"{subject.name}, {method}, seed {seed}"
        say(f"{name}: {line['status']}, {line['seconds']:.1f} s")
        if line["status"] == "ok":
            summary.finished += 1
        else:
            summary.failed.append(f"{name}: {line['error']}")
    return summary


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
