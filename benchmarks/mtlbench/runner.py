"""Runs a suite: certificates, (tuning trials,) baselines, methods; one JSON line per finished run.

Everything that has finished is on disk before the next thing starts, so a run that is killed goes on where it was
when it is started again with the same folder.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

import mtlcore
from mtlbench import certification, protocol, records, tuning
from mtlbench.data import sources
from mtlbench.jobs import Job, make_task, name_of
from mtlbench.lock import alone_in
from mtlbench.progress import Bar, results
from mtlbench.suite import SINGLE_TASK, BudgetChanges, MethodEntry, Suite, TaskEntry, digest
from mtlbench.tasks.base import Budget
from mtlcore.errors import ConfigurationError, UnknownPluginError

MANIFEST = "suite.json"
_FORMAT = 1  # part of every configuration hash: raise it when what a run measures changes its meaning


@dataclasses.dataclass(frozen=True)
class Choice:
    """What tuning chose for one method: the setting, which trial it was, and how good."""

    learning_rate: float
    options: dict[str, Any]
    trial: int
    score: float
    """Delta-m on validation data."""
    at_the_edge: bool
    validation: dict[str, float]


@dataclasses.dataclass
class Summary:
    """What :func:`run` did."""

    finished: int = 0
    already: int = 0
    failed: list[str] = dataclasses.field(default_factory=list)
    refused: list[str] = dataclasses.field(default_factory=list)
    left_out: list[str] = dataclasses.field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Nothing failed and nothing was refused."""
        return not self.failed and not self.refused


def run(
    suite: Suite,
    folder: Path,
    *,
    jobs: int = 1,
    seeds: int | None = None,
    certify: bool = True,
    allow_refuted: bool = False,
    console: Console | None = None,
    source: str | None = None,
) -> Summary:
    """Do what is missing of a suite in ``folder``.

    Args:
        jobs: processes; each uses one thread, so that they do not disturb one another's timing more than needed.
        seeds: overrides the suite's number of paired seeds.
        certify: ask for certificates before training (theory before training).
        allow_refuted: train a method although a law that it claims is refuted.
        source: how to name the suite to `mtl bench run`, for the report. Default: its name.

    Raises:
        ConfigurationError: ``folder`` cannot be one, is damaged, or another run is at work in it.
        DataError: the data of a task cannot be had.
        UnknownPluginError, ConfigurationError: a method of the suite does not exist or has wrong options.
    """
    console = console or Console()
    summary = Summary()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{str(folder)!r} cannot be the folder of the records: {error.strerror}.") from error
    with alone_in(folder, console):
        records.manifest(folder / MANIFEST)  # better now than after an hour of tuning
        runner = _Runner(suite, folder, jobs, console, summary, {"source": source or suite.name, "seeds": seeds})
        _run_in(runner, certify, allow_refuted, suite.seeds if seeds is None else seeds)
    return summary


def _run_in(runner: _Runner, certify: bool, allow_refuted: bool, n_seeds: int) -> None:
    suite, folder, console, summary = runner.suite, runner.folder, runner.console, runner.summary
    methods = _existing_methods(suite, summary, console)
    tasks = {entry.name: make_task(entry) for entry in suite.tasks}
    for task in tasks.values():  # fetched once, here, rather than by several workers at the same time
        for source in task.sources:
            sources.locate(source)

    settings = {method.name: tuning.settings(method, suite.tuning) for method in methods}
    everything = list(itertools.chain.from_iterable(settings.values()))
    certificates = certification.certificates(everything, folder, runner.jobs, console) if certify else {}
    for method in list(methods):
        reasons = {
            f"{certification.with_options(c['name'], c['options'])} {why}"
            for setting in settings[method.name]
            for c in certification.of_method(certificates, setting)
            if (why := certification.refusal(c, allow_refuted)) is not None
        }
        if reasons:
            console.print("[red]refused[/] " + escape(f"{method.name}: {'; '.join(sorted(reasons))}"))
            summary.refused.append(method.name)
            methods.remove(method)

    for entry in suite.tasks:
        runner.run_task(entry, methods, n_seeds, certificates)


