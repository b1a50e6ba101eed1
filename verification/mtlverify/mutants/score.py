"""The mutation score: which mutants the laws refute, and which laws have refuted something. The false-alarm rate."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from mtlcore.hosting import registry
from mtlverify.mutants import aggregators, detectors, explorers, mergers, preferences, quiet, steps, subtle, teleports
from mtlverify.mutants.twins import instances
from mtlverify.processes import workers
from mtlverify.runner import Result, check, chosen, examine, kind_of

CATALOGUE: dict[type, tuple[str, ...]] = {
    **aggregators.KILLED_BY,
    **subtle.KILLED_BY,
    **quiet.KILLED_BY,
    **preferences.KILLED_BY,
    **steps.KILLED_BY,
    **detectors.KILLED_BY,
    **teleports.KILLED_BY,
    **mergers.KILLED_BY,
    **explorers.KILLED_BY,
}
"""Every mutant, with the ids of the laws that must refute it."""


@dataclasses.dataclass(frozen=True)
class Score:
    """Outcome of one run over the catalogue.

    Args:
        killed: (mutant, law) pairs that were refuted, or made the law raise, with what was found.
        survived: pairs that were not.
        idle: registered laws that no mutant of the catalogue is meant for.
    """

    killed: list[Result]
    survived: list[Result]
    idle: list[str]

    @property
    def share(self) -> float:
        """Killed pairs / all pairs."""
        return len(self.killed) / (len(self.killed) + len(self.survived))


def mutation_score(max_examples: int = 200, seed: int = 0) -> Score:
    """Run every mutant against the laws that must see it."""
    killed: list[Result] = []
    survived: list[Result] = []
    for mutant, laws in CATALOGUE.items():
        for law in chosen(kind_of(mutant()), laws):
            result = examine(mutant(), law, max_examples, seed, shrink=False)
            caught = result.status == "refuted" or (result.status == "error" and result.counterexample is not None)
            (killed if caught else survived).append(result)
    meant = {(kind_of(mutant()), law) for mutant, laws in CATALOGUE.items() for law in laws}
    names = {law if kind == "aggregator" else f"{kind}.{law}" for kind, law in meant}
    own = [e.name for e in registry().entries("law") if e.distribution == "mtlcore"]
    return Score(killed, survived, sorted(set(own) - names))


def false_alarms(seeds: range, max_examples: int, jobs: int = 1) -> Iterator[tuple[int, list[Result]]]:
    """Check every correct twin against its laws on each seed: (seed, results), all of which should be verified.

    Seeds come in order, as they are finished, whatever the number of processes.
    """
    if jobs <= 1:
        yield from ((seed, _twins_checked(seed, max_examples)) for seed in seeds)
        return
    with workers(jobs) as pool:
        yield from zip(seeds, pool.map(_twins_checked, seeds, [max_examples] * len(seeds)), strict=True)


def _twins_checked(seed: int, max_examples: int) -> list[Result]:
    return [result for twin, laws in instances() for result in check(twin, laws, max_examples, seed)]
