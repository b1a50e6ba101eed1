"""``mtl verify``: check plugins against the laws, show a table, exit 1 when a promise is broken."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from mtlcore.errors import MtlError
from mtlcore.registry import Entry, registry
from mtlverify.law import DEPTH, KINDS

if TYPE_CHECKING:
    from mtlverify.campaign import Depth
    from mtlverify.runner import Result

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

STYLES = {"verified": "green", "refuted": "yellow", "not-applicable": "dim", "error": "bold red"}


@app.command()
def verify(
    names: Annotated[Optional[list[str]], typer.Argument(metavar="[NAME]...", help="Plugins; all if left out.")] = None,  # noqa: UP045
    kind: Annotated[Optional[str], typer.Option(help="aggregator, detector or teleport.")] = None,  # noqa: UP045
    max_examples: Annotated[int, typer.Option(min=1, help="Inputs tried per law.")] = DEPTH,
    seed: Annotated[int, typer.Option(help="Seed of the search.")] = 0,
    json_file: Annotated[Optional[Path], typer.Option("--json", help="Write the rows there; - is stdout.")] = None,  # noqa: UP045
    jobs: Annotated[Optional[int], typer.Option(min=1, help="Processes; default: one per core.")] = None,  # noqa: UP045
    hunt: Annotated[float, typer.Option(min=0.0, help="Seconds of adversarial search per promised law.")] = 0.0,
    all_rows: Annotated[bool, typer.Option("--all", help="Show every row, not only promises and refutations.")] = False,
) -> None:
    """Check what methods promise, and what they do not: every law of their kind is searched for a counterexample.

    Exit code: 1 if a claimed or universal law is refuted or any law could not be checked (error), 2 on bad usage.
    """
    if kind is not None and kind not in KINDS:
        raise typer.BadParameter(f"{kind!r} is not one of {', '.join(KINDS)}", param_hint="--kind")
    from mtlverify.campaign import Depth, broken_row

    try:
        chosen, broken = _chosen(names or [], kind)
    except MtlError as error:
        typer.secho(f"mtl verify: {error}", fg="red", err=True)
        raise typer.Exit(2) from error
    to_stdout = str(json_file) == "-"
    if json_file is not None and not to_stdout:
        _open(json_file)
    results = [broken_row(entry, entry.problem or "broken") for entry in broken]
    results += _progress(chosen, Depth(max_examples, seed, hunt), jobs or _cores(), quiet=to_stdout)
    if json_file is not None:
        text = json.dumps([r.to_json() for r in results], indent=2) + "\n"
        if to_stdout:
            typer.echo(text, nl=False)
        else:
            json_file.write_text(text, encoding="utf-8")
    if not to_stdout:
        _show(results, all_rows)
    if any(r.failed for r in results):
        raise typer.Exit(1)


def _open(file: Path) -> None:
    """Make sure that it can be written to before anything is checked for its sake; what is in it stays."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.open("a").close()
    except OSError as error:
        problem = f"{str(file)!r} cannot be written to: {error.strerror}"
        raise typer.BadParameter(problem, param_hint="--json") from error


def _chosen(names: list[str], kind: str | None) -> tuple[list[Entry], list[Entry]]:
    """The sound entries to check, and, when everything is to be checked, the broken ones."""
    from mtlverify.runner import kind_of_name

    if names:
        return [registry().find(kind or kind_of_name(name), name) for name in dict.fromkeys(names)], []
    entries = [e for k in ([kind] if kind else KINDS) for e in registry().entries(k)]
    return [e for e in entries if e.status == "ok"], [e for e in entries if e.status != "ok"] + registry().problems()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _progress(chosen: list[Entry], depth: Depth, jobs: int, quiet: bool) -> list[Result]:
    """The results in the order of ``chosen``, whatever the number of processes, under a progress bar on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from mtlverify.campaign import campaign

    columns = (TextColumn("{task.description:36}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet) as bar:
        task = bar.add_task("", total=len(chosen))
        found: list[Result] = []
        for entry, results in campaign(chosen, depth, jobs=jobs):
            found += results
            bar.update(task, advance=1, description=f"{entry.kind} {entry.name}")
    return found


def _show(results: list[Result], all_rows: bool) -> None:
    """One line per plugin and law worth reading, the counts, and every broken promise in full."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("plugin", "law", "claimed", "status", "examples", "worst margin", ""):
        number = column in ("examples", "worst margin")
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    last = None
    for group in [[r] for r in results] if all_rows else _alike(results):
        r = group[0]
        if not (all_rows or r.claimed or r.status == "refuted" or r.failed):
            continue
        table.add_row(
            r.name if (r.kind, r.name) != last else "",
            r.law if len(group) == 1 else f"{r.law} and {len(group) - 1} more",
            "yes" if r.claimed else "",
            Text(r.status, style="bold red" if r.failed else STYLES[r.status]),
            str(r.examples),
            "" if r.worst_margin is None else f"{r.worst_margin:.2g}",
            Text(r.detail.partition(":")[0] if r.status == "refuted" else "", style="dim"),
        )
        last = (r.kind, r.name)
    console = Console() if sys.stdout.isatty() else Console(width=110)  # a file or a pipe has no width of its own
    console.print(table)
    counts = ", ".join(f"{sum(r.status == s for r in results)} {s}" for s in STYLES)
    console.print(f"\n{sum(r.examples for r in results):,} examples tried: {counts}.")
    broken = [r for r in results if r.failed]
    for group in _alike(broken):
        console.print(Text("\n" + _in_full(group), style="red"))
    if broken:
        promises = "1 promise" if len(broken) == 1 else f"{len(broken)} promises"
        console.print(Text(f"\n{promises} broken or unchecked.", style="bold red"))
    else:
        console.print(Text("Every promise kept.", style="bold green"))


def _alike(results: list[Result]) -> list[list[Result]]:
    """The results one by one, but errors that say the same of a plugin, up to numbers, together: there is one cause."""
    groups: dict[Any, list[Result]] = {}
    for i, r in enumerate(results):
        groups.setdefault((r.kind, r.name, re.sub(r"\d+", "", r.detail)) if r.status == "error" else i, []).append(r)
    return list(groups.values())


def _in_full(group: list[Result]) -> str:
    """Who failed at what, why, what the law says, and on which input."""
    r = group[0]
    others = f" (and {', '.join(o.law for o in group[1:])})" if len(group) > 1 else ""
    lines = [f"{r.kind} {r.name} ({r.distribution}), {r.law}{others}: {r.status}. {r.detail}".rstrip()]
    if r.status == "refuted":
        lines += [f"  law: {statement}" for statement in [_statement(r)] if statement]
        lines += [f"  here: {r.reason}"] if r.reason else []
    if r.counterexample is not None:
        lines.append(f"  {_input(r.counterexample)}")
    return "\n".join(lines)


def _statement(result: Result) -> str:
    from mtlverify.runner import laws

    return next((law.statement for law in laws(result.kind) if law.id == result.law), "")


def _input(counterexample: dict[str, Any]) -> str:
    """A counterexample in one line."""
    example = counterexample["example"]
    shown = [f"{k}={v}" for k, v in example.items() if k not in ("shape", "family") and v not in ({}, None)]
    return "counterexample: " + ", ".join(shown)
