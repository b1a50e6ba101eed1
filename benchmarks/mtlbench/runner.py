"""Runs a suite: certificates, (tuning trials,) baselines, methods; one JSON line per finished run.

Everything that has finished is on disk before the next thing starts, so a run that is killed goes on where it was
when it is started again with the same folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import itertools
import json
import os
import platform
import re
import signal
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky.process_executor import TerminatedWorkerError
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import mtlcore
from mtlbench import protocol, records, tuning
from mtlbench.data import sources
from mtlbench.formats import Answer, mistakes
from mtlbench.suite import SINGLE_TASK, BudgetChanges, MethodEntry, Suite, TaskEntry, digest
from mtlbench.tasks.base import BenchmarkTask, Budget
from mtlcore.errors import ConfigurationError, PluginError, UnknownPluginError
from mtlcore.registry import BUILT_IN, registry

CERTIFICATES = "certificates.json"
MANIFEST = "suite.json"
LOCK = "run.lock"
_FORMAT = 1  # part of every configuration hash: raise it when what a run measures changes its meaning


@dataclasses.dataclass(frozen=True)
class Job:
    """One run, complete in itself, so that any process on any machine can do it."""

    suite: str
    task: TaskEntry
    method: MethodEntry | None
    seed: int
    budget: Budget
    config_hash: str
    certificate: dict[str, Any] | None = None
    baseline: dict[str, float] = dataclasses.field(default_factory=dict)
    baseline_validation: dict[str, float] = dataclasses.field(default_factory=dict)
    trial: int | None = None

    @property
    def method_name(self) -> str:
        """As the report calls it."""
        return _name(self.method)

    @property
    def key(self) -> tuple[str, str, int, str]:
        """As :func:`mtlbench.records.key`."""
        return (self.task.name, self.method_name, self.seed, self.config_hash)

    def steps(self) -> int:
        """Optimizer steps, for the progress bar."""
        networks = len(make_task(self.task).tasks) if self.method is None else 1
        return self.budget.steps * networks


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


def _name(method: MethodEntry | None) -> str:
    return SINGLE_TASK if method is None else method.name


def make_task(entry: TaskEntry) -> BenchmarkTask:
    """The benchmark task of a suite entry."""
    task = mtlcore.create("task", entry.name, **entry.options)
    if not isinstance(task, BenchmarkTask):
        raise PluginError(
            f"task {entry.name!r} is a {type(task).__qualname__}, not an mtlbench.tasks.base.BenchmarkTask."
        )
    return task


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
    with _alone_in(folder, console):
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
    certificates = _certificates(everything, folder, runner.jobs, console) if certify else {}
    for method in list(methods):
        refuted = list(
            dict.fromkeys(
                _with_options(c["name"], c["options"])
                for setting in settings[method.name]
                for c in _of_method(certificates, setting)
                if c["passed"] is False
            )
        )
        if refuted and not allow_refuted:
            who = f"{method.name}: {', '.join(refuted)}"
            console.print(f"[red]refused[/] {escape(who)} claims a law that is refuted")
            summary.refused.append(method.name)
            methods.remove(method)

    for entry in suite.tasks:
        runner.run_task(entry, methods, n_seeds, certificates)


@contextlib.contextmanager
def _alone_in(folder: Path, console: Console) -> Iterator[None]:
    """Two runs at once would repeat each other's work and mix their records. What a killed run left is taken over."""
    path = folder / LOCK
    try:
        with records.writing(path):
            file: TextIO = path.open("x", encoding="utf-8")
    except ConfigurationError as error:
        if not isinstance(error.__cause__, FileExistsError):
            raise
        file = _taken_over(path)
        console.print(
            "[yellow]taken over[/] from a run that was killed, or that a method took down; --jobs 2 goes on where a "
            "method does that, and says which"
        )
    with file:
        file.write(f"{os.getpid()} {platform.node()}")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _taken_over(path: Path) -> TextIO:
    """The lock of a run that is no more, emptied. Of several runs that find it, one gets it.

    Raises:
        ConfigurationError: the lock is another run's.
    """
    with records.writing(path):
        held = ConfigurationError(
            f"another run is at work in {str(path.parent)!r} (process and machine: {path.read_text().strip() or '?'}). "
            f"Wait for it, or give another --out; if there is none, delete {path}."
        )
        if _is_held(path):
            raise held from None
        import fcntl  # not on every system; where it is not, every lock is held

        file = path.open("r+", encoding="utf-8")
        fcntl.flock(file, fcntl.LOCK_EX)
        if _is_held(path):  # by one who was quicker
            file.close()
            raise held from None
        file.truncate()
    return file


