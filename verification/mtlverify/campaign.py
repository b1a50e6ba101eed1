"""Checking many plugins at once: work is spread over laws, and what is known already is not asked again.

One slow law of one method then keeps one process busy, not everything behind that method.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mtlcore.errors import MissingExtraError, MtlError
from mtlcore.hosting import Entry, TookTooLong, blame, limited, registry, waiting
from mtlverify import certificates
from mtlverify.processes import Lost, Task, side_by_side
from mtlverify.runner import Result, chosen, claims_of_nothing, examine, promised

_LATE = "it took longer than"


@dataclasses.dataclass(frozen=True)
class Depth:
    """How hard to look.

    Args:
        max_examples: inputs per law.
        seed: of the search.
        hunt: seconds of adversarial search per promised law.
        timeout: seconds for one law of one plugin. A plugin that takes longer is stopped: that law and the plugin's
            other laws that have not begun are rows that say so. None: as long as it takes.
    """

    max_examples: int
    seed: int = 0
    hunt: float = 0.0
    timeout: float | None = None


def campaign(
    entries: Sequence[Entry],
    depth: Depth,
    *,
    laws: Sequence[str] | None = None,
    claimed: bool = False,
    options: Mapping[str, Any] | None = None,
    jobs: int = 1,
    fresh: bool = False,
    progress: Progress | None = None,
) -> Iterator[tuple[Entry, list[Result]]]:
    """Each entry with its results, in the order of ``entries`` and of their laws, whatever the number of processes.

    Args:
        entries: sound entries of the registry.
        laws: ids of the laws to check; None means all of the plugin's kind.
        claimed: only laws that the plugin promises or must obey.
        options: hyper-parameters.
        jobs: processes. A plugin that was registered by hand in this process is checked in this process.
        fresh: search even where a certificate is valid.
        progress: hears how many laws there are to check, of each that is done, and who is waited for.
    """
    progress = progress or Progress()
    whole = laws is None and not claimed
    plans = [_plan(e, depth, laws, claimed, dict(options or {}), whole and not fresh) for e in entries]
    progress.begin(sum(len(plan.waiting) for plan in plans))
    checked = _checked(plans, depth, jobs, progress)
    for plan in plans:
        while len(plan.found) < len(plan.waiting):
            mine, law, result = next(checked)
            mine.found[law] = result
            progress.done(f"{mine.entry.kind} {mine.entry.name}: {law}")
        yield plan.entry, plan.finished(depth, whole)


class Progress:
    """Whoever wants to show how far a campaign is overrides these."""

    def begin(self, laws: int) -> None:
        """So many pairs of a plugin and a law are to be checked; the others are known from certificates."""

    def done(self, label: str) -> None:
        """One of them is done."""

    def say(self, text: str) -> None:
        """Somebody is waited for."""


def _checked(
    plans: Sequence[_Plan], depth: Depth, jobs: int, progress: Progress
) -> Iterator[tuple[_Plan, str, Result]]:
    """Every law of every plan, as it is done."""
    work = [(plan, law) for plan in plans for law in plan.waiting]
    here = jobs <= 1 or _by_hand(plans)
    if here or len(work) <= 1:
        yield from ((plan, law, _here(plan, law, depth)) for plan, law in work)
        return
    tasks = [
        Task(plan.task(law, depth), f"{plan.entry.kind} {plan.entry.name!r}, law {law}", plan.entry.name)
        for plan, law in work
    ]
    for i, found in side_by_side(_law_checked, tasks, min(jobs, len(tasks)), depth.timeout, progress.say):
        plan, law = work[i]
        if isinstance(found, Lost):
            plan.lost = True
            found = broken_row(plan.entry, found.why, law)
        yield plan, law, found


def _by_hand(plans: Sequence[_Plan]) -> bool:
    """Whether a plugin, or what is asked of it, was added to this process: others do not know it."""
    asked = [e for kind in ("law", "family", "network") for e in registry().entries(kind)]
    return any(e.distribution == "(this process)" for e in (*(p.entry for p in plans), *asked))


def _here(plan: _Plan, law: str, depth: Depth) -> Result:
    """In this process: what does not come back to Python cannot be stopped."""
    if plan.lost:
        late = next(r for r in plan.found.values() if r.detail.startswith(_LATE))
        return broken_row(plan.entry, f"not checked, because law {late.law} took longer than {depth.timeout:g} s", law)
    try:
        with waiting(f"{plan.entry.kind} {plan.entry.name!r}, law {law}"), limited(depth.timeout):
            return _law_checked(plan.task(law, depth))
    except TookTooLong as error:
        plan.lost = True
        return broken_row(plan.entry, str(error), law)
    except KeyboardInterrupt:
        # A plugin that hangs is stopped by hand: this is where to look.
        print(f"stopped while {plan.entry.kind} {plan.entry.name!r} was checked, at the law {law!r}", file=sys.stderr)
        raise


@dataclasses.dataclass
class _Plan:
    """What there is to do about one plugin."""

    entry: Entry
    options: dict[str, Any]
    known: list[Result]
    waiting: list[str]
    certified: bool = False
    found: dict[str, Result] = dataclasses.field(default_factory=dict)
    lost: bool = False

    def task(self, law: str, depth: Depth) -> Check:
        """What a process needs to know."""
        return (self.entry.kind, self.entry.name, self.options, law, depth)

    def finished(self, depth: Depth, whole: bool) -> list[Result]:
        """All results, kept as a certificate if they are about all laws and none was lost to a clock."""
        found = [self.found[law] for law in self.waiting]
        loads = not any(r.law == "loads" for r in self.known)
        if whole and loads and not self.certified and not self.lost:
            everything = [*self.known, *found]
            certificates.store(
                self.entry.kind, self.entry.name, self.options, everything, depth.max_examples, depth.seed
            )
        return [*self.known, *found]


Check = tuple[str, str, "dict[str, Any]", str, Depth]


def _plan(
    entry: Entry, depth: Depth, laws: Sequence[str] | None, claimed: bool, options: dict[str, Any], reuse: bool
) -> _Plan:
    if reuse:
        known = certificates.lookup(entry.kind, entry.name, options, depth.max_examples, hunted=depth.hunt)
        if known is not None:
            return _Plan(entry, options, [Result(**row) for row in known["rows"]], [], certified=True)
    try:
        plugin = registry().create(entry.kind, entry.name, **options)
    except MtlError as error:
        return _Plan(entry, options, [broken_row(entry, str(error))], [])
    named = [_named(r, entry) for r in claims_of_nothing(plugin, entry.kind, laws)]
    wanted = chosen(entry.kind, laws)
    return _Plan(entry, options, named, [law.id for law in (promised(plugin, wanted) if claimed else wanted)])


def broken_row(entry: Entry, problem: str, law: str = "loads") -> Result:
    """The row of a plugin that cannot be checked."""
    return Result(entry.kind, entry.name, entry.distribution, law, True, "error", detail=problem)


def _named(result: Result, entry: Entry) -> Result:
    # A class may be registered under several names: a row has the one that was asked for.
    return dataclasses.replace(result, name=entry.name, distribution=entry.distribution)


def _law_checked(task: Check) -> Result:
    """One law of one plugin; whatever the plugin does, a row."""
    import torch

    torch.set_num_threads(1)  # K x K problems gain nothing from more, and the cores are in use
    kind, name, options, law, depth = task
    entry = registry().find(kind, name)
    try:
        plugin = registry().create(kind, name, **options)
        (wanted,) = chosen(kind, [law])
        return _named(examine(plugin, wanted, depth.max_examples, depth.seed, hunt=depth.hunt), entry)
    except (MissingExtraError, TookTooLong):
        raise  # the first is the same for every plugin
    except BaseException as error:
        return broken_row(entry, f"raised {blame(error)}", law)
