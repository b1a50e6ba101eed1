"""From raw records to the numbers of the report."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mtlbench import records as raw
from mtlbench import statistics as stats
from mtlbench.formats import Certificate, Hyperparameters, Manifest, Short
from mtlbench.protocols import PROTOCOLS
from mtlbench.report import comparisons, fronts, identifiers, rules
from mtlbench.report.curves import mean_lines
from mtlbench.report.declared import Declared, declared
from mtlbench.report.model import (
    CertificateRow,
    LawRow,
    MethodRow,
    MetricFacts,
    Report,
    SuiteFacts,
    TaskReport,
    TunedRow,
)  # fmt: skip
from mtlbench.report.overall import overall
from mtlbench.report.state import state
from mtlbench.report.table import NUMBERS, Table, means, number, table, unpacked
from mtlbench.report.teleports import moves
from mtlbench.report.verdict import verdict
from mtlbench.suite import SINGLE_TASK, Suite
from mtlcore.errors import ConfigurationError


def summarise(folder: Path) -> dict[str, Any]:
    """All numbers of the report over a folder as plain JSON values; what `mtl bench report --json` writes."""
    plain: dict[str, Any] = raw.plain(dataclasses.asdict(report(folder)))
    return plain


def report(folder: Path) -> Report:
    """All numbers of the report over a folder, which may be empty or half finished.

    Raises:
        ConfigurationError: the folder does not exist, or suite.json or certificates.json in it is damaged.
    """
    if not folder.is_dir():
        raise ConfigurationError(f"there is no folder {str(folder)!r}; run `mtl bench run SUITE --out {folder}` first.")
    manifest = raw.manifest(folder / raw.MANIFEST)
    certificates = raw.certificates(folder / raw.CERTIFICATES)
    with np.errstate(all="ignore"):  # records of other writers may hold numbers whose squares do not exist
        return _Reporter(folder, manifest, list(certificates.values()), table(folder, manifest)).report()


class _Reporter:
    """What the parts of a report are made from."""

    def __init__(self, folder: Path, manifest: Manifest, certificates: list[Certificate], found: Table) -> None:
        self.folder, self.manifest, self.certificates, self.table = folder, manifest, certificates, found
        self.suite: Suite | None = manifest.suite
        self.ok = found.ok
        self.reference = self.suite.reference if self.suite is not None else "sum"
        listed = [m.name for m in self.suite.methods] if self.suite else []
        self.order = _in_order(self.ok["method"], [SINGLE_TASK, *listed])
        self.fronts = {m.name: m.front for m in self.suite.methods} if self.suite else {}
        self.settings = {m.name: m.options for m in self.suite.methods} if self.suite else {}

    def report(self) -> Report:
        wanted = [t.name for t in self.suite.tasks] if self.suite else []
        groups = dict(list(self.ok.groupby("task", sort=False)))
        tasks = [self._task(name, groups[name]) for name in _in_order(self.ok["task"], wanted)]
        whole = Report(
            suite=self._suite(),
            state=state(self.table, self.manifest),
            tasks=tasks,
            tuned=_tuned(self.manifest, self.settings),
            overall=overall(tasks, self.order, self.reference),
            certificates=[_certificate(c) for c in self.certificates],
            uncertified=self._without(lambda c: c is None),
            allowed=self._without(lambda c: c is not None and c.passed is not True),
            environment=_environment(self.ok["environment"]),
            files={
                "records": raw.RECORDS, "trials": raw.TRIALS, "certificates": raw.CERTIFICATES, "suite": raw.MANIFEST,
            },
        )  # fmt: skip
        return dataclasses.replace(whole, verdict=verdict(whole))

    def _suite(self) -> SuiteFacts:
        suite, manifest = self.suite, self.manifest
        name = suite.name if suite else (next(iter(self.ok["suite"].dropna()), "") or self.folder.name)
        return SuiteFacts(
            name=name,
            title=suite.title if suite else "Benchmark records",
            about=suite.about.strip() if suite else "",
            reference=self.reference,
            tuning_trials=suite.tuning.trials if suite else 0,
            learning_rates=len(suite.tuning.learning_rate_factors) if suite else 0,
            # How it was called; folders of an earlier version know only the name.
            source=manifest.source or (suite.name if suite else "SUITE"),
            seeds=manifest.seeds,
            left_out=manifest.left_out,
            refused=manifest.refused,
            protocol=(followed := PROTOCOLS[suite.protocol if suite else "validation"]).name,
            protocol_about=followed.about,
            protocol_source=followed.source,
            protocol_traps=list(followed.traps),
        )

    def _without(self, lacks: Callable[[Short | None], bool]) -> list[str]:
        """The methods with a run whose own certificate is like this, whatever is in the folder about their plugins."""
        found = {m for m, c in zip(self.ok["method"], self.ok["certificate"]) if m != SINGLE_TASK and lacks(c)}
        return [m for m in self.order if m in found]

    def _task(self, name: str, runs: pd.DataFrame) -> TaskReport:
        metrics = unpacked(runs["metrics"])
        facts = declared(name, list(metrics.columns), self.suite)
        table = comparisons.deltas(runs)
        rows = self._methods(runs, metrics, facts, table)
        budget = next((h.budget for h in runs["hyperparameters"] if h.budget is not None), None)
        used = None if budget is None else budget.model_dump()
        return TaskReport(
            name=name,
            title=facts.title,
            about=facts.about,
            metrics=facts.metrics,
            budget=used,
            teleporting=comparisons.with_and_without(rows, table, self.settings),
            fronts=fronts.of_task(metrics, runs, self.fronts, facts.metrics),
            methods=rows,
            splits=next(iter(runs["splits"].dropna()), None),
            identifiers=identifiers.of_task(rows),
            rules="" if used is None else rules.in_words(used),
            departures=self._departures(name, used) if used is not None else [],
        )

    def _departures(self, task: str, budget: dict[str, Any]) -> list[str]:
        suite = self.suite
        return rules.departures(suite.protocol, task, budget, bool(suite.tuning.trials)) if suite is not None else []

    def _methods(
        self, runs: pd.DataFrame, metrics: pd.DataFrame, facts: Declared, table: pd.DataFrame
    ) -> list[MethodRow]:
        versus = comparisons.versus(table, self.reference)
        single = comparisons.against_zero(table)
        by_metric = comparisons.by_metric(metrics, runs, facts.metrics, self.reference)
        groups = dict(list(runs.groupby("method", sort=False)))
        rows = []
        for m in (m for m in self.order if m in groups):
            row = self._row(m, groups[m].sort_values("seed"), metrics, facts.metrics)
            if m != SINGLE_TASK:
                row = dataclasses.replace(
                    row,
                    delta_m=comparisons.score(table[m]),
                    versus_single_task=single[m],
                    versus_reference=versus.get(m),
                    metrics_versus_reference=by_metric.get(m, {}),
                )
            rows.append(row)
        return rows

    def _row(self, m: str, runs: pd.DataFrame, metrics: pd.DataFrame, facts: Sequence[MetricFacts]) -> MethodRow:
        first = runs.iloc[0]
        own = metrics.loc[runs.index].reindex(columns=[f.key for f in facts])
        hyperparameters: Hyperparameters = first["hyperparameters"]
        median = {name: number(runs[name].dropna().median()) for name in NUMBERS}  # numpy warns of nothing but NaN
        return MethodRow(
            name=m,
            front=self.fronts.get(m, ""),
            n=len(runs),
            metrics={key: _interval(own[key].dropna()) for key in own.columns},
            seconds_per_step=median["seconds_per_step"],
            ratio_to_sum=median["ratio_to_sum"],
            peak_memory_mb=median["peak_memory_mb"],
            memory_above_start_mb=median["memory_above_start_mb"],
            device_memory_mb=median["device_memory_mb"],
            hyperparameters=hyperparameters,
            certificate=first["certificate"],
            gradient_source=source if isinstance(source := first["gradient_source"], str) else None,  # pandas: NaN
            diagnostics=means(runs["diagnostics"]),
            seeds=[int(s) for s in runs["seed"]],
            curves=mean_lines(self.folder / raw.RECORDS, runs["offset"].tolist()),
            conflict=means(runs["conflict"]) if m != SINGLE_TASK else {},
            teleports=moves(list(runs["teleports"].dropna())) if m != SINGLE_TASK else None,
            guarantees=self._guarantees(hyperparameters),
        )

    def _guarantees(self, used: Hyperparameters) -> list[str]:
        """The laws that the method claims and that were verified for its aggregator with these options."""
        if used.method is None:
            return []
        for c in self.certificates:
            if (c.kind, c.name) == ("aggregator", used.method.aggregator) and c.options == used.method.options:
                return [r.law for r in c.rows if r.claimed and r.status == "verified"]
        return []


def _interval(values: pd.Series) -> stats.Interval | None:
    return stats.t_interval(values.tolist()) if len(values) else None


def _in_order(present: Iterable[str], wanted: Sequence[str]) -> list[str]:
    """What is wanted, in that order, as far as it is there; then all the rest."""
    found = list(dict.fromkeys(present))
    return [x for x in dict.fromkeys(wanted) if x in found] + [x for x in found if x not in wanted]


def _environment(column: pd.Series) -> dict[str, list[Any]]:
    """Every value seen of each entry: more than one means that the records mix machines or versions."""
    distinct = {id(e): e for e in column}.values()  # equal ones are one object
    out: dict[str, dict[str, Any]] = {}
    for environment in distinct:
        for name, value in environment.items():
            out.setdefault(name, {}).setdefault(json.dumps(value, sort_keys=True, default=str), value)
    return {name: list(values.values()) for name, values in out.items()}


def _tuned(manifest: Manifest, given: Mapping[str, Mapping[str, Any]]) -> list[TunedRow]:
    """What tuning chose, one row per task and method; options as far as they differ from the suite's."""
    return [
        TunedRow(
            task=task,
            method=method,
            **choice.model_dump(include={"learning_rate", "trial", "score", "at_the_edge"}),
            options={k: v for k, v in choice.options.items() if given.get(method, {}).get(k) != v},
        )
        for task, choices in manifest.tuned.items()
        for method, choice in choices.items()
    ]


def _certificate(c: Certificate) -> CertificateRow:
    laws = [LawRow(**r.model_dump()) for r in c.rows]
    return CertificateRow(c.kind, c.name, c.options, c.passed, c.summary, c.seconds, laws)
