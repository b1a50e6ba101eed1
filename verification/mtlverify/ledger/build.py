"""From a subject to its rows: stored counterexamples first, then the search, then what is proved."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mtlcore.hosting import registry
from mtlverify import sources
from mtlverify.example import Example
from mtlverify.hunt import not_hunted
from mtlverify.law import Law
from mtlverify.ledger import planar, store
from mtlverify.ledger.negatives import harms_everybody, negative_about
from mtlverify.ledger.proofs import proof_of
from mtlverify.ledger.subjects import Subject
from mtlverify.minimise import decidable, smaller
from mtlverify.runner import Result, examine, laws

WEAK = 30
"""A verdict that rests on fewer inputs says so."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the ledger.

    Args:
        kind: kind of plugin.
        name: registered name.
        label: name with the hyper-parameters that differ from the defaults.
        options: those.
        distribution: where the plugin comes from.
        law: id of the law.
        claimed: the plugin promises it, or it is universal.
        status: "proved" (and verified), "verified", "refuted", "not-applicable" or "error".
        examples: inputs measured in the search that verified it (0 if a stored counterexample settled it).
        worst_margin: smallest margin seen.
        detail: reason, blame, or what was raised.
        citation: of the proof.
        assumptions: of the proof.
        counterexample: {"law", "margin", "example"} or None.
        families: inputs measured, by family.
        hunted: inputs of the adversarial search besides; 0: nobody hunted.
        hunt_margin: smallest margin among these.
        read_by: who has read the proof, a "person" or a "machine".
        outside_proof: there is a proof, and the counterexample does not meet its assumptions.
        digest: of the sources of the method and of the law, as they were; see :func:`digest`.
    """

    kind: str
    name: str
    label: str
    options: dict[str, Any]
    distribution: str
    law: str
    claimed: bool
    status: str
    examples: int
    worst_margin: float | None
    detail: str = ""
    citation: str = ""
    assumptions: str = ""
    counterexample: dict[str, Any] | None = None
    families: dict[str, int] = dataclasses.field(default_factory=dict)
    hunted: int = 0
    read_by: str = ""
    outside_proof: bool = False
    digest: str = ""
    hunt_margin: float | None = None

    @property
    def strength(self) -> str:
        """What a verdict that nothing was found rests on."""
        if self.status not in ("proved", "verified") or not self.families:
            return ""
        least = min(self.families.values())
        parts = [f"{len(self.families)} families, {least} or more of each"]
        if self.hunted:
            least_seen = "" if self.hunt_margin is None else f" (worst margin {self.hunt_margin:.3g})"
            parts.append(f"hunted on {self.hunted:,}{least_seen}")
        elif self.claimed:
            parts.append("not hunted")
        if self.examples < WEAK:
            parts.append(f"**weak: fewer than {WEAK} inputs**")
        return ", ".join(parts)

    @property
    def contradiction(self) -> bool:
        """A proof and a counterexample at once, or a broken promise: somebody must look at it."""
        proved = bool(self.citation) and not self.outside_proof
        return self.status == "error" or (self.status == "refuted" and (self.claimed or proved))


def rows(subject: Subject, max_examples: int, seed: int, home: Path = store.HOME, hunt: float = 0.0) -> Iterator[Row]:
    """All laws of the subject's kind; its counterexample file is brought up to date."""
    known, kept = store.load(subject, home), {}
    for law in laws(subject.kind):
        found = row(subject, law, max_examples, seed, known.get(law.id), hunt)
        if found.status == "refuted" and found.counterexample is not None:
            kept[law.id] = found.counterexample
        yield found
    store.save(subject, kept, home)


def row(
    subject: Subject,
    law: Law,
    max_examples: int,
    seed: int,
    stored: dict[str, Any] | None = None,
    hunt: float = 0.0,
) -> Row:
    """One law. A stored counterexample settles it, if it still is one."""
    plugin, result = subject.make(), None
    if stored is not None:
        example = store.example_of(stored)
        result = examine(plugin, law, 1, seed, explicit=[example])
        result = _tidied(subject, plugin, law, result, example) if result.status == "refuted" else None
    if result is None:
        result = examine(plugin, law, max_examples, seed, hunt=hunt)
        if result.status == "refuted":
            result = _readable(subject, plugin, law, result, max_examples, seed)
    return _row(subject, law, result)


