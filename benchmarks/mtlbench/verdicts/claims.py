"""What the three systems claim, as differences that records can decide."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from mtlbench import statistics as stats
from mtlbench.formats import Record

CHEAP = 1.15
"""A teleporting method may take so many times the time without teleports. [choice] this project's aim"""
CONSTANT = 1.25
"""A step that is called O(1) in the number of tasks may take so many times one of the mean of the losses. [choice]"""

Runs = Mapping[tuple[str, str], Mapping[int, Record]]
"""{(task, method): {seed: run}}"""


@dataclasses.dataclass(frozen=True)
class Claim:
    """A sentence that is true if a difference is below zero.

    Args:
        system: whose it is.
        says: the sentence.
        ours, theirs: methods of the suite.
        measure: "delta_m" (points) or "time" (of a step: ours / theirs).
        bound: with "time", what that must be below.
    """

    system: str
    says: str
    ours: str
    theirs: str
    measure: str = "delta_m"
    bound: float = 0.0

    def value(self, ours: Record, theirs: Record) -> float | None:
        """The difference of one pair of runs; None if one of them does not say."""
        if self.measure == "delta_m":
            found = ours.delta_m, theirs.delta_m
            return None if found[0] is None or found[1] is None else found[0] - found[1]
        times = ours.ratio_to_sum, theirs.ratio_to_sum  # both over a plain step that was timed in turns with them
        return times[0] / times[1] - self.bound if times[0] and times[1] else None


def _better(system: str, ours: str, *others: str) -> list[Claim]:
    return [Claim(system, f"ends better than {other}", ours, other) for other in others]


CLAIMS: tuple[Claim, ...] = (
    *(Claim("COST", f"improves {m}, to which it is added", f"{m} + COST", m) for m in ("ls", "fairgrad")),
    *(
        Claim("COST", f"makes {m} at most {CHEAP - 1:.0%} slower", f"{m} + COST", m, "time", CHEAP)
        for m in ("ls", "fairgrad")
    ),
    *_better("GradOPS", "gradops", "ls", "pcgrad", "mgda", "cagrad", "imtl-g", "nash-mtl"),
    *_better("BiLB4MTL", "bilb4mtl", "ls", "uw", "famo", "fairgrad", "nash-mtl"),
    Claim("BiLB4MTL", f"takes at most {CONSTANT} times a step of ls", "bilb4mtl", "ls", "time", CONSTANT),
)
"""[paper], in the words of this project: each system's paper shows tables in which it is ahead of these methods; the
two bounds on time are ours."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the runs say of a claim: the difference over tasks, and by task, there corrected over the tasks."""

    claim: Claim
    word: str
    comparison: stats.Comparison | None
    by_task: dict[str, stats.Comparison]


_WORDS = {"better": "supported", "worse": "not supported", "no significant difference": "undecided"}


def judged(runs: Runs, tasks: Sequence[str], claims: Iterable[Claim] = CLAIMS) -> list[Verdict]:
    """A verdict for each claim from the runs on these tasks, paired by seed, corrected over all claims (Holm)."""
    pairs = {claim: _pairs(claim, runs, tasks) for claim in claims}
    compared = stats.corrected({str(i): stats.paired(list(p.values())) for i, p in enumerate(pairs.values()) if p})
    return [_verdict(claim, found, compared.get(str(i))) for i, (claim, found) in enumerate(pairs.items())]


def _pairs(claim: Claim, runs: Runs, tasks: Sequence[str]) -> dict[str, list[float]]:
    """{task: differences}, of the tasks on which there are some."""
    found: dict[str, list[float]] = {}
    for task in tasks:
        ours, theirs = runs.get((task, claim.ours), {}), runs.get((task, claim.theirs), {})
        values = [claim.value(ours[s], theirs[s]) for s in sorted(set(ours) & set(theirs))]
        if kept := [v for v in values if v is not None]:
            found[task] = kept
    return found


def _verdict(claim: Claim, found: dict[str, list[float]], comparison: stats.Comparison | None) -> Verdict:
    word = "no runs" if comparison is None else _WORDS.get(comparison.verdict, "not enough runs")
    by_task = stats.corrected({task: stats.paired([values]) for task, values in found.items()})
    return Verdict(claim, word, comparison, by_task)
