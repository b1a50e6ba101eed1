"""Which method should be the default of ``MultiTask``? The records answer, by a rule that is stated with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from mtlbench import statistics as stats
from mtlbench.report.model import MethodRow, TaskReport
from mtlbench.report.overall import mean_ranks
from mtlbench.suite import SINGLE_TASK
from mtlbench.verdicts.claims import Claim, Runs, judged

SUITE = "standard"
LAW = "non-conflicting"
RULE = (
    "The default of `MultiTask` is chosen by the records of the suite `standard`: among the methods that keep "
    "`non-conflicting` on every task, the one with the best mean rank. Those whose delta-m cannot be told from that of "
    "the best (paired by seed, Holm) are tied with it. A tie goes to the cheaper step, and with steps less than 5 % "
    "apart to the lower delta-m over all tasks."
)
_CHEAPER = 0.05


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A method that keeps the law.

    Args:
        name: of the method in the suite.
        rank: its mean rank among the candidates.
        delta_m: over all tasks, percent.
        against: its delta-m minus that of the best by rank, points; None for the best itself.
        time: of a step, over that of the best.
    """

    name: str
    rank: float
    delta_m: stats.Interval
    against: stats.Comparison | None
    time: float

    @property
    def tied(self) -> bool:
        """Whether the runs cannot tell it from the best by rank."""
        return self.against is None or self.against.verdict == "no significant difference"


def candidates(tasks: Sequence[TaskReport], runs: Runs) -> list[Candidate]:
    """The methods that keep the law on every one of ``tasks``, the best by rank first."""
    tables = [{m.name: m for m in t.scored()} for t in tasks]
    names = [m for m in (tables[0] if tables else ()) if m != SINGLE_TASK and all(_keeps(t.get(m)) for t in tables)]
    if len(names) < 2:
        return []
    ranks, where = mean_ranks(tables, names), [t.name for t in tasks]
    best, *rest = sorted(names, key=ranks.__getitem__)
    against = {v.claim.ours: v.comparison for v in judged(runs, where, [Claim("", "", m, best) for m in rest])}
    time = {v.claim.ours: v.comparison for v in judged(runs, where, [Claim("", "", m, best, "time") for m in rest])}
    found = []
    for name in (best, *rest):
        scores = [t[name].delta_m for t in tables]
        values = [list(s.values.values()) for s in scores if s is not None]
        step = time.get(name)
        ratio = 1.0 if step is None else step.difference.estimate
        found.append(Candidate(name, ranks[name], stats.interval(values), against.get(name), ratio))
    return found


def choice(found: Sequence[Candidate]) -> Candidate:
    """The default by :data:`RULE`."""
    tied = [c for c in found if c.tied]
    cheapest = min(c.time for c in tied)
    return min((c for c in tied if c.time <= cheapest * (1 + _CHEAPER)), key=lambda c: c.delta_m.estimate)


def _keeps(row: MethodRow | None) -> bool:
    return row is not None and row.delta_m is not None and bool(row.delta_m.values) and LAW in row.guarantees
