"""Does COST pay, and which part of it?

    python -m mtlbench.studies.cost OUT [--task grid-fashion ...] [--base ls fairgrad ...] [--arm exact ...]
        [--seeds 5] [--steps N] [--report]

Trains each base method alone and with each arm of :mod:`.cost_arms`, on the same seeds: the same initial weights and
the same batches. Every finished run is a line of OUT/runs.jsonl; run again, it goes on where it stopped. The score of
an arm is the mean relative worsening of the test metrics against the base method alone on the same seed, in percent.
The report gives its mean, its 95 % interval, p corrected by Holm over all arms of a task and base, and the p of an
*equivalence test* (two one-sided t-tests against half a point): so that "no difference" is shown, and not merely not
refuted. An arm that made no teleport in any run is not compared: its runs are those of the base method alone, to
rounding. Two machines, or two versions of the code, round in other ways; so a line says of which commit it is.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import mtlcore
from mtlbench import records
from mtlbench.jobs import commit
from mtlbench.protocol.delta_m import delta_m
from mtlbench.statistics import Comparison, corrected, paired
from mtlbench.studies.cost_arms import ARMS, Arm, detector_of, teleporter_of
from mtlbench.studies.cost_problem import task_of
from mtlbench.studies.cost_trace import Trace
from mtlbench.studies.equivalence import equivalence
from mtlbench.tasks.base import BenchmarkTask, Network, Split, closure, evaluate
from mtlcore.hosting import Snapshot

BASES = ("ls", "cagrad", "fairgrad", "nash-mtl", "gradops")
TASKS = ("grid-fashion", "qm9")

Job = tuple[str, str, str, int]
"""(task, base, arm, seed)"""
Done = tuple[str, str, str, int, int]
"""The same and how many steps."""
Rows = Mapping[Done, Mapping[str, Any]]
"""Finished runs."""
Train = Callable[[BenchmarkTask, str, Arm, int, int], dict[str, Any]]


class Run:
    """One training."""

    def __init__(
        self, task: BenchmarkTask, base: str, arm: Arm, seed: int, steps: int, trace: Trace | None = None
    ) -> None:
        self.task, self.arm, self.steps = task, arm, steps
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.network = Network(task)
        with torch.no_grad():
            for p in self.network.trunk.parameters():
                p.mul_(1.0 + arm.nudge)
        self.splits = task.load()
        self.draws, self.held_out_draws = (torch.Generator().manual_seed(s) for s in (seed, seed + 1_000_003))
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=task.budget.learning_rate)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=steps)
        parameters: list[Tensor] = list(self.network.trunk.parameters())
        looks = arm.strategy is not None or arm.extra_steps > 0
        self.multi = mtlcore.MultiTask(
            self.network.trunk,
            mtlcore.create("aggregator", base),
            self.optimizer,
            detector=detector_of(arm, self.optimizer, parameters) if looks else None,
            teleport=teleporter_of(arm, self.optimizer, parameters),
            heads=self.network.heads,
            tasks=task.tasks,
            probe=self._held_out,
            brakes=mtlcore.Brakes(start_step=int(arm.first * steps), cooldown=arm.gap),
            seed=seed,
        )
        self._probe = torch.randint(
            len(self.splits.validation), (task.budget.batch_size,), generator=self.held_out_draws
        )
        self.notes = {"fired": 0, "tried": 0, "accepted": 0, "taken back": 0, "extra": 0}
        self._way_back: tuple[int, Snapshot, dict[str, float]] | None = None
        self._last_extra = -arm.gap
        self._trace = trace

    def go(self) -> dict[str, Any]:
        """Train, and measure on the test part."""
        began = time.perf_counter()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for step in range(self.steps):
                self._step(step)
        metrics = evaluate(self.task, self.network, self.splits.test)
        return {"metrics": metrics, "notes": self.notes, "seconds": time.perf_counter() - began}

    def _step(self, step: int) -> None:
        if step >= self.arm.last * self.steps and self.multi.brakes.cap is None:
            self.multi.brakes = mtlcore.Brakes(cap=0)
        trying = self.arm.probation and self._way_back is None
        before = self._here() if trying else None
        if self._trace is not None:
            self._trace.look(step, self.network, self.optimizer, self._held_out)
        report = self.multi.step(self._batch(self.splits.train, self.draws))
        self.schedule.step()
        self.notes["fired"] += bool(report.conflict is not None and report.conflict.conflicting)
        if report.teleport is not None:
            self.notes["tried"] += 1
            self.notes["accepted"] += report.teleport.accepted
            if self._trace is not None and report.teleport.accepted:
                self._trace.teleports.append(step)
            if before is not None and report.teleport.accepted:
                self._way_back = (step + self.arm.probation, *before)
        self._settle(step)
        self._extra(step, report)

    def _here(self) -> tuple[Snapshot, dict[str, float]]:
        kept = Snapshot(
            modules=[self.network], parameters=self.network.parameters(), optimizer=self.optimizer, noise=False
        )
        return kept, self._look()

    def _look(self) -> dict[str, float]:
        """Losses on the validation part, in evaluation mode."""
        split = self.splits.validation
        self.network.eval()
        with torch.no_grad():
            losses, _ = closure(self.task, self.network, *split.batch(torch.arange(min(len(split), 500))))()
        self.network.train()
        return {name: float(v) for name, v in losses.items()}

    def _settle(self, step: int) -> None:
        """The end of a probation: back, if not every task is better off than before the teleport."""
        if self._way_back is None or step < self._way_back[0]:
            return
        _, kept, before = self._way_back
        self._way_back = None
        now = self._look()
        if not all(now[name] < before[name] for name in before):
            kept.restore()
            self.notes["taken back"] += 1

    def _extra(self, step: int, report: mtlcore.StepReport) -> None:
        """The control: where a teleport would have been tried, plain steps of the same price."""
        conflict = report.conflict
        if not self.arm.extra_steps or conflict is None or not conflict.conflicting:
            return
        if step - self._last_extra >= self.arm.gap:
            self._last_extra = step
            for _ in range(self.arm.extra_steps):
                self.multi.step(self._batch(self.splits.train, self.held_out_draws))
                self.notes["extra"] += 1

    def _held_out(self) -> Any:
        return closure(self.task, self.network, *self.splits.validation.batch(self._probe))()

    def _batch(self, split: Split, draws: torch.Generator) -> Any:
        index = torch.randint(len(split), (self.task.budget.batch_size,), generator=draws)
        return closure(self.task, self.network, *split.batch(index))


# --- all of them ------------------------------------------------------------------------------------------------------


def wanted(tasks: Sequence[str], bases: Sequence[str], arms: Sequence[str], seeds: int) -> Iterator[Job]:
    """(task, base, arm, seed), the base alone first: without it no arm has a score."""
    for task in tasks:
        for base in bases:
            for seed in range(seeds):
                for arm in ("alone", *(a for a in arms if a != "alone")):
                    yield task, base, arm, seed


def finished(file: Path) -> dict[Done, dict[str, Any]]:
    """What is there, by (task, base, arm, seed, steps)."""
    return {(r["task"], r["base"], r["arm"], r["seed"], r["steps"]): r for r in records.lines(file)}


def train_missing(file: Path, jobs: Iterable[Job], steps: int | None, train: Train) -> int:
    """Train what is not in the file, and append a line for each run as soon as it is finished.

    Args:
        file: of the finished runs.
        jobs: see :func:`wanted`.
        steps: of every run; None: as the task's budget says.
        train: (task, base, arm, seed, steps) -> what the line has beside these.

    Returns:
        How many runs that were.
    """
    known, count, origin = finished(file), 0, commit()
    for name, base, arm, seed in jobs:
        task = task_of(name)
        length = steps or task.budget.steps
        if (name, base, arm, seed, length) in known:
            continue
        row = {"task": name, "base": base, "arm": arm, "seed": seed, "steps": length, "commit": origin}
        records.append(file, row | train(task, base, ARMS[arm], seed, length))
        count += 1
    return count


def scores(rows: Rows) -> dict[tuple[str, str, int], dict[str, list[float]]]:
    """(task, base, steps) -> arm -> differences from the base alone, in percent, seed by seed; lower is better."""
    table: dict[tuple[str, str, int], dict[str, list[float]]] = {}
    for (task, base, arm, seed, steps), row in sorted(rows.items()):
        alone = rows.get((task, base, "alone", seed, steps))
        if arm == "alone" or alone is None:
            continue
        difference = delta_m(row["metrics"], alone["metrics"], task_of(task).metrics)
        if difference is not None:
            table.setdefault((task, base, steps), {}).setdefault(arm, []).append(difference)
    return table


class Moves(NamedTuple):
    """What an arm did in a run, on average.

    Args:
        tried: teleports tried; of "extra steps": plain steps.
        kept: teleports that were accepted, and not taken back.
        changed: whether it changed one of its runs at all.
    """

    tried: float
    kept: float
    changed: bool


def moves(rows: Rows, task: str, base: str, arm: str, steps: int) -> Moves:
    """Of the arm's runs among the finished ones."""
    notes = [r["notes"] for key, r in rows.items() if key[:3] == (task, base, arm) and key[4] == steps]
    tried = sum(n["tried"] + n["extra"] for n in notes) / len(notes)
    kept = sum(n["accepted"] - n["taken back"] for n in notes) / len(notes)
    changed = ARMS[arm].nudge != 0.0 or any(n["accepted"] + n["extra"] for n in notes)
    return Moves(tried, kept, changed)


