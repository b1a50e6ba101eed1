"""Writes the page of verdicts as Markdown, from a folder of records. The same records give the same page."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from mtlbench import records
from mtlbench.formats import Manifest, Record
from mtlbench.report.comparisons import against
from mtlbench.report.model import MethodRow, Report, TaskReport
from mtlbench.report.overall import overall
from mtlbench.report.summary import report
from mtlbench.statistics import Comparison, Interval
from mtlbench.suite import SINGLE_TASK, Suite
from mtlbench.verdicts import default
from mtlbench.verdicts.claims import CHEAP, CLAIMS, CONSTANT, Runs, Verdict, judged
from mtlcore.errors import ConfigurationError

_NOTE = "<!-- Made by `mtl bench verdicts` from the records. Do not edit. -->"


def page(folder: Path, called: str) -> str:
    """The Markdown of the page.

    Args:
        folder: records, compact or not.
        called: the folder as commands on the page name it.

    Raises:
        ConfigurationError: there are no records of a suite in the folder.
    """
    found, manifest = report(folder), records.manifest(folder / records.MANIFEST)
    if manifest.suite is None or not found.tasks:
        raise ConfigurationError(
            f"there are no finished runs of a suite in {str(folder)!r}; run `mtl bench run` first."
        )
    return "\n".join(_Page(found, manifest, manifest.suite, _runs(folder, manifest), called).lines()) + "\n"


def _runs(folder: Path, manifest: Manifest) -> Runs:
    current = {h for hashes in manifest.current.values() for h in hashes}
    found: dict[tuple[str, str], dict[int, Record]] = {}
    for record in records.finished(folder / records.RECORDS).values():
        if record.config_hash in current:
            found.setdefault((record.task, record.method), {})[record.seed] = record
    return found


@dataclasses.dataclass(frozen=True)
class _Page:
    found: Report
    manifest: Manifest
    suite: Suite
    runs: Runs
    called: str

    def lines(self) -> Iterator[str]:
        yield from (_NOTE, "", f"# Verdicts: suite {self.suite.name}", "", " ".join(self.suite.about.split()), "")
        yield from self._missing()
        yield from self._weights()
        yield from self._claims()
        yield from self._results()
        yield from self._default()
        yield from self._costs()
        yield from self._repeat()

    # --- what there is --------------------------------------------------------------------------------------------

    def _trained(self) -> list[str]:
        not_run = {*self.manifest.left_out, *self.manifest.refused}
        return [m.name for m in self.suite.methods if m.name not in not_run]

    def _counts(self, task: str) -> tuple[int, int]:
        """(runs of this task that are there, runs that the suite wants), baselines included."""
        seeds = self.manifest.seeds or self.suite.seeds
        names = [SINGLE_TASK, *self._trained()]
        have = sum(len([s for s in self.runs.get((task, m), {}) if s < seeds]) for m in names)
        return have, seeds * len(names)

    def _whole(self) -> list[TaskReport]:
        """The tasks of which nothing is missing; only these are taken together."""
        return [t for t in self.found.tasks if len(set(self._counts(t.name))) == 1]

    def _missing(self) -> Iterator[str]:
        counts = {t.name: self._counts(t.name) for t in self.suite.tasks}
        have, wanted = (sum(c[i] for c in counts.values()) for i in (0, 1))
        yield from ("## What is there", "")
        trials = self.suite.tuning.trials
        yield f"{have} of {wanted} runs, after {len(self.found.tuned)} tunings of {trials} trials each."
        whole = [name for name, (a, b) in counts.items() if a == b]
        part = [f"{name} ({a} of {b})" for name, (a, b) in counts.items() if 0 < a < b]
        none = [name for name, (a, _) in counts.items() if not a]
        for what, names in (("Complete", whole), ("In part, and not in the means over tasks", part), ("Missing", none)):
            if names:
                yield f"{what}: {', '.join(names)}."
        for what, names in (
            ("Not trained, because a claim was refuted or could not be checked", self.manifest.refused),
            ("Not trained, because no such plugin is installed", self.manifest.left_out),
        ):
            if names:
                yield f"{what}: {', '.join(names)}."
        if have < wanted:
            yield f"A later sitting goes on from these records: copy `{self.called}`, and give the copy to `--out`."
        yield ""
        yield (
            "Delta-m is the mean relative worsening against single-task networks, in percent: lower is better, below "
            "zero is better than one network for each task. Intervals are 95 %. Comparisons are paired by seed and "
            "corrected (Holm). No significant difference does not mean equal."
        )
        yield ""

    # --- the question about fixed weights -------------------------------------------------------------------------

    def _weights(self) -> Iterator[str]:
        baselines = self._fixed()
        if not baselines:
            return
        yield from ("## Is any method better than fixed weights?", "")
        if "tuned weights" in baselines:
            yield (
                "`ls` is the mean of the losses: equal weights, all trials spent on learning rates. `tuned weights` is "
                "the same with half of its trials spent on other weights. A method that beats only one of them beats a "
                "choice of trials."
            )
        else:
            yield (
                "Fixed weights are those of the second column; what each does with its trials is said above. A method "
                "that beats only some of them beats a choice of trials."
            )
        yield from ("", "| task | fixed weights | better, by points of delta-m | worse |", "|---|---|---|---|")
        both = {}
        for task in self.found.tasks:
            found = {name: against(self._deltas(task), name) for name in baselines}
            for name, versus in found.items():
                yield _row(task.name, name, *(_named(versus, word) for word in ("better", "worse")))
            better = [{m for m, c in versus.items() if c.verdict == "better"} for versus in found.values()]
            both[task.name] = sorted(set.intersection(*better) - set(baselines)) if better else []
        yield ""
        said = "; ".join(f"{task}: {', '.join(names)}" for task, names in both.items() if names)
        yield f"Better than {' and than '.join(baselines)}, by task: {said or 'no method on any task'}."
        yield from self._all_tasks(baselines)
        yield ""

    def _fixed(self) -> list[str]:
        """The methods that are fixed weights of the losses, the reference first."""
        plain = [m.name for m in self.suite.methods if m.aggregator == "ls" and m.teleport is None]
        first = [self.found.suite.reference] if plain else []
        return [m for m in dict.fromkeys((*first, *plain)) if m in self._trained()]

    def _all_tasks(self, baselines: Sequence[str]) -> Iterator[str]:
        whole = self._whole()
        for name in baselines:
            together = overall(whole, [m.name for m in self.suite.methods], name)
            if together is None:
                yield "There are fewer than two complete tasks, so nothing is said of all tasks together."
                return
            versus = {r.name: r.versus_reference for r in together.methods if r.versus_reference is not None}
            better, worse = (_named(versus, word) for word in ("better", "worse"))
            yield f"Over the {len(whole)} complete tasks, better than {name}: {better}; worse: {worse}."

    def _deltas(self, task: TaskReport) -> pd.DataFrame:
        """One row a seed, one column a method."""
        return pd.DataFrame({m.name: pd.Series(m.delta_m.values, dtype=float) for m in task.scored() if m.delta_m})

    # --- claims ---------------------------------------------------------------------------------------------------

    def _claims(self) -> Iterator[str]:
        tasks = [t.name for t in self.found.tasks]
        there = {m.name for m in self.suite.methods}
        claims = [claim for claim in CLAIMS if {claim.ours, claim.theirs} <= there]
        if not claims:
            return
        yield from ("## The claims of the three systems", "")
        yield (
            "Each line is a difference that the claim says is below zero, over the tasks for which there are pairs of "
            "runs: supported if it is, not supported if it is above, undecided if these runs cannot tell. Differences "
            f"of delta-m are in points; those of time are above the bound ({CHEAP} and {CONSTANT} are this project's). "
            "The interval is that of the mean over these tasks. The verdict is the sign-flip test's, corrected for all "
            "claims, which also asks whether the pairs agree: a mean that one task makes is undecided. By task, what "
            "is significant there (corrected for the tasks) is bold."
        )
        yield ""
        yield from ("| system | claim | verdict | difference | pairs | by task |", "|---|---|---|---|---|---|")
        for verdict in judged(self.runs, tasks, claims):
            yield _claim_row(verdict)
        yield from ("", *self._teleports(), "")

    def _teleports(self) -> Iterator[str]:
        """How often COST has done something: what is never accepted can neither help nor harm."""
        for task in self.found.tasks:
            moved = {m.name: m.teleports for m in task.scored() if m.teleports is not None and m.teleports.runs}
            if moved:
                said = ", ".join(f"{name} {t.accepted} of {t.tried}" for name, t in moved.items())
                yield f"Teleports accepted of tried, {task.name}: {said}."

    # --- results --------------------------------------------------------------------------------------------------

    def _results(self) -> Iterator[str]:
        yield from ("## Delta-m", "")
        whole = self._whole()
        together = overall(whole, [m.name for m in self.suite.methods], self.found.suite.reference)
        ranks = {r.name: r for r in together.methods} if together else {}
        tables = {t.name: {m.name: m for m in t.scored()} for t in self.found.tasks}
        head = ["method", "mean rank", "all complete tasks", *tables]
        yield from (_row(*head), _row(*(["---"] * len(head))))
        order = [m.name for m in self.suite.methods if any(m.name in rows for rows in tables.values())]
        for name in sorted(order, key=lambda m: ranks[m].mean_rank if m in ranks else 1e9):
            over = ranks.get(name)
            cells = [_of_task(rows.get(name)) for rows in tables.values()]
            yield _row(
                name,
                f"{over.mean_rank:.1f}" if over else "–",
                _interval(over.delta_m) if over else "–",
                *cells,
            )
        yield ""
        if together and together.critical_difference:
            apart = f"{together.critical_difference:.1f} apart (Nemenyi's test)."
            yield f"Mean ranks over {together.tasks} tasks differ at 5 % if they are {apart}"
            yield ""

    def _default(self) -> Iterator[str]:
        found = default.candidates(self._whole(), self.runs) if self.suite.name == default.SUITE else []
        if not found:
            return
        yield from ("## The rule for the default", "", default.RULE, "")
        head = [
            "method",
            "mean rank of these",
            "all complete tasks",
            "minus the first",
            "time of a step / the first",
        ]
        yield from (_row(*head), _row(*(["---"] * len(head))))
        for c in found:
            against = "–" if c.against is None else f"{_on_task(c.against, 1)}{' (tied)' if c.tied else ''}"
            yield _row(f"`{c.name}`", f"{c.rank:.2f}", _interval(c.delta_m), against, f"{c.time:.2f}")
        yield from ("", f"By the rule these records choose `{default.choice(found).name}`.", "")

    def _costs(self) -> Iterator[str]:
        yield from ("## Cost of a step, in plain summed-loss steps, and conflict", "")
        yield (
            "Taken in turns with a plain step of the same network, so that a busy machine disturbs both; the medians "
            "of all runs. These networks are so small that the fixed cost of a step counts; how it vanishes in larger "
            "ones is measured by `mtl speed`. The last line is the smallest cosine between two task "
            "gradients, on average over training."
        )
        yield ""
        tables: Mapping[str, dict[str, MethodRow]] = {t.name: {m.name: m for m in t.scored()} for t in self.found.tasks}
        yield from (_row("method", *tables), _row(*(["---"] * (len(tables) + 1))))
        for name in (m.name for m in self.suite.methods if any(m.name in rows for rows in tables.values())):
            rows = [t.get(name) for t in tables.values()]
            yield _row(name, *(f"{r.ratio_to_sum:.2f}" if r is not None and r.ratio_to_sum else "–" for r in rows))
        plain = [t.get("ls") for t in tables.values()]
        yield _row("conflict (ls)", *(_number(r.conflict.get("min_cosine")) if r is not None else "–" for r in plain))
        yield ""

    def _repeat(self) -> Iterator[str]:
        task = self.found.tasks[0]
        name = task.scored()[0].name if task.scored() else SINGLE_TASK
        environment = {
            k: v for k, v in self.found.environment.items() if k in ("commit", "processor", "torch", "python")
        }
        yield from ("## Any number again", "")
        yield "This trains one run once more, with the setting that tuning chose, and compares it with the record:"
        yield from (
            "",
            "```sh",
            f"mtl bench repeat {self.called} --task {task.name} --method {shlex.quote(name)} --seed 0",
            "```",
            "",
        )
        yield "The whole suite, and this page from its records:"
        yield from ("", "```sh", f"mtl bench run {self.suite.name} --out out/{self.suite.name}")
        yield f"mtl bench compact out/{self.suite.name} --out {self.called}"
        yield from (f"mtl bench verdicts {self.called} --out docs/results/{self.suite.name}.md", "```", "")
        said = "; ".join(f"{k} {', '.join(map(str, v))}" for k, v in environment.items())
        yield f"Made with: {said}."


def _of_task(row: MethodRow | None) -> str:
    if row is None or row.delta_m is None or not row.delta_m.n:
        return "–"
    return _interval(row.delta_m)


def _claim_row(verdict: Verdict) -> str:
    found: Comparison | None = verdict.comparison
    digits = 1 if verdict.claim.measure == "delta_m" else 2
    return _row(
        verdict.claim.system,
        verdict.claim.says,
        f"**{verdict.word}**",
        _interval(found.difference, digits) if found else "–",
        str(found.difference.n) if found else "0",
        ", ".join(f"{task} {_on_task(c, digits)}" for task, c in verdict.by_task.items()) or "–",
    )


def _on_task(found: Comparison, digits: int) -> str:
    said = _number(found.difference.estimate, digits)
    return f"**{said}**" if found.verdict in ("better", "worse") else said


def _named(versus: Mapping[str, Comparison], word: str) -> str:
    """The methods with this verdict, the best first."""
    found = sorted((c.difference.estimate, m) for m, c in versus.items() if c.verdict == word)
    return ", ".join(f"{m} ({_interval(versus[m].difference)})" for _, m in found) or "none"


def _interval(found: Interval, digits: int = 1) -> str:
    middle = _number(found.estimate, digits)
    if found.low is None or found.high is None:
        return middle
    return f"{middle} [{_number(found.low, digits)}, {_number(found.high, digits)}]"


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:+.{digits}f}".replace("-", "−")


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