def _is_held(path: Path) -> bool:
    """Whether the process that wrote a lock may still be there. This process itself holds none: an equal number is that
    of one before it, in a container that starts counting anew."""
    process, _, machine = path.read_text(encoding="utf-8").partition(" ")
    if machine != platform.node() or os.name == "nt":  # signal 0 is Ctrl-C there
        return True
    with contextlib.suppress(PermissionError):
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            return False
    return int(process) != os.getpid()


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
            choice = chosen.get(_name(method))
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
                        certificate=_short(_of_method(certificates, job.method)),
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
        trials: dict[str, list[Job]] = {_name(method): [] for method in methods}
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
                done = trials[_name(method)]
                if stage == 1:
                    settings = tuning.first_stage(method, plan, budget)
                else:
                    first = best(_name(method))
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
        with _Bar(self.console, label, todo) as bar:
            for record in _results(todo, self.jobs, bar):
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
        _write_json(path, {**manifest, "left_out": self.summary.left_out, "refused": self.summary.refused})


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


# --- certificates -------------------------------------------------------------------------------------------------


def _certificates(methods: list[MethodEntry], folder: Path, jobs: int, console: Console) -> dict[str, dict[str, Any]]:
    """{key: certificate} of every plugin in use, with the options that it may be trained with. Whoever certifies knows
    when an older answer still holds, so it is asked anew each time."""
    wanted = {_certificate_key(*plugin): plugin for method in methods for plugin in method.plugins()}
    found: dict[str, dict[str, Any]] = {}
    waiting = console.status(f"theory before training: verifying {len(wanted)} plugins")
    with waiting if console.is_terminal else contextlib.nullcontext():
        work = [functools.partial(certify_one, *plugin) for plugin in wanted.values()]
        for certificate in _parallel(work, jobs, _not_certified):
            found[_certificate_key(certificate["kind"], certificate["name"], certificate["options"])] = certificate
            mark = {True: "[green]verified[/]", False: "[red]REFUTED[/]", None: "[yellow]not verified[/]"}
            name = _with_options(certificate["name"], certificate["options"])
            console.print(f"{mark[certificate['passed']]} " + escape(f"{name}: {certificate['summary']}"))
    ordered = {key: found[key] for key in wanted}
    _write_json(folder / CERTIFICATES, ordered)
    return ordered


def certify_one(kind: str, name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Ask whoever can answer whether this plugin keeps what it claims. ``passed`` is None if nobody can."""
    with _one_thread():
        began = time.perf_counter()
        try:
            answer = registry().ask("mtlcore_certify", kind=kind, name=name, options=options)
        except (Exception, SystemExit) as error:
            answer = {"passed": None, "summary": f"could not be checked: {type(error).__name__}: {error}", "rows": []}
        if answer is None:
            answer = {"passed": None, "summary": "no installed plugin can certify it; trained unverified", "rows": []}
        else:
            try:
                Answer.model_validate(answer)
            except ValidationError as error:
                why = f"could not be checked: {answer!r:.60} is no certificate ({mistakes(error)})"
                answer = {"passed": None, "summary": why, "rows": []}
        seconds = time.perf_counter() - began
    return {**answer, "kind": kind, "name": name, "options": options, "seconds": seconds}


def _with_options(name: str, options: Mapping[str, Any]) -> str:
    return name + (f" ({', '.join(f'{k} = {v}' for k, v in options.items())})" if options else "")


def _not_certified(kind: str, name: str, options: dict[str, Any], *, why: str) -> dict[str, Any]:
    summary = f"could not be checked: {why}"
    return {
        "kind": kind,
        "name": name,
        "options": options,
        "seconds": None,
        "passed": None,
        "summary": summary,
        "rows": [],
    }


def _certificate_key(kind: str, name: str, options: dict[str, Any]) -> str:
    return f"{kind}/{name}/{digest([options, registry().find(kind, name).provenance])}"


def _of_method(certificates: Mapping[str, dict[str, Any]], method: MethodEntry) -> list[dict[str, Any]]:
    keys = [_certificate_key(*plugin) for plugin in method.plugins()]
    return [certificates[k] for k in keys if k in certificates]


def _short(certificates: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The certificate as a record keeps it: the verdict and one line per plugin; all rows are in the folder."""
    if not certificates:
        return None
    verdicts = [c["passed"] for c in certificates]
    passed = False if False in verdicts else None if None in verdicts else True
    return {"passed": passed, "summary": "; ".join(f"{c['name']}: {c['summary']}" for c in certificates)}


# --- one job, in any process --------------------------------------------------------------------------------------


def do_job(job: Job, progress: Callable[[int], None] = lambda step: None) -> dict[str, Any]:
    """Train and measure; an error becomes a record with status "failed"."""
    record = _record_of(job)
    trial = job.trial is not None
    with _one_thread():
        try:
            task = make_task(job.task)
            if job.method is None:
                outcome = protocol.train_single_tasks(job.task.name, task, job.seed, job.budget, progress, trial=trial)
            else:
                outcome = protocol.train(
                    job.task.name, task, job.method, job.seed, job.budget, job.baseline_validation, progress,
                    trial=trial,
                )  # fmt: skip
            record |= dataclasses.asdict(outcome)
            if trial:
                record["metrics"] = None
            else:
                baseline = outcome.metrics if job.method is None else job.baseline
                record["delta_m"] = protocol.delta_m(outcome.metrics, baseline, task.metrics)
        except (Exception, SystemExit) as error:  # whoever calls sys.exit in a plugin ends its run, not ours
            record["traceback"] = traceback.format_exc(limit=-6)
            return _failed(record, f"{type(error).__name__}: {error}")
    return record | _finished_now()


def _failed(record: dict[str, Any], error: str) -> dict[str, Any]:
    return record | {"status": "failed", "error": error} | _finished_now()


def _finished_now() -> dict[str, str]:
    return {"finished_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")}


