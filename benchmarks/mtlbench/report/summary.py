"""From raw records to the numbers of the report; `mtl bench report --json` writes exactly these."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import statistics as plain_statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from mtlbench import pareto
from mtlbench import records as raw
from mtlbench import statistics as stats
from mtlbench.certification import CERTIFICATES
from mtlbench.formats import Manifest, Row
from mtlbench.jobs import make_task
from mtlbench.protocol import delta_m
from mtlbench.report.verdict import verdict
from mtlbench.runner import MANIFEST
from mtlbench.suite import SINGLE_TASK, Suite, TaskEntry
from mtlbench.tasks.base import Metric
from mtlcore.errors import ConfigurationError, MtlError

Record = dict[str, Any]


def summarise(folder: Path) -> dict[str, Any]:
    """All numbers of the report over a folder, which may be empty or half finished.

    Raises:
        ConfigurationError: the folder does not exist, or suite.json or certificates.json in it is damaged.
    """
    if not folder.is_dir():
        raise ConfigurationError(f"there is no folder {str(folder)!r}; run `mtl bench run SUITE --out {folder}` first.")
    everything, unreadable = raw.read(folder / raw.RECORDS)
    manifest = raw.manifest(folder / MANIFEST)
    certificates = raw.certificates(folder / CERTIFICATES)
    suite = manifest.suite
    current = {h for hashes in manifest.current.values() for h in hashes}
    shown = raw.latest(everything)
    newest = {(r["task"], r["method"], r["seed"]): r for r in shown}  # where suite.json does not say which is meant
    outdated = [
        r
        for r in shown
        if (current and r.get("config_hash") not in current)
        or (not current and r is not newest[r["task"], r["method"], r["seed"]])
    ]
    shown = [r for r in shown if r not in outdated]
    ok = [_complete(r) for r in shown if r["status"] == "ok"]
    failed = [r for r in shown if r["status"] != "ok"]
    reference = suite.reference if suite is not None else "sum"
    names = _in_order(ok, suite)
    tasks = [_task(name, [r for r in ok if r["task"] == name], names, reference, suite) for name in _tasks(ok, suite)]
    summary: dict[str, Any] = {
        "suite": {
            "name": suite.name if suite else (ok[0]["suite"] if ok else folder.name),
            "title": suite.title if suite else "Benchmark records",
            "about": suite.about.strip() if suite else "",
            "reference": reference,
            "tuning_trials": suite.tuning.trials if suite else 0,
            "learning_rates": len(suite.tuning.learning_rate_factors) if suite else 0,
            # How it was called; folders of an earlier version know only the name.
            "source": manifest.source or (suite.name if suite else "SUITE"),
            "seeds": manifest.seeds,
            "left_out": manifest.left_out,
            "refused": manifest.refused,
        },
        "state": {
            "finished": len(ok),
            "failed": [{k: r.get(k) for k in ("task", "method", "seed", "error")} for r in failed],
            "missing": _missing(ok, suite, manifest),
            "unscored": [
                f"{r['method']} on {r['task']}, seed {r['seed']}"
                for r in ok
                if r["method"] != SINGLE_TASK and r["delta_m"] is None
            ],
            "torn_lines": len(unreadable),
            "unreadable": unreadable,
            "outdated": len(outdated),
        },
        "tasks": tasks,
        "tuned": _tuned(manifest, suite),
        "overall": _overall(tasks, names, reference) if len(tasks) > 1 else None,
        "certificates": [
            c.model_dump(include={"kind", "name", "options", "passed", "summary", "seconds"}) | {"laws": _laws(c.rows)}
            for c in certificates.values()
        ],
        "uncertified": [m for m in names if m != SINGLE_TASK and any(_uncertified(r) for r in ok if r["method"] == m)],
        "environment": _environment(ok),
        "files": {
            "records": str(raw.RECORDS),
            "trials": str(raw.TRIALS),
            "certificates": CERTIFICATES,
            "suite": MANIFEST,
        },
    }
    summary["verdict"] = verdict(summary)
    plain: dict[str, Any] = raw.plain(summary)
    return plain


# --- one task -----------------------------------------------------------------------------------------------------


def _task(
    name: str, records: Sequence[Record], order: Sequence[str], reference: str, suite: Suite | None
) -> dict[str, Any]:
    declared = _declared(name, records, suite)
    by_method = {m: _by_seed(r for r in records if r["method"] == m) for m in order}
    by_method = {m: runs for m, runs in by_method.items() if runs}
    trained = [m for m in by_method if m != SINGLE_TASK]
    deltas = {m: _deltas(by_method[m]) for m in trained}
    versus = stats.corrected(
        {
            m: stats.paired([[deltas[m][s] - deltas[reference][s] for s in deltas[m] if s in deltas[reference]]])
            for m in trained
            if m != reference and reference in deltas
        }
    )
    against_single = stats.corrected({m: stats.paired([list(deltas[m].values())]) for m in trained})
    fronts = {m.name: m.front for m in suite.methods} if suite else {}
    methods = []
    for m in by_method:
        runs = by_method[m]
        row: dict[str, Any] = {
            "name": m,
            "front": fronts.get(m, ""),
            "n": len(runs),
            "metrics": {
                metric["key"]: _number([r["metrics"].get(metric["key"]) for r in runs.values()])
                for metric in declared["metrics"]
            },
            "seconds_per_step": _median(runs, "seconds_per_step"),
            "ratio_to_sum": _median(runs, "ratio_to_sum"),
            "peak_memory_mb": _median(runs, "peak_memory_mb"),
            "memory_above_start_mb": _median(runs, "memory_above_start_mb"),
            "hyperparameters": next(iter(runs.values()))["hyperparameters"],
            "certificate": next(iter(runs.values())).get("certificate"),
            "gradient_source": next(iter(runs.values())).get("gradient_source"),
            "diagnostics": _mean_of_dicts([r.get("diagnostics") or {} for r in runs.values()]),
            "seeds": sorted(runs),
        }
        if m in deltas:
            values = list(deltas[m].values())
            row["delta_m"] = {
                **dataclasses.asdict(stats.interval([values])),
                "values": deltas[m],
                "interquartile_mean": stats.interquartile_mean(values) if values else None,
            }
            row["versus_single_task"] = dataclasses.asdict(against_single[m])
            row["versus_reference"] = dataclasses.asdict(versus[m]) if m in versus else None
            if m in versus:
                row["versus_reference"]["probability_of_improvement"] = stats.probability_of_improvement(
                    [values], [list(deltas[reference].values())]
                )
            row["conflict"] = _mean_of_dicts([r.get("conflict") or {} for r in runs.values()])
            row["teleports"] = _teleports([r["teleports"] for r in runs.values() if r.get("teleports")])
        row["curves"] = _curves(list(runs.values()))
        methods.append(row)
    budget = records[0]["hyperparameters"]["budget"] if records else None
    settings = {m.name: m.options for m in suite.methods} if suite else {}
    teleporting = _with_and_without({m["name"]: m for m in methods if m["name"] in deltas}, deltas, settings)
    return {
        "name": name,
        **declared,
        "budget": budget,
        "teleporting": teleporting,
        "fronts": _fronts(by_method, fronts, declared["metrics"]),
        "methods": methods,
        "splits": records[0].get("splits") if records else None,
    }


def _with_and_without(
    rows: Mapping[str, Mapping[str, Any]],
    deltas: Mapping[str, Mapping[int, float]],
    settings: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Each method that teleports, against the same aggregator without teleports, paired by seed.

    Args:
        settings: the suite's options of each method. Those in a record were chosen by tuning, for each method alone.
    """

    def setting(m: str) -> tuple[Any, ...]:
        method = rows[m]["hyperparameters"]["method"] or {}
        options = settings.get(m, method.get("options"))
        return method.get("aggregator"), json.dumps(options, sort_keys=True), bool(method.get("teleport"))

    bases = {setting(m): m for m in rows}
    couples = {m: bases[(*setting(m)[:2], False)] for m in rows if setting(m)[2] and (*setting(m)[:2], False) in bases}
    compared = stats.corrected(
        {
            m: stats.paired([[deltas[m][s] - deltas[b][s] for s in deltas[m] if s in deltas[b]]])
            for m, b in couples.items()
        }
    )
    found = []
    for m, base in couples.items():
        ratios = rows[m]["ratio_to_sum"], rows[base]["ratio_to_sum"]
        cosines = rows[m]["conflict"].get("min_cosine"), rows[base]["conflict"].get("min_cosine")
        found.append(
            {
                "name": m,
                "without": base,
                **dataclasses.asdict(compared[m]),
                "extra_time": ratios[0] / ratios[1] - 1 if ratios[0] and ratios[1] else None,
                "min_cosine_with": cosines[0],
                "min_cosine_without": cosines[1],
            }
        )
    return found