def report(folder: Path) -> str:
    """Markdown."""
    lines, rows = [], finished(folder / "runs.jsonl")
    for (task, base, steps), arms in scores(rows).items():
        lines += [
            f"\n### {task}, {base}, {steps} steps\n",
            "| arm | n | tried | kept | difference, % | 95 % | p (Holm) | equivalent |",
        ]
        lines.append("|---|---|---|---|---|---|---|---|")
        did = {arm: moves(rows, task, base, arm, steps) for arm in arms}
        family = corrected({arm: paired([values]) for arm, values in arms.items() if did[arm].changed})
        for arm, values in arms.items():
            lines.append(f"| {arm} | {len(values)} | {did[arm].tried:.1f} | {did[arm].kept:.1f} | ")
            lines[-1] += _found(family[arm], equivalence(values)) if arm in family else "no teleport | | | |"
    return "\n".join(lines)


def _found(found: Comparison, same: float | None) -> str:
    d = found.difference
    between = "" if d.low is None or d.high is None else f"[{d.low:.2f}, {d.high:.2f}]"
    chance = "" if found.p_holm is None else f"{found.p_holm:.3f}"
    alike = "" if same is None else f"p = {same:.3f}{' yes' if same < 0.05 else ''}"
    return f"{d.estimate:+.2f} | {between} | {chance} | {alike} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the runs")
    parser.add_argument("--task", nargs="+", default=TASKS, help="registered benchmark tasks")
    parser.add_argument("--base", nargs="+", default=BASES, help="methods inside")
    parser.add_argument("--arm", nargs="+", default=tuple(ARMS), choices=tuple(ARMS), help="what is compared")
    parser.add_argument("--seeds", type=int, default=5, help="paired seeds; ten for the arms that survive a screening")
    parser.add_argument("--steps", type=int, help="training steps; default: the task's")
    parser.add_argument("--report", action="store_true", help="only the report of what is there")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if not chosen.report:
        jobs = wanted(chosen.task, chosen.base, chosen.arm, chosen.seeds)
        train_missing(chosen.out / "runs.jsonl", jobs, chosen.steps, lambda *job: Run(*job).go())
    print(report(chosen.out))


if __name__ == "__main__":
    main()