class _Runner:
    """One invocation of :func:`run`."""

    def __init__(
        self, suite: Suite, folder: Path, jobs: int, console: Console, summary: Summary, call: Mapping[str, Any]
    ) -> None:
        self.suite, self.folder, self.jobs, self.console, self.summary = suite, folder, jobs, console, summary
        self.call = call
        """How it was called, for whoever wants to do it again."""

    def run_task(
        self, entry: TaskEntry, methods: list[MethodEntry], n_seeds: int, certificates: Mapping[str, dict[str, Any]]
    ) -> None:
        budget = merged_budget(make_task(entry).budget, self.suite.budget, entry.budget)
        make = functools.partial(self._job, entry, budget)
        chosen = self._tune(entry, methods, budget) if self.suite.tuning.trials else {}

        def tuned(method: MethodEntry | None, seed: int) -> Job:
            choice = chosen.get(name_of(method))
            return make(method, seed) if choice is None else make(method, seed, choice.learning_rate, choice.options)

        first = [tuned(None, seed) for seed in range(n_seeds)]
        self._write_manifest(entry, [job.config_hash for job in [*first, *(tuned(m, 0) for m in methods)]], chosen)
        baselines = self._do(first, records.RECORDS, f"{entry.name}: baselines")
        todo = []
        for seed in range(n_seeds):
            base = baselines.get(seed)
            if base is None:
                self.console.print(
                    f"[yellow]{escape(entry.name)}, seed {seed}: no baseline, so no method is run for it[/]"
                )
                continue
            for method in methods:
                job = tuned(method, seed)
                assert job.method is not None
                todo.append(
                    dataclasses.replace(
                        job,
                        baseline=base["metrics"],
                        baseline_validation=base["validation"],
                        certificate=certification.short(certification.of_method(certificates, job.method)),
                    )
                )
        self._do(todo, records.RECORDS, entry.name)

    def _job(
        self,
        entry: TaskEntry,
        budget: Budget,
        method: MethodEntry | None,
        seed: int,
        rate: float | None = None,
        options: dict[str, Any] | None = None,
        trial: int | None = None,
    ) -> Job:
        if rate is not None:
            budget = dataclasses.replace(budget, learning_rate=rate)
        if method is not None and options is not None:
            method = method.model_copy(update={"options": options})
        configuration = {
            "format": _FORMAT,
            "task": entry.model_dump(include={"name", "options"}),
            "revision": make_task(entry).revision,
            "method": None if method is None else method.model_dump(exclude={"search", "optional", "front"}),
            "budget": dataclasses.asdict(budget),
        }
        return Job(self.suite.name, entry, method, seed, budget, digest(configuration), trial=trial)

    # --- tuning -----------------------------------------------------------------------------------------------

    def _tune(self, entry: TaskEntry, methods: list[MethodEntry], budget: Budget) -> dict[str, Choice]:
        """The choice of each method by validation, the baseline first: the others are held against it."""
        chosen = self._tune_together(entry, [None], budget, None, f"{entry.name}: tuning baselines")
        if SINGLE_TASK in chosen:
            against = chosen[SINGLE_TASK].validation
            chosen |= self._tune_together(entry, methods, budget, against, f"{entry.name}: tuning")
        for name in (SINGLE_TASK, *(m.name for m in methods)):
            if name not in chosen:
                self.console.print(
                    f"[yellow]not tuned[/] {escape(f'{name} on {entry.name}')}: no trial could be scored; defaults used"
                )
        return chosen

    def _tune_together(
        self,
        entry: TaskEntry,
        methods: Sequence[MethodEntry | None],
        budget: Budget,
        against: dict[str, float] | None,
        label: str,
    ) -> dict[str, Choice]:
        """Both stages of tuning for all of ``methods``, one stage after the other, so that processes stay busy.

        Args:
            against: validation metrics that delta-m is relative to. Default: those of the method's own first trial that
                has a score.
        """
        metrics, plan = make_task(entry).metrics, self.suite.tuning
        trials: dict[str, list[Job]] = {name_of(method): [] for method in methods}
        results: dict[str, dict[str, Any]] = {}

        def best(name: str) -> Choice | None:
            jobs = trials[name]
            done = {i: results[job.config_hash] for i, job in enumerate(jobs) if job.config_hash in results}
            found = {i: record["validation"] for i, record in done.items()}
            scorable = (v for v in found.values() if protocol.delta_m(v, v, metrics) is not None)
            reference = next(scorable, {}) if against is None else against
            scores = {i: s for i, v in found.items() if (s := protocol.delta_m(v, reference, metrics)) is not None}
            if not scores:
                return None
            trial = min(scores, key=scores.__getitem__)  # of equals the earliest: defaults win ties
            rate, method = jobs[trial].budget.learning_rate, jobs[trial].method
            return Choice(
                learning_rate=rate,
                options={} if method is None else method.options,
                trial=trial,
                score=scores[trial],
                at_the_edge=tuning.at_the_edge(plan, budget, rate),
                validation=found[trial],
            )

        for stage in (1, 2):
            todo: list[Job] = []
            for method in methods:
                done = trials[name_of(method)]
                if stage == 1:
                    settings = tuning.first_stage(method, plan, budget)
                else:
                    first = best(name_of(method))
                    settings = [] if first is None else tuning.second_stage(method, plan, budget, first.learning_rate)
                for rate, options in settings:
                    job = self._job(entry, budget, method, tuning.TRIAL_SEED, rate, options, trial=len(done))
                    done.append(dataclasses.replace(job, baseline_validation=against or {}))
                    todo.append(done[-1])
            results |= self._do_trials(todo, f"{label}, stage {stage} of 2")
        return {name: choice for name in trials if (choice := best(name)) is not None}

    def _do_trials(self, jobs: list[Job], label: str) -> dict[str, dict[str, Any]]:
        self._do(jobs, records.TRIALS, label)
        found = records.finished(records.read(self.folder / records.TRIALS)[0])
        return {j.config_hash: found[j.key] for j in jobs if j.key in found}

    # --- doing ------------------------------------------------------------------------------------------------

    def _do(self, jobs: list[Job], file: str, label: str) -> dict[int, dict[str, Any]]:
        """Run what is not in ``file`` yet; {seed: record} of the successful ones (of the last job of a seed)."""
        path = self.folder / file
        known = records.finished(records.read(path)[0])
        done = {job.seed: known[job.key] for job in jobs if job.key in known}
        todo = [job for job in jobs if job.key not in known]
        self.summary.already += len(jobs) - len(todo)
        if not todo:
            return done
        with Bar(self.console, label, todo) as bar:
            for record in results(todo, self.jobs, bar):
                records.append(path, record)
                bar.finished(record)
                if record["status"] == "ok":
                    self.summary.finished += 1
                    done[record["seed"]] = record
                else:
                    which = f"seed {record['seed']}" if record.get("trial") is None else f"trial {record['trial']}"
                    self.summary.failed.append(f"{record['method']} on {record['task']}, {which}")
        return done

    def _write_manifest(self, entry: TaskEntry, hashes: list[str], chosen: Mapping[str, Choice]) -> None:
        """What the records in this folder are meant to be: the suite, which configurations are current, what tuning
        chose."""
        path = self.folder / MANIFEST
        old = records.manifest(path).model_dump(mode="json", include={"current", "tuned"})
        wanted = {task.name for task in self.suite.tasks}  # a task that has left the suite takes its results along
        kept = {name: {t: v for t, v in old[name].items() if t in wanted} for name in ("current", "tuned")}
        current = {**kept["current"], entry.name: sorted(set(hashes))}
        tuned = {**kept["tuned"], entry.name: {name: dataclasses.asdict(c) for name, c in chosen.items()}}
        manifest = {"suite": self.suite.model_dump(mode="json"), **self.call, "current": current, "tuned": tuned}
        records.replace(path, {**manifest, "left_out": self.summary.left_out, "refused": self.summary.refused})


def merged_budget(default: Budget, *changes: BudgetChanges) -> Budget:
    """The task's default with the changes of the suite and of the suite's task entry."""
    for change in changes:
        default = dataclasses.replace(default, **change.model_dump(exclude_none=True))
    return default


def _existing_methods(suite: Suite, summary: Summary, console: Console) -> list[MethodEntry]:
    """The methods whose plugins exist. Options, those that tuning may try included, are checked now: better before two
    hours of training than after."""
    methods = []
    for method in suite.methods:
        try:
            for kind, name, options in method.plugins():
                mtlcore.create(kind, name, **options)
            for name, values in method.search.items():
                for value in values:
                    mtlcore.create("aggregator", method.aggregator, **{**method.options, name: value})
        except UnknownPluginError as error:
            if not method.optional:
                raise
            console.print(f"[yellow]left out[/] {escape(f'{method.name}: {error}')}")
            summary.left_out.append(method.name)
            continue
        methods.append(method)
    return methods
