"""``python -m mtlverify.ledger [NAME ...]``: bring the ledger up to date: all, the methods named, what is missing."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from mtlverify.law import Law
from mtlverify.ledger import render, store
from mtlverify.ledger.build import Row, digest, hunted, row, to_hunt, with_proof
from mtlverify.ledger.subjects import Subject, subjects
from mtlverify.processes import Lost, Task, side_by_side
from mtlverify.runner import chosen, laws

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

PAUSE = 5.0
"""Seconds between two writings of the table: a run that is stopped has lost no more than that."""

Key = tuple[str, str, str]
Table = dict[Key, Row]
"""(kind, label, law id) -> row."""


@app.command()
def main(
    names: Annotated[Optional[list[str]], typer.Argument(metavar="[NAME]...", help="Methods; all if left out.")] = None,  # noqa: UP045
    out: Annotated[Path, typer.Option(help="The page, with convergence.json if it is there.")] = Path("docs/reference"),
    missing: Annotated[
        bool,
        typer.Option(
            "--missing",
            help="Only rows that are not there, or whose method or law has changed; with --hunt also promises that "
            "nobody has hunted.",
        ),
    ] = False,
    max_examples: Annotated[int, typer.Option(min=1, help="Inputs per law that is not refuted yet.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the search.")] = 0,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
    hunt: Annotated[float, typer.Option(min=0.0, help="Seconds of adversarial search per promise.")] = 0.0,
    timeout: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0.001, metavar="S", help="Seconds for one row; one that takes longer stays missing."),
    ] = None,
    counterexamples: Annotated[Path, typer.Option(help="Where they are kept, a file per method.")] = store.HOME,
    render_only: Annotated[bool, typer.Option(help="Rewrite page and figures from ledger.json.")] = False,
) -> None:
    """Check every law of every method; a stored counterexample settles its law at once.

    Rows are written down as they are finished: a run that is stopped goes on with --missing.

    Exit code 1 if something contradicts: a proved or promised law refuted, or a check that could not be made.
    """
    file = out / "ledger.json"
    known = [Row(**r) for r in json.loads(file.read_text(encoding="utf-8"))] if file.exists() else []
    chosen_ones = [] if render_only else subjects(names or [])
    if not chosen_ones and not render_only:
        typer.secho(f"no method called {', '.join(names or [])}; `mtl list` shows all.", fg="red", err=True)
        raise typer.Exit(2)
    table = _table(known)
    if not names and not render_only:
        table = {key: r for key, r in table.items() if key in set(_keys(chosen_ones))}
    lost = 0
    if not render_only:
        work = [(s, id) for s, id in _pairs(chosen_ones) if not missing or _lacks(table, s, id, hunt)]
        work.sort(key=lambda pair: _urgency(table.get(_key(*pair))))
        typer.echo(f"{len(work)} rows to make, {len(table)} known", err=True)
        depth = Depth(max_examples, seed, hunt, counterexamples)
        lost = _fill(table, work, depth, jobs, timeout, file, keep=missing)
    merged = [with_proof(table[key]) for key in sorted(table)]
    _write(file, merged)
    drawn = _pages(out, merged)
    wrong = [r for r in merged if r.contradiction]
    for r in wrong:
        because = "promised" if r.claimed else "proved"
        typer.secho(f"{r.label}, {r.law}: {r.status}, although {because}. {r.detail}", fg="red", err=True)
    typer.echo(f"{len(merged)} rows in {file}: {_counts(merged)}; {drawn} figures.")
    if lost:
        typer.secho(f"{lost} rows could not be made, and are missing.", fg="red", err=True)
    if wrong or lost:
        raise typer.Exit(1)


@dataclasses.dataclass(frozen=True)
class Depth:
    """How hard to look.

    Args:
        max_examples: inputs per law.
        seed: of the search.
        hunt: seconds of adversarial search per promise.
        home: of the stored counterexamples.
    """

    max_examples: int
    seed: int
    hunt: float
    home: Path


def _pairs(chosen_ones: Iterable[Subject]) -> Iterator[tuple[Subject, str]]:
    """Every subject with every law of its kind."""
    ids = {kind: [law.id for law in laws(kind)] for kind in {s.kind for s in chosen_ones}}
    return ((s, id) for s in chosen_ones for id in ids[s.kind])


def _key(subject: Subject, law: str) -> Key:
    return (subject.kind, subject.label, law)


def _keys(chosen_ones: Iterable[Subject]) -> Iterator[Key]:
    return (_key(s, id) for s, id in _pairs(list(chosen_ones)))


def _table(known: Iterable[Row]) -> Table:
    return {(r.kind, r.label, r.law): r for r in known}


def _lacks(table: Table, subject: Subject, law: str, hunt: float) -> bool:
    """Whether there is no row, one about another source, or one that is to be hunted and was not."""
    found = table.get(_key(subject, law))
    (about,) = chosen(subject.kind, [law])
    return not _holds(found, subject, about) or (hunt > 0 and found is not None and to_hunt(found, about))


def _urgency(found: Row | None) -> int:
    """What is not there at all comes first, then promises: a run that is stopped has made what matters."""
    return 0 if found is None else 1 if found.claimed else 2


def _holds(found: Row | None, subject: Subject, law: Law) -> bool:
    """Whether a row is about the sources as they are."""
    return found is not None and found.status != "error" and found.digest == digest(subject, law)


def _fill(
    table: Table,
    work: list[tuple[Subject, str]],
    depth: Depth,
    jobs: int,
    timeout: float | None,
    file: Path,
    keep: bool = False,
) -> int:
    """Make the rows, and write them down as they are finished; the number of those that could not be made. With
    ``keep`` rows that hold are hunted only."""
    tasks = [
        Task((s, id, depth, table.get(_key(s, id)) if keep else None), f"{s.label}, law {id}", (s.slug, id))
        for s, id in work
    ]
    lost, written = 0, time.monotonic()
    for done, (i, found) in enumerate(side_by_side(_made, tasks, jobs, timeout), 1):
        subject, law = work[i]
        if isinstance(found, Lost):
            lost += 1
            typer.secho(f"{subject.label}, law {law}: {found.why}", fg="red", err=True)
            continue
        table[_key(subject, law)] = found
        store.put(subject, law, found.counterexample if found.status == "refuted" else None, depth.home)
        if found.contradiction:
            typer.secho(f"{subject.label}, law {law}: {found.status}. {found.detail}", fg="red", err=True)
        if time.monotonic() - written > PAUSE:
            _write(file, [table[key] for key in sorted(table)])
            typer.echo(f"{done} of {len(work)}: {subject.label}", err=True)
            written = time.monotonic()
    return lost


def _made(task: tuple[Subject, str, Depth, Row | None]) -> Row:
    subject, id, depth, known = task
    (law,) = chosen(subject.kind, [id])
    if known is not None and _holds(known, subject, law) and to_hunt(known, law):
        return hunted(subject, law, known, depth.max_examples, depth.seed, depth.hunt)
    return row(subject, law, depth.max_examples, depth.seed, store.load(subject, depth.home).get(id), depth.hunt)


def _write(file: Path, merged: list[Row]) -> None:
    """Beside it, and moved into place: whoever stops a run never leaves half a table."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".tmp")
    draft.write_text(json.dumps([dataclasses.asdict(r) for r in merged], indent=1) + "\n", encoding="utf-8")
    draft.replace(file)


def _pages(out: Path, merged: list[Row]) -> int:
    """The page and its figures; the number of these."""
    runs_file: Any = out / "convergence.json"
    runs = render.convergence(json.loads(runs_file.read_text(encoding="utf-8"))) if runs_file.exists() else ""
    (out / "ledger.md").write_text(render.page(merged, runs=runs), encoding="utf-8")
    drawn = set(render.draw(merged, out / "figures"))
    for old in set((out / "figures").glob("aggregator.*.svg")) - drawn:
        old.unlink()
    return len(drawn)


def _counts(found: list[Row]) -> str:
    return ", ".join(f"{n} {s}" for s, n in sorted(Counter(r.status for r in found).items()))