def _record_of(job: Job) -> dict[str, Any]:
    """A record as far as it is known before the run."""
    return {
        "suite": job.suite,
        "task": job.task.name,
        "method": job.method_name,
        "seed": job.seed,
        "status": "ok",
        "metrics": None,
        "delta_m": None,
        "seconds_per_step": None,
        "peak_memory_mb": None,
        "environment": environment() | _others(job),
        "config_hash": job.config_hash,
        "hyperparameters": {
            "budget": dataclasses.asdict(job.budget),
            "task_options": job.task.options,
            "method": None if job.method is None else job.method.model_dump(exclude={"search", "optional", "front"}),
        },
        "certificate": job.certificate,
    } | ({} if job.trial is None else {"trial": job.trial})


@functools.cache
def environment() -> dict[str, Any]:
    """What a number may depend on besides the code."""
    return {
        "mtlcore": mtlcore.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads_per_run": 1,
        "device": "cpu",
        "dtype": "float32",
    }


def _others(job: Job) -> dict[str, str]:
    """Versions of the third parties' distributions that a run uses: their code is not in the configuration's hash."""
    used = [("task", job.task.name), *((kind, name) for kind, name, _ in (job.method.plugins() if job.method else ()))]
    entries = [registry().find(kind, name) for kind, name in used]
    return {e.distribution: e.version or "?" for e in entries if e.distribution != BUILT_IN}


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --- processes and progress ---------------------------------------------------------------------------------------


