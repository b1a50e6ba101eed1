"""Runs a suite: certificates, (tuning trials,) baselines, methods; one JSON line per finished run.

Everything that has finished is on disk before the next thing starts, so a run that is killed goes on where it was
when it is started again with the same folder.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

import mtlcore
from mtlbench import certification, devices, protocols, records, tuning
from mtlbench.clusters import Cluster
from mtlbench.data import sources
from mtlbench.formats import Record, Short
from mtlbench.jobs import Job, make_task, name_of
from mtlbench.lock import alone_in
from mtlbench.progress import Bar, results
from mtlbench.protocol import optimizer
from mtlbench.suite import NOT_TRAINED_WITH, SINGLE_TASK, BudgetChanges, MethodEntry, Suite, TaskEntry, digest
from mtlbench.tasks.base import Budget
from mtlbench.tuner import Choice, Tuner
from mtlcore.errors import ConfigurationError, UnknownPluginError

_FORMAT = 1  # part of every configuration hash: raise it when what a run measures changes its meaning


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


@dataclasses.dataclass(frozen=True)
class Call:
    """How a suite is run; the folder of the records remembers what matters for its report.

    Args:
        jobs: processes; each uses one thread, so that they do not disturb one another's timing more than needed.
        seeds: overrides the suite's number of paired seeds.
        certify: ask for certificates before training (theory before training).
        allow_refuted: train a method although its certificate is refuted, missing or could not be made.
        source: how to name the suite to `mtl bench run`, for the report. Default: its name.
        methods: only these of the suite. Default: all.
        tasks: only these of the suite. Default: all.
        devices: where to train, as torch names it; several are used in turn by the runs.
        timeout: seconds after which a run is stopped and counts as failed.
        cluster: whose workers do the runs instead of processes of this machine.
    """

    jobs: int = 1
    seeds: int | None = None
    certify: bool = True
    allow_refuted: bool = False
    source: str | None = None
    methods: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    devices: tuple[str, ...] = ("cpu",)
    timeout: float | None = None
    cluster: Cluster | None = None


def run(suite: Suite, folder: Path, *, console: Console | None = None, **call: Any) -> Summary:
    """Do what is missing of a suite in ``folder``.

    Args:
        console: where to say how far it is.
        call: the fields of :class:`Call`.

    Raises:
        ConfigurationError: ``folder`` cannot be one, is damaged, or another run is at work in it; the suite has no such
            method or task; there is no such device.
        ConfigurationError: a task's budget names an optimizer or a schedule that cannot be made, or the protocol has no
            rules for it.
        DataError: the data of a task cannot be had.
        UnknownPluginError, ConfigurationError: a method of the suite does not exist or has wrong options.
    """
    runner = _Runner(suite, folder, Call(**call), console or Console())
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{str(folder)!r} cannot be the folder of the records: {error.strerror}.") from error
    with alone_in(folder, runner.console):
        records.manifest(folder / records.MANIFEST)  # better now than after an hour of tuning
        runner.run()
    return runner.summary


class _Runner:
    """One invocation of :func:`run`."""

    def __init__(self, suite: Suite, folder: Path, call: Call, console: Console) -> None:
        self.whole, self.folder, self.call, self.console = suite, folder, call, console
        self.suite = suite.only(methods=call.methods, tasks=call.tasks)
        self.partial = self.suite != suite
        self.n_seeds = suite.seeds if call.seeds is None else call.seeds
        self.summary = Summary()
        for name in call.devices:
            devices.check(name)

    def run(self) -> None:
        for entry in self.suite.tasks:  # a mistake in the last task's budget must not wait for the others' trainings
            optimizer.check(budget_of(self.suite, entry))
        methods = _existing_methods(self.suite, self.summary, self.console)
        for entry in self.suite.tasks:  # fetched once, here, rather than by several workers at the same time
            for source in make_task(entry).sources:
                sources.locate(source)
        settings = {method.name: tuning.settings(method, self.suite.tuning) for method in methods}
        certificates = self._certificates(list(itertools.chain.from_iterable(settings.values())))
        if self.call.certify and not self.call.allow_refuted:
            methods = [m for m in methods if self._may_train(m.name, settings[m.name], certificates)]
        for entry in self.suite.tasks:
            self._run_task(entry, methods, certificates)

    # --- theory before training -------------------------------------------------------------------------------

    def _certificates(self, everything: list[MethodEntry]) -> dict[str, dict[str, Any]]:
        if not self.call.certify:
            return {}
        path = self.folder / records.CERTIFICATES
        before = records.certificates(path)
        found = certification.certificates(everything, self.folder, self.call.jobs, self.console)
        if self.partial:  # those of the methods that were left aside this time still hold
            records.replace(path, {**before, **found})
        return found

    def _may_train(self, name: str, settings: list[MethodEntry], certificates: Mapping[str, dict[str, Any]]) -> bool:
        """Only what keeps its claims, whatever tuning chooses. Who cannot be asked has not answered."""
        open_questions = dict.fromkeys(
            f"{certification.with_options(c['name'], c['options'])} "
            + ("claims a law that is refuted" if c["passed"] is False else "has no certificate")
            for setting in settings
            for c in certification.of_method(certificates, setting)
            if c["passed"] is not True
        )
        if open_questions:
            self.console.print(f"[red]refused[/] {escape(name)}: {escape('; '.join(open_questions))}")
            self.summary.refused.append(name)
        return not open_questions

    # --- one task ---------------------------------------------------------------------------------------------

    def _run_task(
        self, entry: TaskEntry, methods: list[MethodEntry], certificates: Mapping[str, dict[str, Any]]
    ) -> None:
        budget = budget_of(self.suite, entry)
        chosen = self._tune(entry, methods, budget)

        def tuned(method: MethodEntry | None, seed: int) -> Job:
            choice = chosen.get(name_of(method))
            if choice is None:
                return self._job(entry, budget, method, seed)
            return self._job(entry, budget, method, seed, choice.learning_rate, choice.options)

        first = [tuned(None, seed) for seed in range(self.n_seeds)]
        self._write_manifest(entry, [job.config_hash for job in [*first, *(tuned(m, 0) for m in methods)]], chosen)
        baselines = self._do(first, records.RECORDS, f"{entry.name}: baselines")
        todo = []
        for seed in range(self.n_seeds):
            base = baselines.get(seed)
            if base is None:
                who = escape(f"{entry.name}, seed {seed}")
                self.console.print(f"[yellow]{who}: no baseline, so no method is run for it[/]")
                continue
            todo += [_against(base, tuned(method, seed), certificates) for method in methods]
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
            budget = budget.at_rate(rate)
        if method is not None and options is not None:
            method = method.model_copy(update={"options": options})
        kinds = sorted({device.partition(":")[0] for device in self.call.devices})
        job = configured(self.suite.name, entry, method, seed, budget, kinds)
        return dataclasses.replace(job, trial=trial, timeout=self.call.timeout)

    # --- tuning -----------------------------------------------------------------------------------------------

    def _tune(self, entry: TaskEntry, methods: list[MethodEntry], budget: Budget) -> dict[str, Choice]:
        if not self.suite.tuning.trials:
            return {}

        def trial(method: MethodEntry | None, rate: float, options: dict[str, Any], number: int) -> Job:
            return self._job(entry, budget, method, tuning.TRIAL_SEED, rate, options, trial=number)

        chosen = Tuner(entry, budget, self.suite.tuning, trial, self._do_trials).choices(methods)
        for name in (SINGLE_TASK, *(m.name for m in methods)):
            if name not in chosen:
                who = escape(f"{name} on {entry.name}")
                self.console.print(f"[yellow]not tuned[/] {who}: no trial could be scored; defaults used")
        return chosen

    def _do_trials(self, jobs: list[Job], label: str) -> dict[str, Record]:
        self._do(jobs, records.TRIALS, label)
        found = records.finished(self.folder / records.TRIALS)
        return {j.config_hash: found[j.key] for j in jobs if j.key in found}

    # --- doing ------------------------------------------------------------------------------------------------

    def _do(self, jobs: list[Job], file: str, label: str) -> dict[int, Record]:
        """Run what is not in ``file`` yet; {seed: record} of the successful ones (of the last job of a seed)."""
        path = self.folder / file
        known = records.finished(path)
        done = {job.seed: known[job.key] for job in jobs if job.key in known}
        todo = [job for job in jobs if job.key not in known]
        self.summary.already += len(jobs) - len(todo)
        if not todo:
            return done
        todo = [dataclasses.replace(job, device=d) for job, d in zip(todo, itertools.cycle(self.call.devices))]
        with Bar(self.console, label, todo) as bar:
            for record in results(todo, self.call.jobs, bar, self.call.cluster):
                records.append(path, record)
                bar.finished(record)
                if record.ok:
                    self.summary.finished += 1
                    done[record.seed] = record
                else:
                    which = f"seed {record.seed}" if record.trial is None else f"trial {record.trial}"
                    self.summary.failed.append(f"{record.method} on {record.task}, {which}")
        return done

    def _write_manifest(self, entry: TaskEntry, hashes: list[str], chosen: Mapping[str, Choice]) -> None:
        """What the records in this folder are meant to be: the suite, which configurations are current, what tuning
        chose."""
        path = self.folder / records.MANIFEST
        old = records.manifest(path).model_dump(mode="json", include={"current", "tuned"})
        wanted = {task.name for task in self.whole.tasks}  # a task that has left the suite takes its results along
        kept = {name: {t: v for t, v in old[name].items() if t in wanted} for name in ("current", "tuned")}
        tuned = {name: dataclasses.asdict(c) for name, c in chosen.items()}
        if self.partial:  # nobody asked about the other methods, so what is there of them stays as it is
            hashes = [*hashes, *kept["current"].get(entry.name, [])]
            tuned = {**kept["tuned"].get(entry.name, {}), **tuned}
        content = {
            "suite": self.whole.model_dump(mode="json"),
            "source": self.call.source or self.whole.name,
            "seeds": self.call.seeds,
            "current": {**kept["current"], entry.name: sorted(set(hashes))},
            "tuned": {**kept["tuned"], entry.name: tuned},
            "left_out": self.summary.left_out,
            "refused": self.summary.refused,
        }
        records.replace(path, content)


def configured(
    suite: str, entry: TaskEntry, method: MethodEntry | None, seed: int, budget: Budget, kinds: list[str]
) -> Job:
    """A job with the hash of all that its result depends on.

    Args:
        kinds: of the devices it may run on; numbers of another kind of device are other results.
    """
    configuration = {
        "format": _FORMAT,
        "task": entry.model_dump(include={"name", "options"}),
        "revision": make_task(entry).revision,
        "method": None if method is None else _identity(method),
        "budget": budget.differences(),
    }
    if kinds != ["cpu"]:
        configuration["devices"] = kinds
    return Job(suite, entry, method, seed, budget, digest(configuration))


_FIRST_FIELDS = (
    "name", "aggregator", "options", "detector", "detector_options", "teleport", "teleport_options", "brakes",
    "tolerance",
)  # fmt: skip


def _identity(method: MethodEntry) -> dict[str, Any]:
    """What a method's result depends on. A field that a later version has added counts only where it is used: records
    from before it are still results of the same configuration."""
    content = method.model_dump(exclude=NOT_TRAINED_WITH)
    usual = {name: field.default for name, field in MethodEntry.model_fields.items()}
    return {name: v for name, v in content.items() if name in _FIRST_FIELDS or v != usual[name]}


def _against(base: Record, job: Job, certificates: Mapping[str, dict[str, Any]]) -> Job:
    """A method's job, held against the baseline of its seed."""
    assert job.method is not None
    short = certification.short(certification.of_method(certificates, tuning.witness(job.method)))
    return dataclasses.replace(
        job,
        baseline=base.metrics or {},
        baseline_validation=base.validation or {},
        certificate=None if short is None else Short.model_validate(short),
    )


def merged_budget(default: Budget, *changes: BudgetChanges) -> Budget:
    """The task's default with the changes of the suite and of the suite's task entry."""
    for change in changes:
        given = change.model_dump(exclude_none=True)
        if "steps" in given:  # whoever says steps does not mean epochs
            given["epochs"] = None
        default = dataclasses.replace(default, **given)
    return default


def budget_of(suite: Suite, entry: TaskEntry) -> Budget:
    """Of one task: its default with the changes of the protocol, of the suite, and of the suite's task entry."""
    following = protocols.budget_for(suite.protocol, entry.name)
    return merged_budget(make_task(entry).budget, following, suite.budget, entry.budget)


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