def hunted(subject: Subject, law: Law, known: Row, max_examples: int, seed: int, seconds: float) -> Row:
    """A row that is as it should be but for the hunt: the same with what a hunt of so many seconds shows."""
    plugin = subject.make()
    result = examine(plugin, law, 0, seed, hunt=seconds)
    if result.counterexample is not None:
        if result.status == "refuted":
            result = _readable(subject, plugin, law, result, max_examples, seed)
        return _row(subject, law, dataclasses.replace(result, examples=known.examples))
    if not result.hunted:
        return known
    seen = [m for m in (known.hunt_margin, result.hunt_margin) if m is not None]
    return dataclasses.replace(known, hunted=known.hunted + result.hunted, hunt_margin=min(seen, default=None))


def to_hunt(row: Row, law: Law) -> bool:
    """Whether a row is a promise that was kept so far, can be hunted, and was not."""
    kept = row.claimed and row.status in ("proved", "verified")
    return kept and not row.hunted and not not_hunted(law)


def digest(subject: Subject, law: Law) -> str:
    """Of what a row speaks about: the code of the method (with what it imports from its own package), its
    hyper-parameters, and the code of the law's module. What both stand on, the core and the search, is not part of
    it: a change there is a reason to make the whole ledger anew."""
    basis = (*_sources(subject.kind, subject.name, law.check.__module__), subject.options, law.statement)
    return hashlib.sha256(repr(basis).encode()).hexdigest()[:16]


@functools.cache
def _sources(kind: str, name: str, law_module: str) -> tuple[str, str]:
    return _method(kind, name), sources.digest(sources.source_of(law_module))


@functools.cache
def _method(kind: str, name: str) -> str:
    return repr(sources.plugin(registry().load(kind, name)))


def _readable(subject: Subject, plugin: Any, law: Law, result: Result, depth: int, seed: int) -> Result:
    """The same verdict on the smallest counterexample that can be found."""
    assert result.counterexample is not None
    example = store.example_of(result.counterexample)
    negative = negative_about(subject, law.id)
    candidate = None
    if negative is not None and negative.all_harmed:
        rows = torch.tensor(negative.start, dtype=torch.float64)
        known = Example(rows, torch.ones(len(rows), dtype=torch.float64))
        candidate = smaller(dataclasses.replace(law, check=harms_everybody), plugin, known)
    elif law.name == "non-conflicting":
        candidate = planar.smallest_conflict(plugin)
    if candidate is None:
        if isinstance(example, Example) and not decidable(plugin, example):
            # Where the method's own definition has no answer a violation says little: look elsewhere first.
            elsewhere = dataclasses.replace(law, examples=lambda: law.examples().filter(lambda e: decidable(plugin, e)))
            second = examine(plugin, elsewhere, depth, seed)
            if second.status == "refuted" and second.counterexample is not None:
                example = store.example_of(second.counterexample)
        candidate = smaller(law, plugin, example)
    again = examine(plugin, law, 1, 0, explicit=[candidate])
    return dataclasses.replace(again, examples=result.examples) if again.status == "refuted" else result


def _tidied(subject: Subject, plugin: Any, law: Law, result: Result, example: Any) -> Result:
    """What was stored may be made smaller by now: the method, or the minimiser, has changed since. The conflicts that
    are drawn and those of the documented negatives stay: they were chosen."""
    if law.name != "non-conflicting" and negative_about(subject, law.id) is None:
        candidate = smaller(law, plugin, example)
        if candidate is not example:
            again = examine(plugin, law, 1, 0, explicit=[candidate])
            result = again if again.status == "refuted" else result
    return dataclasses.replace(result, examples=0)


def with_proof(row: Row) -> Row:
    """The row with what is proved now, whatever was known when it was written."""
    plugin = Subject(row.kind, row.name, tuple(row.options.items())).make()
    proof = proof_of(row.kind, row.label, plugin, row.law)
    status = "verified" if row.status == "proved" else row.status
    return dataclasses.replace(
        row,
        status="proved" if proof is not None and status == "verified" else status,
        citation="" if proof is None else proof.citation,
        assumptions="" if proof is None else proof.assumptions,
        read_by="" if proof is None else proof.read_by,
        outside_proof=(
            proof is not None and row.counterexample is not None and not proof.contradicted_by(row.counterexample)
        ),
    )


def _row(subject: Subject, law: Law, result: Result) -> Row:
    return with_proof(
        Row(
            kind=subject.kind,
            name=subject.name,
            label=subject.label,
            options=dict(subject.options),
            distribution=registry().find(subject.kind, subject.name).distribution,
            law=result.law,
            claimed=result.claimed,
            status=result.status,
            examples=result.examples,
            worst_margin=result.worst_margin,
            detail=result.detail,
            counterexample=result.counterexample,
            families=dict(result.families),
            hunted=result.hunted,
            hunt_margin=result.hunt_margin,
            digest=digest(subject, law),
        )
    )