def _parallel(
    work: list[functools.partial[dict[str, Any]]], jobs: int, instead: Callable[..., dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Results in the order in which they finish. Ctrl-C ends the workers; what is on disk stays valid.

    A worker that dies (a crash in native code, out of memory) takes with it what its siblings are at. Then whatever may
    be to blame is done again, one at a time; for what dies a second time the result is that of ``instead``, called with
    the same arguments and ``why``. Without workers (one job) a death is ours.
    """
    if jobs == 1:
        yield from (task() for task in work)
        return
    left = dict(enumerate(work))
    while left:
        try:
            for i, result in _in_workers(list(left.items()), jobs):
                del left[i]
                yield result
        except TerminatedWorkerError:
            for i in list(left)[:jobs]:  # they are begun in this order
                task = left.pop(i)
                try:
                    ((_, result),) = _in_workers([(i, task)], jobs)
                except TerminatedWorkerError as error:
                    codes = re.search(r"\{.*\}", str(error))
                    why = f"its process died ({codes[0] if codes else 'no exit code'}): a crash, or out of memory"
                    result = instead(*task.args, why=why)
                yield result


def _in_workers(
    work: list[tuple[int, functools.partial[dict[str, Any]]]], jobs: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    with parallel_config(backend="loky", inner_max_num_threads=1), warnings.catch_warnings():
        # Workers grow while they cache data, and are stopped on Ctrl-C: joblib warns about both, and both are meant.
        warnings.filterwarnings("ignore", message="A worker stopped while some jobs")
        warnings.filterwarnings("ignore", message=".* tasks which were still being processed")
        results = Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1, pre_dispatch=jobs)(
            delayed(_in_worker)(i, task, os.getpid()) for i, task in work
        )
        try:
            yield from results
        except BaseException:
            from joblib.externals.loky import get_reusable_executor

            get_reusable_executor().shutdown(wait=False, kill_workers=True)
            raise


def _in_worker(i: int, task: functools.partial[dict[str, Any]], parent: int) -> tuple[int, dict[str, Any]]:
    if os.getpid() != parent:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
        global _runner
        if os.getppid() == parent:  # not so where joblib's backend is a cluster
            _runner = parent
    return i, task()


_runner: int | None = None  # in a worker process: who will write down what it finds


def _end_if_orphaned() -> None:
    if _runner is not None and os.getppid() != _runner:
        os._exit(1)  # the runner was killed, and the next one repeats this job


def _results(jobs: list[Job], processes: int, bar: _Bar) -> Iterable[dict[str, Any]]:
    work = [functools.partial(_job_with_progress, job, bar.path_of(job)) for job in jobs]
    return _parallel(work, processes, lambda job, path, *, why: _failed(_record_of(job), why))


def _job_with_progress(job: Job, path: str) -> dict[str, Any]:
    """A worker tells how far it is through a small file: that works with every backend of joblib."""
    last = 0.0

    def progress(step: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > 0.25:
            last = now
            _end_if_orphaned()
            with contextlib.suppress(OSError):
                Path(path).write_text(str(step))

    return do_job(job, progress)


class _Bar:
    """A progress bar over all optimizer steps of a phase, and one printed line per finished run."""

    def __init__(self, console: Console, label: str, jobs: list[Job]) -> None:
        self._console, self._label = console, label
        self._steps = {self._name(job.method_name, job.seed, job.config_hash): job.steps() for job in jobs}
        self._finished: set[str] = set()
        self._folder = tempfile.TemporaryDirectory(prefix="mtlbench-")
        self._progress = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[now]}", style="dim", markup=False),
            console=console, transient=True,
        )  # fmt: skip
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @staticmethod
    def _name(method: str, seed: int, config_hash: str) -> str:
        return f"{method.replace('/', '-')}@{seed}@{config_hash}"

    def path_of(self, job: Job) -> str:
        return str(Path(self._folder.name) / self._name(job.method_name, job.seed, job.config_hash))

    def __enter__(self) -> _Bar:
        self._bar = self._progress.add_task(self._label, total=sum(self._steps.values()), now="")
        self._progress.start()
        self._thread.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stop.set()
        self._thread.join()
        self._progress.stop()
        self._folder.cleanup()

    def finished(self, record: Mapping[str, Any]) -> None:
        self._finished.add(self._name(record["method"], record["seed"], record["config_hash"]))
        who = f"{record['task']} · {record['method']} · seed {record['seed']}"
        if record.get("trial") is not None:
            who += f" · trial {record['trial']}"
        if record["status"] != "ok":
            self._progress.console.print("[red]failed[/] " + escape(f"{who}: {record['error']}"), highlight=False)
            return
        numbers = [f"{record['seconds']:.1f} s"]
        if record["method"] != SINGLE_TASK and record["delta_m"] is not None:
            numbers.insert(0, f"delta-m {record['delta_m']:+.2f} %")
        if record.get("ratio_to_sum"):
            numbers.append(f"{record['ratio_to_sum']:.2f} x a summed-loss step")
        self._progress.console.print("[green]done[/] " + escape(f"{who}: {', '.join(numbers)}"), highlight=False)

    def _watch(self) -> None:
        while not self._stop.wait(0.25):
            current = {}
            for name, total in self._steps.items():
                if name not in self._finished:
                    with contextlib.suppress(OSError, ValueError):
                        current[name] = min(int((Path(self._folder.name) / name).read_text()), total)
            finished = sum(self._steps[name] for name in self._finished)
            running = ", ".join(n.rsplit("@", 1)[0] for n in current)
            self._progress.update(self._bar, completed=finished + sum(current.values()), now=running)


def _write_json(path: Path, content: Any) -> None:
    """Replace the file in one step, so that it is never half written."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with records.writing(path):
        try:
            with scratch.open("w", encoding="utf-8") as file:
                json.dump(records.plain(content), file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)


def data_status(task: BenchmarkTask) -> str:
    """Where the data of a task are, in words."""
    return "; ".join(sources.status(source) for source in task.sources)
