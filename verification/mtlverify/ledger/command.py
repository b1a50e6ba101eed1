"""``python -m mtlverify.ledger [NAME ...]``: bring the ledger up to date, all of it or the methods named."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import multiprocessing
from pathlib import Path
from typing import Annotated, Optional

import typer

from mtlverify.ledger import render
from mtlverify.ledger.build import Row, rows, with_proof
from mtlverify.ledger.subjects import Subject, subjects

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    names: Annotated[Optional[list[str]], typer.Argument(metavar="[NAME]...", help="Methods; all if left out.")] = None,  # noqa: UP045
    out: Annotated[Path, typer.Option(help="The page, with convergence.json if it is there.")] = Path("docs/reference"),
    max_examples: Annotated[int, typer.Option(min=1, help="Inputs per law that is not refuted yet.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the search.")] = 0,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
    hunt: Annotated[float, typer.Option(min=0.0, help="Seconds of adversarial search per promise.")] = 0.0,
    render_only: Annotated[bool, typer.Option(help="Rewrite page and figures from ledger.json.")] = False,
) -> None:
    """Check every law of every method; a stored counterexample settles its law at once.

    Exit code 1 if something contradicts: a proved or promised law refuted, or a check that could not be made.
    """
    file = out / "ledger.json"
    known = [Row(**r) for r in json.loads(file.read_text(encoding="utf-8"))] if file.exists() else []
    chosen = [] if render_only else subjects(names or [])
    if not chosen and not render_only:
        typer.secho(f"no method called {', '.join(names or [])}; `mtl list` shows all.", fg="red", err=True)
        raise typer.Exit(2)
    fresh: dict[tuple[str, str], list[Row]] = {}
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, context, initializer=_alone) as pool:
        waiting = {pool.submit(_rows, s, max_examples, seed, hunt): s for s in chosen}
        for done in concurrent.futures.as_completed(waiting):
            subject = waiting[done]
            fresh[subject.kind, subject.label] = done.result()
            typer.secho(f"{subject.label}: {_counts(done.result())}", err=True)
            # Written as it grows: stopped half-way, nothing found is lost.
            _write(file, _merge(known, fresh, keep_others=True))
    merged = [with_proof(r) for r in _merge(known, fresh, keep_others=bool(names) or render_only)]
    _write(file, merged)
    table = out / "convergence.json"
    runs = render.convergence(json.loads(table.read_text(encoding="utf-8"))) if table.exists() else ""
    (out / "ledger.md").write_text(render.page(merged, runs=runs), encoding="utf-8")
    drawn = set(render.draw(merged, out / "figures"))
    for old in set((out / "figures").glob("aggregator.*.svg")) - drawn:
        old.unlink()
    wrong = [r for r in merged if r.contradiction]
    for r in wrong:
        because = "promised" if r.claimed else "proved"
        typer.secho(f"{r.label}, {r.law}: {r.status}, although {because}. {r.detail}", fg="red", err=True)
    typer.echo(f"{len(merged)} rows in {file}: {_counts(merged)}; {len(drawn)} figures.")
    if wrong:
        raise typer.Exit(1)


def _write(file: Path, merged: list[Row]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps([dataclasses.asdict(r) for r in merged], indent=1) + "\n", encoding="utf-8")


def _alone() -> None:
    """One thread per process: the matrices are small and the processes run side by side."""
    import torch

    torch.set_num_threads(1)


def _rows(subject: Subject, max_examples: int, seed: int, hunt: float) -> list[Row]:
    return list(rows(subject, max_examples, seed, hunt=hunt))


def _merge(known: list[Row], fresh: dict[tuple[str, str], list[Row]], keep_others: bool) -> list[Row]:
    """New rows replace old ones; in the order of kinds and names, so that the file is stable."""
    table: dict[tuple[str, str], list[Row]] = {}
    if keep_others:
        for r in known:
            table.setdefault((r.kind, r.label), []).append(r)
    table.update(fresh)
    return [r for key in sorted(table) for r in table[key]]


def _counts(found: list[Row]) -> str:
    statuses: dict[str, int] = {}
    for r in found:
        statuses[r.status] = statuses.get(r.status, 0) + 1
    return ", ".join(f"{n} {s}" for s, n in sorted(statuses.items()))
