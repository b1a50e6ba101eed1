"""Checking many plugins at once: work is spread over laws, and what is known already is not asked again.

One slow law of one method then keeps one process busy, not everything behind that method.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mtlcore.errors import MissingExtraError, MtlError
from mtlcore.registry import Entry, registry
from mtlverify import certificates
from mtlverify.processes import workers
from mtlverify.runner import Result, chosen, claims_of_nothing, examine, promised


@dataclasses.dataclass(frozen=True)
class Depth:
    """How hard to look.

    Args:
        max_examples: inputs per law.
        seed: of the search.
        hunt: seconds of adversarial search per promised law.
        timeout: seconds for one plugin, from the start of its first law on; a law that is not done by then is an
            "error" that says so. None: as long as it takes.
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
) -> Iterator[tuple[Entry, list[Result]]]:
    """Each entry with its results, in the order of ``entries`` and of their laws, whatever the number of processes.

    Args:
        entries: sound entries of the registry.
        laws: ids of the laws to check; None means all of the plugin's kind.
        claimed: only laws that the plugin promises or must obey.
        options: hyper-parameters.
        jobs: processes. A plugin that was registered by hand in this process is checked in this process.
        fresh: search even where a certificate is valid.
    """
    whole = laws is None and not claimed
    plans = [_plan(e, depth, laws, claimed, dict(options or {}), whole and not fresh) for e in entries]
    here = jobs <= 1 or any(e.distribution == "(this process)" for e in entries)
    total = sum(len(plan.waiting) for plan in plans)
    if here or total <= 1:
        for plan in plans:
            yield plan.entry, plan.finished([_law_checked(task) for task in plan.tasks(depth)], depth, whole)
        return
    with workers(min(jobs, total)) as pool:
        running = [[pool.submit(_law_checked, task) for task in plan.tasks(depth)] for plan in plans]
        for plan, futures in zip(plans, running, strict=True):
            yield plan.entry, plan.finished(_gathered(plan, futures, depth.timeout), depth, whole)


Task = tuple[str, str, "dict[str, Any]", str, Depth]


@dataclasses.dataclass
class _Plan:
    """What there is to do about one plugin."""

    entry: Entry
    options: dict[str, Any]
    known: list[Result]
    waiting: list[str]
    certified: bool = False

    def tasks(self, depth: Depth) -> list[Task]:
        return [(self.entry.kind, self.entry.name, self.options, law, depth) for law in self.waiting]

    def finished(self, found: list[Result], depth: Depth, whole: bool) -> list[Result]:
        """All results, kept as a certificate if they are about all laws."""
        results = [*self.known, *found]
        broken = [r for r in results if r.law in ("loads", "can-be-checked")]
        if whole and not self.certified and not broken:
            certificates.store(self.entry.kind, self.entry.name, self.options, results, depth.max_examples, depth.seed)
        return results


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


def _law_checked(task: Task) -> Result:
    """One law of one plugin; whatever happens, a row."""
    import torch

    torch.set_num_threads(1)  # K x K problems gain nothing from more, and the cores are in use
    kind, name, options, law, depth = task
    entry = registry().find(kind, name)
    try:
        plugin = registry().create(kind, name, **options)
        (wanted,) = chosen(kind, [law])
        return _named(examine(plugin, wanted, depth.max_examples, depth.seed, hunt=depth.hunt), entry)
    except MissingExtraError:
        raise  # the same for every plugin
    except KeyboardInterrupt:
        # A plugin that hangs is stopped by hand: this is where to look.
        print(f"stopped while {kind} {name!r} was checked, at the law {law!r}", file=sys.stderr)
        raise
    except (Exception, SystemExit) as error:
        return broken_row(entry, f"raised {type(error).__name__}: {error}", law)


def _gathered(plan: _Plan, futures: list[concurrent.futures.Future[Result]], timeout: float | None) -> list[Result]:
    """The results in the order of the laws; what is late is given up, and said to be."""
    end = None if timeout is None else time.monotonic() + timeout
    found = []
    for law, future in zip(plan.waiting, futures, strict=True):
        try:
            found.append(future.result(None if end is None else max(0.0, end - time.monotonic())))
        except concurrent.futures.TimeoutError:
            future.cancel()
            found.append(broken_row(plan.entry, f"not finished within {timeout:g} seconds", law))
    return found
