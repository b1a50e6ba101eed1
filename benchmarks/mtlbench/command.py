"""``mtl bench``: compare methods on real data, with paired seeds, equal budgets and raw records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mtlcore.errors import ConfigurationError, MtlError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Compare methods on real data: paired seeds, equal budgets, raw records.",
)


@app.command("list")
def list_(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Suites, tasks (and where their data are), and methods."""
    from mtlbench import jobs
    from mtlbench.data import sources
    from mtlbench.suite import TaskEntry, read, shipped
    from mtlcore.registry import registry

    suites = [{"name": n, "title": read(n).title} for n in shipped()]
    tasks = []
    for entry in registry().entries("task"):
        try:
            task = jobs.make_task(TaskEntry(name=entry.name))
            what, data = task.title, "; ".join(map(sources.status, task.sources))
        except MtlError as error:
            what, data = "(broken)", str(error)
        tasks.append({"name": entry.name, "title": what, "data": data, "distribution": entry.distribution})
    methods = [
        {"name": e.name, "kind": kind, "distribution": e.distribution, "status": e.status}
        for kind in ("aggregator", "detector", "teleport")
        for e in registry().entries(kind)
    ]
    if as_json:
        print(json.dumps({"suites": suites, "tasks": tasks, "methods": methods}, indent=1))
        return
    console = Console()
    for title, rows in (("Suites", suites), ("Tasks", tasks), ("Methods", methods)):
        table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
        for column in rows[0] if rows else []:
            table.add_column(column)
        for row in rows:
            table.add_row(*map(escape, row.values()))
        console.print(table)
        console.print()


@app.command()
def run(
    suite: Annotated[str, typer.Argument(help="A shipped suite (see `mtl bench list`) or the path of a .toml file.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the records. Default: bench-results/SUITE.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at the same time, one thread each.")] = 1,
    seeds: Annotated[int | None, typer.Option(min=1, help="Paired seeds. Default: what the suite says.")] = None,
    certify: Annotated[bool, typer.Option(help="Verify every method before training it.")] = True,
    allow_refuted: Annotated[
        bool, typer.Option("--allow-refuted", help="Train a method although a law it claims is refuted.")
    ] = False,
) -> None:
    """Train every method of a suite. Run it again to go on where it stopped.

    Exit code: 1 if a run failed or a method was refused, 2 on bad usage, 130 if stopped by Ctrl-C.
    """
    from mtlbench import records, runner
    from mtlbench.suite import read

    console = Console()
    chosen = read(suite)
    folder = out or Path("bench-results") / chosen.name
    try:
        summary = runner.run(
            chosen, folder, jobs=jobs, seeds=seeds, certify=certify, allow_refuted=allow_refuted, console=console,
            source=suite,
        )  # fmt: skip
    except KeyboardInterrupt:
        console.print(
            f"[yellow]stopped[/]; what has finished is in {escape(str(folder))}. Run the same command again to go on."
        )
        raise typer.Exit(130) from None
    console.print(
        f"{summary.finished} runs finished, {summary.already} were there already, {len(summary.failed)} failed: "
        f"{escape(str(folder / records.RECORDS))}"
    )
    for name in summary.refused:
        console.print(
            f"[red]refused[/] {escape(name)}: a law it claims is refuted (--allow-refuted trains it all the same)"
        )
    for name in summary.failed:
        console.print(f"[red]failed[/] {escape(name)}; run again to retry")
    if not summary.ok:
        raise typer.Exit(1)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="The folder given to `mtl bench run --out`.")],
    as_json: Annotated[Path | None, typer.Option("--json", help="Also write the numbers as JSON.")] = None,
    html: Annotated[Path | None, typer.Option(help="Where to write the page. Default: FOLDER/report.html.")] = None,
) -> None:
    """One self-contained HTML page of what the records say."""
    from mtlbench import records, runner
    from mtlbench.report.page import write

    if folder.is_dir() and not any((folder / name).is_file() for name in (records.RECORDS, runner.MANIFEST)):
        raise ConfigurationError(
            f"there is nothing to report in {str(folder)!r}: it has neither {records.RECORDS} nor {runner.MANIFEST}. "
            f"Run `mtl bench run SUITE --out {folder}` first."
        )
    page = write(folder, html or folder / "report.html", as_json)
    Console().print(f"report: {page}", markup=False)
