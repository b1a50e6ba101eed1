"""Measuring the gradient sources, for who asks. The one place where mtlcore looks at a clock."""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from mtlcore import inputs
from mtlcore.contracts import Needs
from mtlcore.errors import ConfigurationError
from mtlcore.gradients import check, jacobian
from mtlcore.gradients.batch import Batch
from mtlcore.gradients.plan import Plan
from mtlcore.gradients.planner import Planner
from mtlcore.inputs import Closure
from mtlcore.safety import described, shown
from mtlcore.snapshot import Snapshot
from mtlcore.step.prepare import make_batch
from mtlcore.step.run import Run


@dataclasses.dataclass(frozen=True)
class Row:
    """One gradient source on one batch.

    Args:
        source: its name.
        seconds: median time of obtaining task gradients, Gramian and one combination; None if it was refused.
        ratio: to the fastest source's.
        refused: why it cannot serve this network, or "".
    """

    source: str
    seconds: float | None
    ratio: float | None
    refused: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """What was measured, the fastest first."""

    rows: tuple[Row, ...]

    @property
    def fastest(self) -> str | None:
        """Name of the fastest source; None if none can serve."""
        return self.rows[0].source if self.rows and self.rows[0].seconds is not None else None

    def __str__(self) -> str:
        width = max((len(r.source) for r in self.rows), default=0)
        lines = []
        for r in self.rows:
            time_ = f"refused: {r.refused}" if r.seconds is None else f"{r.seconds * 1e3:9.2f} ms  {r.ratio:5.2f}"
            lines.append(f"{r.source:{width}}  {time_}")
        return "\n".join(lines)


def merged(tables: Sequence[Table]) -> Table:
    """One table for several processes: of each source the slowest time, because a step waits for the last; and refused
    where one of them refuses it."""
    names = [r.source for r in tables[0].rows]
    by_name = {n: [r for t in tables for r in t.rows if r.source == n] for n in names}
    refused = {n: next((r.refused for r in rows if r.seconds is None), "") for n, rows in by_name.items()}
    times = {n: max(r.seconds or 0.0 for r in rows) for n, rows in by_name.items() if not refused[n]}
    best = min(times.values(), default=0.0)
    out = [Row(n, s, s / best if best else 1.0) for n, s in sorted(times.items(), key=lambda item: item[1])]
    return Table((*out, *(Row(n, None, None, why) for n, why in refused.items() if why)))


def measure(planner: Planner, needs: Needs, evaluate: Callable[[], Batch], repeats: int = 5) -> Table:
    """Every exact source that provides ``needs``, on fresh forward passes of ``evaluate``; their turns alternate.

    Raises:
        ConfigurationError: fewer than one repeat, or not a number of them.
        What ``evaluate`` raises: no source is to blame for that.
    """
    if inputs.whole_number("repeats", repeats) < 1:
        raise ConfigurationError(f"repeats={repeats!r}: measure at least once.")
    plans = planner.candidates(needs)
    times: dict[str, list[float]] = {p.name: [] for p in plans}
    refused: dict[str, str] = {}
    for turn in range(repeats + 1):  # the first only warms up and compares
        for plan in plans:
            if plan.name in refused:
                continue
            batch = evaluate()
            try:
                seconds = _one(planner, plan, batch, needs, compare=turn == 0)
            except Exception as error:  # the network's own, of any kind
                refused[plan.name] = described(error)[:200]
                continue
            if turn:
                times[plan.name].append(seconds)
    medians = {name: statistics.median(t) for name, t in times.items() if t and name not in refused}
    best = min(medians.values(), default=0.0)
    rows = [Row(n, s, s / best if best else 1.0) for n, s in sorted(medians.items(), key=lambda item: item[1])]
    return Table((*rows, *(Row(n, None, None, why) for n, why in refused.items())))


def tune(run: Run, closure: Closure, repeats: int) -> Table:
    """Measure on a batch of the run, and pin the winner; ``MultiTask.tune`` says what holds."""

    if not callable(closure):
        raise ConfigurationError(f"tune takes a function that evaluates a batch, as step does; found {shown(closure)}.")

    if run.sharded:
        raise ConfigurationError(
            "tune compares gradient sources, and a sharded trunk (FSDP2) has one: backward passes through FSDP. Leave "
            "the call out."
        )

    def evaluate() -> Batch:
        return make_batch(run, *inputs.evaluated(closure)).without_unread()

    with Snapshot(modules=run.modules()).restored():
        needs, together = run.needs(), run.processes.several(run.modules(), run.parameters)
        needs = Needs.JACOBIAN if together and needs == Needs.GRAMIAN else needs  # others need whole rows
        work = functools.partial(measure, run.planner, needs, evaluate, repeats)
        table = merged(run.processes.gathered(work)) if together else work()
    if table.fastest is not None and needs > Needs.LOSSES:
        run.planner.pin(needs, table.fastest)
    return table


def _one(planner: Planner, plan: Plan, batch: Batch, needs: Needs, *, compare: bool) -> float:
    if needs == Needs.LOSSES:
        started = _now(batch)
        torch.autograd.grad(batch.losses, batch.shared, allow_unused=True)
        return _now(batch) - started
    forced = planner.forced(plan)
    if compare:
        found = forced.run(plan, batch, keep_graph=True)
        assert isinstance(found, (jacobian.Stored, jacobian.Blocks))
        error = check.disagreement(found, batch)
        if error is not None and not error <= check.tolerance(batch):
            raise ConfigurationError(f"its gradients differ from plain autograd's (relative error {error:.0e}).")
    started = _now(batch)
    found = forced.run(plan, batch)
    found.gramian().cpu()
    if isinstance(found, jacobian.Stored):
        found.combined(torch.ones(len(batch.losses), dtype=torch.float64, device="cpu"))
    return _now(batch) - started


def _now(batch: Batch) -> float:
    device = batch.losses[0].device
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()
