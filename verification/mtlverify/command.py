"""``mtl verify``: check plugins against the laws, show a table, exit 1 when a promise is broken."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from mtlcore.errors import MtlError, UnknownPluginError
from mtlcore.registry import Entry, registry

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

STYLES = {"verified": "green", "refuted": "yellow", "not-applicable": "dim", "error": "bold red"}


@app.command()
def verify(
    names: Annotated[Optional[list[str]], typer.Argument(metavar="[NAME]...", help="Plugins; all if left out.")] = None,  # noqa: UP045
    kind: Annotated[Optional[str], typer.Option(help="aggregator, detector or teleport.")] = None,  # noqa: UP045
    max_examples: Annotated[int, typer.Option(min=1, help="Inputs tried per law.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the search.")] = 0,
    json_file: Annotated[
        Optional[Path], typer.Option("--json", help="Write the rows as JSON ('-': to standard output).")
    ] = None,  # noqa: UP045
    all_rows: Annotated[
        bool, typer.Option("--all", help="Also show laws that hold unclaimed or do not apply.")
    ] = False,
) -> None:
    """Check what methods promise, and what they do not: every law of their kind is searched for a counterexample.

    Exit code 1 if a claimed (or universal) law is refuted or could not be checked, 2 on bad usage, 0 otherwise.
    """
    from mtlverify.runner import KINDS, Result, kind_of_name

    if kind is not None and kind not in KINDS:
        raise typer.BadParameter(f"{kind!r} is not one of {', '.join(KINDS)}", param_hint="--kind")
    try:
        chosen = [registry().find(kind or kind_of_name(name), name) for name in names or []]
        broken: list[Entry] = []
        if not names:
            entries = [e for k in ([kind] if kind else KINDS) for e in registry().entries(k)]
            chosen = [e for e in entries if e.status == "ok"]
            broken = [e for e in entries if e.status != "ok"] + registry().problems()
    except (UnknownPluginError, MtlError) as error:
        typer.secho(f"mtl verify: {error}", fg="red", err=True)
        raise typer.Exit(2) from error
    results = [_broken_row(e.kind, e, e.problem or "broken") for e in broken]
    results += _progress(chosen, max_examples, seed, quiet=str(json_file) == "-")
    rows = [r.to_json() for r in results]
    if json_file is not None:
        text = json.dumps(rows, indent=2) + "\n"
        if str(json_file) == "-":
            typer.echo(text, nl=False)
        else:
            json_file.parent.mkdir(parents=True, exist_ok=True)
            json_file.write_text(text, encoding="utf-8")
    if str(json_file) != "-":
        _show(results, all_rows)
    failed: list[Result] = [r for r in results if r.failed]
    if failed:
        raise typer.Exit(1)


def _broken_row(kind: str, entry: Entry, problem: str) -> Any:
    from mtlverify.runner import Result

    return Result(kind, entry.name, entry.provenance, "loads", True, "error", detail=problem)


def _progress(chosen: list[Entry], max_examples: int, seed: int, quiet: bool) -> list[Any]:
    """Check one plugin after the other under a progress bar on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from mtlverify.runner import laws

    results: list[Any] = []
    columns = (TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet) as bar:
        task = bar.add_task("", total=sum(len(laws(e.kind)) for e in chosen))
        for entry in chosen:
            for result in _checked(entry, max_examples, seed):
                results.append(result)
                bar.update(task, advance=1, description=f"{result.name}: {result.law}")
    return results


def _checked(entry: Entry, max_examples: int, seed: int) -> Iterator[Any]:
    """The results of one plugin; one that cannot be imported or made is one row, and the others go on."""
    from mtlverify.runner import check

    try:
        plugin = registry().create(entry.kind, entry.name)
    except MtlError as error:
        yield _broken_row(entry.kind, entry, str(error))
        return
    yield from check(plugin, max_examples=max_examples, seed=seed)


def _show(results: list[Any], all_rows: bool) -> None:
    """One line per plugin and law worth reading, then the counts."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, justify in (
        ("plugin", "left"), ("law", "left"), ("claimed", "center"), ("status", "left"),
        ("examples", "right"), ("worst margin", "right"), ("detail", "left"),
    ):  # fmt: skip
        table.add_column(column, justify=justify, no_wrap=column not in ("detail",))  # type: ignore[arg-type]
    last = None
    for r in results:
        if not (all_rows or r.claimed or r.status == "refuted" or r.failed):
            continue
        style = "bold red" if r.failed else STYLES[r.status]
        margin = "" if r.worst_margin is None else f"{r.worst_margin:.2g}"
        name = r.name if (r.kind, r.name) != last else ""
        detail = Text(r.detail if len(r.detail) < 160 else r.detail[:157] + "...", style="red" if r.failed else "dim")
        table.add_row(
            name, r.law, "yes" if r.claimed else "", Text(r.status, style=style), str(r.examples), margin, detail
        )
        last = (r.kind, r.name)
        if r.failed and r.counterexample is not None:
            table.add_row("", "", "", "", "", "", Text(_input(r.counterexample), style="red"))
    console = Console()
    console.print(table)
    counts = ", ".join(f"{sum(r.status == s for r in results)} {s}" for s in STYLES)
    tried, failed = sum(r.examples for r in results), sum(r.failed for r in results)
    verdict = (
        Text(f"{failed} promises broken or unchecked", "bold red")
        if failed
        else Text("every promise kept", "bold green")
    )
    console.print(Text(f"\n{tried:,} examples tried: {counts}. "), verdict, sep="", end="\n")


def _input(counterexample: dict[str, Any]) -> str:
    """A counterexample in one line."""
    example = counterexample["example"]
    shown = [f"{k}={v}" for k, v in example.items() if k in ("jacobian", "dtype", "extra") and v not in ({}, None)]
    return "counterexample: " + ", ".join(shown)