def _fronts(
    by_method: Mapping[str, Mapping[int, Record]], fronts: Mapping[str, str], metrics: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Hypervolume and spread in %, seed by seed, of each front of which two methods or more have runs."""
    if any(v["higher_is_better"] is None for v in metrics):
        return []
    members: dict[str, list[str]] = {}
    for m in by_method:
        if fronts.get(m):
            members.setdefault(fronts[m], []).append(m)
    declared = [Metric(v["task"], v["name"], v["higher_is_better"]) for v in metrics]
    by_task = [[v for v in declared if v.task == t] for t in dict.fromkeys(v.task for v in declared)]
    baselines = by_method.get(SINGLE_TASK, {})

    def point(record: Record, baseline: Record) -> list[float | None]:
        changes = [delta_m(record["metrics"], baseline["metrics"], tuple(own)) for own in by_task]
        return [None if change is None else change / 100.0 for change in changes]

    found = []
    for name, names in members.items():
        if len(names) < 2:
            continue
        seeds = [s for s in baselines if all(s in by_method[m] for m in names)]
        points = {s: [point(by_method[m][s], baselines[s]) for m in names] for s in seeds}
        whole = [np.array(p) for p in points.values() if None not in itertools.chain(*p)]
        alone = {m: [100 * pareto.hypervolume(p[[i]]) for p in whole] for i, m in enumerate(names)}
        best = max(names, key=lambda m: sum(alone[m]))
        found.append(
            {
                "name": name,
                "methods": names,
                "hypervolume": dataclasses.asdict(stats.interval([[100 * pareto.hypervolume(p) for p in whole]])),
                "best": {"name": best, "hypervolume": dataclasses.asdict(stats.interval([alone[best]]))},
                "spread": dataclasses.asdict(stats.interval([[100 * pareto.spread(p) for p in whole]])),
                "not_dominated": _mean(len(pareto.nondominated(p)) for p in whole),
            }
        )
    return found


def _declared(name: str, records: Sequence[Record], suite: Suite | None) -> dict[str, Any]:
    """Title and metrics as the task declares them; from the records alone if the task is no longer installed."""
    entry = next((t for t in suite.tasks if t.name == name), TaskEntry(name=name)) if suite else TaskEntry(name=name)
    try:
        task = make_task(entry)
    except MtlError:
        keys = list(records[0]["metrics"]) if records else []
        metrics = [Metric(k.partition("/")[0], k.partition("/")[2], False) for k in keys]
        note = "This task is not installed here: directions and units of its metrics are unknown."
        rows = [{**dataclasses.asdict(m), "higher_is_better": None, "key": m.key} for m in metrics]
        return {"title": name, "about": note, "metrics": rows}
    return {
        "title": task.title,
        "about": task.about,
        "metrics": [{**dataclasses.asdict(m), "key": m.key} for m in task.metrics],
    }


def _curves(runs: Sequence[Record]) -> dict[str, Any]:
    """Means over seeds of the training losses and of the conflict."""
    curves = [r["curves"] for r in runs if r.get("curves")]
    out: dict[str, Any] = {"loss": None, "conflict": None, "validation": None}
    if not curves:
        return out
    steps = curves[0]["loss"]["step"]
    same = [c for c in curves if c["loss"]["step"] == steps]
    out["loss"] = {
        "step": steps,
        "by_task": {
            t: [_mean(c["loss"]["by_task"][t][i] for c in same) for i in range(len(steps))]
            for t in same[0]["loss"]["by_task"]
        },
    }
    points = curves[0]["conflict"]
    if points:
        steps = [p["step"] for p in points]
        same = [c["conflict"] for c in curves if [p["step"] for p in c["conflict"]] == steps]
        out["conflict"] = {
            "step": steps,
            **{
                k: [_mean(c[i].get(k) for c in same) for i in range(len(steps))]
                for k in ("min_cosine", "mean_cosine", "norm_ratio", "min_cosine_minibatch")
            },
        }
    looks = [c["validation"] for c in curves]
    if looks[0]:
        steps = [p["step"] for p in looks[0]]
        same = [v for v in looks if [p["step"] for p in v] == steps]
        out["validation"] = {"step": steps, "score": [_mean(v[i]["score"] for v in same) for i in range(len(steps))]}
    return out


def _teleports(found: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    if not found:
        return None
    reasons: dict[str, int] = {}
    for one in found:
        for reason, count in (one.get("refused_because") or {}).items():
            kind = _without_numbers(reason)
            reasons[kind] = reasons.get(kind, 0) + count
    largest = [f["largest_relative_loss_change"] for f in found if f["largest_relative_loss_change"] is not None]
    return {
        "runs": len(found),
        **{k: sum(f[k] for f in found) for k in ("detector_fired", "tried", "accepted")},
        # Records of an earlier version do not say how often the detector looked.
        "detector_looked": sum(f["detector_looked"] for f in found)
        if all("detector_looked" in f for f in found)
        else None,
        **{k: _mean(f[k] for f in found) for k in ("conflict_before", "conflict_after", "share_of_time")},
        "largest_relative_loss_change": max(largest) if largest else None,
        "refused_because": dict(sorted(reasons.items(), key=lambda item: -item[1])),
    }


def _without_numbers(reason: str) -> str:
    """The last thing that was tried, without its numbers, so that like reasons can be counted together."""
    last = re.sub(r"^at scale \S+ ", "", reason.rsplit("; ", 1)[-1])
    return re.sub(r"(?<![\w.])[-+]?\d+(\.\d+)?(e[-+]?\d+)?(?![\w])", "…", last)


# --- over tasks ---------------------------------------------------------------------------------------------------


def _overall(tasks: Sequence[Mapping[str, Any]], order: Sequence[str], reference: str) -> dict[str, Any]:
    """Means over tasks of the methods that have a delta-m on every task."""
    tables = [{m["name"]: m for m in t["methods"] if "delta_m" in m and m["delta_m"]["values"]} for t in tasks]
    common = [m for m in order if all(m in table for table in tables)]
    values = {m: [list(table[m]["delta_m"]["values"].values()) for table in tables] for m in common}
    versus: dict[str, stats.Comparison] = {}
    if reference in common:
        for m in common:
            if m != reference:
                strata = []
                for table in tables:
                    ours, theirs = table[m]["delta_m"]["values"], table[reference]["delta_m"]["values"]
                    strata.append([ours[s] - theirs[s] for s in ours if s in theirs])
                versus[m] = stats.paired(strata)
        versus = stats.corrected(versus)
    rows = []
    pooled = [v for m in common for s in values[m] for v in s]
    low, high = (min(pooled), max(pooled)) if pooled else (0.0, 1.0)
    grid = [low + (high - low) * i / 60 for i in range(61)]
    ranks = _mean_ranks(tables, common)
    for m in common:
        flat = [v for s in values[m] for v in s]
        rows.append(
            {
                "name": m,
                "n": len(flat),
                "delta_m": dataclasses.asdict(stats.interval(values[m])),
                "interquartile_mean": dataclasses.asdict(stats.stratified_bootstrap(values[m], trimmed=True)),
                "versus_reference": dataclasses.asdict(versus[m]) if m in versus else None,
                "probability_of_improvement": (
                    stats.probability_of_improvement(values[m], values[reference])
                    if reference in common and m != reference
                    else None
                ),
                "mean_rank": ranks[m],
                "profile": stats.performance_profile(flat, grid),
            }
        )
    return {"tasks": len(tasks), "thresholds": grid, "methods": rows}


def _mean_ranks(tables: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> dict[str, float]:
    """Mean rank by delta-m over tasks, equal ones sharing theirs; only meaningful within this set of methods."""
    per_task = [rankdata([table[m]["delta_m"]["estimate"] for m in methods]) for table in tables]
    return {m: plain_statistics.fmean(float(ranks[i]) for ranks in per_task) for i, m in enumerate(methods)}


# --- small things -------------------------------------------------------------------------------------------------


def _complete(record: Record) -> Record:
    """With empty entries where a writer other than the runner gives only what every record has."""
    blank: Record = {"suite": "", "metrics": {}, "delta_m": None, "environment": {}, "curves": {}}
    given = {k: v for k, v in record.items() if v is not None}
    hyperparameters = {"budget": None, "method": None} | (record.get("hyperparameters") or {})
    if hyperparameters["method"]:
        hyperparameters["method"] = _NO_METHOD | hyperparameters["method"]
    return blank | given | {"hyperparameters": hyperparameters}


_NO_METHOD: dict[str, Any] = {
    "aggregator": "?", "options": {}, "detector": None, "detector_options": {}, "teleport": None,
    "teleport_options": {}, "brakes": {},
}  # fmt: skip


def _tuned(manifest: Manifest, suite: Suite | None) -> list[dict[str, Any]]:
    """What tuning chose, one row per task and method; options as far as they differ from the suite's."""
    given = {m.name: m.options for m in suite.methods} if suite else {}
    return [
        {
            "task": task,
            "method": method,
            **choice.model_dump(include={"learning_rate", "trial", "score", "at_the_edge"}),
            "options": {k: v for k, v in choice.options.items() if given.get(method, {}).get(k) != v},
        }
        for task, choices in manifest.tuned.items()
        for method, choice in choices.items()
    ]


def _tasks(records: Sequence[Record], suite: Suite | None) -> list[str]:
    present = list(dict.fromkeys(r["task"] for r in records))
    wanted = [t.name for t in suite.tasks if t.name in present] if suite else []
    return wanted + [t for t in present if t not in wanted]


def _in_order(records: Sequence[Record], suite: Suite | None) -> list[str]:
    """The baseline, then the methods as the suite lists them, then any other."""
    present = list(dict.fromkeys(r["method"] for r in records))
    wanted = [SINGLE_TASK, *([m.name for m in suite.methods] if suite else [])]
    return [m for m in wanted if m in present] + [m for m in present if m not in wanted]


def _missing(records: Sequence[Record], suite: Suite | None, manifest: Manifest) -> list[str]:
    """What the same command would still do: what the suite wants, as it was called, and no record has."""
    if suite is None:
        return []
    have = {(r["task"], r["method"], r["seed"]) for r in records}
    seeds = {r["seed"] for r in records} | set(range(manifest.seeds or suite.seeds))
    not_run = {*manifest.left_out, *manifest.refused}
    wanted = [SINGLE_TASK, *(m.name for m in suite.methods if m.name not in not_run)]
    return [
        f"{m} on {t.name}, seed {s}"
        for t in suite.tasks
        for m in wanted
        for s in sorted(seeds)
        if (t.name, m, s) not in have
    ]


def _uncertified(record: Record) -> bool:
    """Trained without having been asked for what it claims, whatever is in the folder about its plugins."""
    return record.get("certificate") is None


def _environment(records: Sequence[Record]) -> dict[str, Any]:
    """Every value seen of each entry: more than one means that the records mix machines or versions."""
    out: dict[str, list[Any]] = {}
    for record in records:
        for name, value in record["environment"].items():
            if value not in out.setdefault(name, []):
                out[name].append(value)
    return out


def _laws(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [r.model_dump(include={"law", "claimed", "status", "examples", "worst_margin"}) for r in rows]


def _by_seed(records: Any) -> dict[int, Record]:
    return dict(sorted((int(r["seed"]), r) for r in records))


def _deltas(runs: Mapping[int, Record]) -> dict[int, float]:
    return {seed: float(r["delta_m"]) for seed, r in runs.items() if r["delta_m"] is not None}


def _number(values: Sequence[float | None]) -> dict[str, Any] | None:
    known = [v for v in values if v is not None]
    return dataclasses.asdict(stats.t_interval(known)) if known else None


def _median(runs: Mapping[int, Record], field: str) -> float | None:
    known = [r[field] for r in runs.values() if r.get(field) is not None]
    return plain_statistics.median(known) if known else None


def _mean(values: Any) -> float | None:
    known = [v for v in values if v is not None]
    return plain_statistics.fmean(known) if known else None


def _mean_of_dicts(dicts: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    return {k: _mean(d.get(k) for d in dicts) for k in dict.fromkeys(k for d in dicts for k in d)}
