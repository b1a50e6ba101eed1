"""`mtl bench`: list, show, run, report, export, compact, verdicts, repeat."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from mtlcore import hosting
from mtlcore.errors import ConfigurationError, MtlError

if TYPE_CHECKING:
    from mtlbench.clusters import Cluster

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
    with hosting.own_stdout() as stdout:
        found = _everything()
        if as_json:
            stdout.write(hosting.as_json(found))
    if as_json:
        return
    out = hosting.console()
    for title, rows in found.items():
        made = hosting.table(*(rows[0] if rows else ()), whole=("name",))
        for row in rows:
            made.add_row(*map(hosting.cell, row.values()))
        out.print(hosting.cell(title.capitalize(), "bold"))
        out.print(made)
        out.print()


def _everything() -> dict[str, list[dict[str, str]]]:
    """Rows of the suites, the tasks and the methods."""
    from mtlbench.costs import costs
    from mtlbench.fronts import plan
    from mtlbench.suite import read, shipped
    from mtlcore.hosting import registry

    suites = [{"name": n, "title": read(n).title, "costs": costs(read(n))} for n in shipped()]
    suites.append({"name": plan.NAME, "title": plan.TITLE, "costs": plan.costs()})
    tasks = []
    for entry in registry().entries("task"):
        what, data = _about_task(entry.name)
        tasks.append({"name": entry.name, "title": what, "data": data, "distribution": entry.distribution})
    methods = [
        {"name": e.name, "kind": kind, "distribution": e.distribution, "status": e.status}
        for kind in ("aggregator", "detector", "teleport")
        for e in registry().entries(kind)
    ]
    return {"suites": suites, "tasks": tasks, "methods": methods}


def _about_task(name: str) -> tuple[str, str]:
    """Its title, and where its data are or come from."""
    from mtlbench import jobs
    from mtlbench.data import sources
    from mtlbench.suite import TaskEntry

    try:
        task = jobs.make_task(TaskEntry(name=name))
        if task.sources:
            return task.title, "; ".join(map(sources.status, task.sources))
    except MtlError as error:
        return "(broken)", str(error)
    if hasattr(task, "root"):
        return task.title, "from a folder of yours: option root, or in $MTLCORE_DATA"
    return task.title, "needs none: the task makes them"


@app.command()
def show(
    suite: Annotated[str, typer.Argument(help="A shipped suite (see `mtl bench list`) or the path of a .toml file.")],
) -> None:
    """Print a suite as TOML, to start one of your own from."""
    from mtlbench.fronts import plan
    from mtlbench.suite import read, text

    if suite == plan.NAME:
        raise ConfigurationError(
            f"{suite!r} compares explorers and has no file to start from; `mtl bench run {suite}` takes --method, "
            "--task and --seeds."
        )
    read(suite)  # what is wrong with it is said before it is copied
    print(text(suite), end="")


@app.command()
def run(
    suite: Annotated[str, typer.Argument(help="A shipped suite (see `mtl bench list`) or the path of a .toml file.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the records. Default: bench-results/SUITE.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at the same time, one thread each.")] = 1,
    seeds: Annotated[int | None, typer.Option(min=1, help="Paired seeds. Default: what the suite says.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Only this method of the suite; may be repeated.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="Only this task of the suite; may be repeated.")] = None,
    device: Annotated[
        list[str] | None, typer.Option(help="Where to train: cpu, cuda, cuda:1, ...; several are used in turn.")
    ] = None,
    timeout: Annotated[float | None, typer.Option(min=0.001, help="Seconds after which a run is stopped.")] = None,
    dask: Annotated[
        str | None, typer.Option(help="Address of a Dask scheduler whose workers do the runs, e.g. tcp://host:8786.")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster that does the runs, e.g. host:6379, or auto.")
    ] = None,
    certify: Annotated[bool, typer.Option(help="Verify every method before training it.")] = True,
    allow_refuted: Annotated[
        bool,
        typer.Option("--allow-refuted", help="Train a method although its certificate is refuted or missing."),
    ] = False,
) -> None:
    """Train every method of a suite. Run it again to go on where it stopped.

    The suite `fronts` compares explorers, which make models for preferences, at equal total cost. Its runs are one
    after the other, on the processor, and ask for no certificate.

    Exit code: 1 if a run failed or a method was refused, 2 on bad usage, 130 if stopped by Ctrl-C.
    """
    from mtlbench import records, runner
    from mtlbench.fronts import plan
    from mtlbench.fronts import run as fronts
    from mtlbench.suite import read

    console = hosting.console()
    wanted: dict[str, Any] = {"methods": tuple(method or ()), "tasks": tuple(task or ()), "seeds": seeds}
    try:
        if suite == plan.NAME:
            strange = {
                "--jobs": jobs > 1,
                "--device": device not in (None, ["cpu"]),
                "--timeout": timeout,
                "--dask": dask,
                "--ray": ray,
            }
            _leave_out(suite, [option for option, given in strange.items() if given])
            folder = out or Path("bench-results") / suite
            summary = fronts.compare(folder, console=console, **wanted)
            report(folder)
        else:
            chosen = read(suite)
            folder = out or Path("bench-results") / chosen.name
            _of_suite(folder)
            summary = runner.run(
                chosen, folder, jobs=jobs, certify=certify, allow_refuted=allow_refuted, console=console, source=suite,
                devices=tuple(device or ("cpu",)), timeout=timeout, cluster=_cluster(dask, ray), **wanted,
            )  # fmt: skip
    except KeyboardInterrupt:
        console.print(
            f"[yellow]stopped[/]; what has finished is in {escape(str(folder))}. Run the same command again to go on."
        )
        raise typer.Exit(130) from None
    _conclude(summary, folder / records.RECORDS)


def _conclude(summary: Any, file: Path) -> None:
    """Say what a run did; exit with 1 where it did not do everything."""
    console = hosting.console()
    console.print(
        f"{summary.finished} runs finished, {summary.already} were there already, {len(summary.failed)} failed: "
        f"{escape(str(file))}"
    )
    for name in summary.refused:
        console.print(f"[red]refused[/] {escape(name)}: it is not certified (--allow-refuted trains it all the same)")
    for name in summary.failed:
        console.print(f"[red]failed[/] {escape(name)}; run again to retry")
    if not summary.ok:
        raise typer.Exit(1)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="The folder given to `mtl bench run --out`.")],
    as_json: Annotated[Path | None, typer.Option("--json", help="Also write the numbers as JSON.")] = None,
    html: Annotated[Path | None, typer.Option(help="Where to write the page. Default: FOLDER/report.html.")] = None,
    prefer: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Of fronts of two tasks: how much of the preference is the first task's."),
    ] = None,
) -> None:
    """One self-contained HTML page of what the records say.

    Of the suite `fronts`: FOLDER/report.md instead, and a figure for every pair of tasks, where one preference is
    marked.
    """
    from mtlbench.fronts import report as of_fronts
    from mtlbench.fronts.run import holds_fronts
    from mtlbench.report import page

    _something_in(folder)
    if holds_fronts(folder):
        _leave_out("the report of fronts", ["--html"] if html else [])
        made = of_fronts.write(folder, of_fronts.CHOSEN if prefer is None else prefer, as_json)
    else:
        _leave_out("the report of a suite", [] if prefer is None else ["--prefer"])
        made = [page.write(folder, html or folder / "report.html", as_json)]
    for path in made:
        hosting.console().print(f"report: {path}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="The folder given to `mtl bench run --out`.")],
    form: Annotated[str, typer.Option("--format", help="csv, markdown, latex or parquet.")] = "csv",
    out: Annotated[Path | None, typer.Option(help="Where to write. Default: FOLDER/export.")] = None,
) -> None:
    """Every table of the report as a file, and its figures as SVG and PDF."""
    from mtlbench.export import export as write

    _something_in(folder)
    _of_suite(folder)
    for path in write(folder, out or folder / "export", form):
        hosting.console().print(path, markup=False, highlight=False, soft_wrap=True)


@app.command()
def compact(
    folder: Annotated[Path, typer.Argument(help="The folder given to `mtl bench run --out`.")],
    out: Annotated[Path, typer.Option(help="Folder of the compact records.")],
) -> None:
    """Records small enough to keep: without curves and other details, numbers with seven digits.

    `mtl bench run` goes on from a copy of such a folder, and `mtl bench report` reads it.
    """
    from mtlbench.compact import compact as write

    _something_in(folder)
    _of_suite(folder)
    for path in write(folder, out):
        hosting.console().print(
            f"{path}: {path.stat().st_size / 1000:.0f} kB", markup=False, highlight=False, soft_wrap=True
        )


@app.command()
def verdicts(
    folder: Annotated[Path, typer.Argument(help="A folder of records, compact or not.")],
    out: Annotated[Path | None, typer.Option(help="Where to write the page. Default: the terminal.")] = None,
) -> None:
    """A page in Markdown: is any method better than tuned fixed weights, and do the three systems' claims hold?"""
    from mtlbench.records import writing
    from mtlbench.verdicts.page import page

    _something_in(folder)
    _of_suite(folder)
    text = page(folder, folder.as_posix())
    if out is None:
        print(text, end="")
        return
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    hosting.console().print(f"verdicts: {out}", markup=False)


@app.command()
def repeat(
    folder: Annotated[Path, typer.Argument(help="A folder of records, compact or not.")],
    task: Annotated[str, typer.Option(help="The task of the run.")],
    method: Annotated[str, typer.Option(help="Its method; single-task for the baseline.")],
    seed: Annotated[int, typer.Option(help="Its seed.")] = 0,
) -> None:
    """Train one recorded run once more and compare its numbers with the recorded ones; nothing is written.

    Exit code: 1 if a number differs in the seven digits that compact records keep.
    """
    from mtlbench.repeat import repeat as again

    console = hosting.console()
    _something_in(folder)
    _of_suite(folder)
    record, rows = again(folder, task, method, seed)
    table = hosting.table("number", "recorded", "again", "")
    for row in rows:
        values = ("–" if v is None else f"{v:.7g}" for v in (row.recorded, row.again))
        table.add_row(escape(row.name), *values, "" if row.equal else "[red]differs[/]")
    console.print(table)
    different = sum(not row.equal for row in rows)
    console.print(f"{len(rows) - different} of {len(rows)} numbers are equal, after {record.seconds or 0.0:.1f} s.")
    if different:
        raise typer.Exit(1)


def _of_suite(folder: Path) -> None:
    from mtlbench.fronts.run import holds_fronts

    if holds_fronts(folder):
        raise ConfigurationError(
            f"the records in {str(folder)!r} are of fronts: `mtl bench report {folder}` shows them. A suite needs a "
            "folder of its own."
        )


def _cluster(dask: str | None, ray: str | None) -> Cluster | None:
    from mtlbench.clusters.dask import Dask
    from mtlbench.clusters.ray import Ray

    if dask and ray:
        raise ConfigurationError("--dask and --ray: the runs go to one cluster. Leave one of them out.")
    return Dask(dask) if dask else Ray(ray) if ray else None


def _leave_out(what: str, options: list[str]) -> None:
    if options:
        raise ConfigurationError(f"{what} has no use for {', '.join(options)}: leave it out.")


def _something_in(folder: Path) -> None:
    from mtlbench import records

    if folder.is_dir() and not any((folder / name).is_file() for name in (records.RECORDS, records.MANIFEST)):
        raise ConfigurationError(
            f"there is nothing to report in {str(folder)!r}: it has neither {records.RECORDS} nor {records.MANIFEST}. "
            f"Run `mtl bench run SUITE --out {folder}` first."
        )


@app.command("fronts", hidden=True)
def fronts_(
    out: Annotated[Path, typer.Option(help="Folder of the records and of the report.")] = Path("bench-results/fronts"),
    seeds: Annotated[int | None, typer.Option(min=1, help="Paired seeds. Default: 5.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Only this explorer; may be repeated.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="Only this task or problem; may be repeated.")] = None,
    report_only: Annotated[bool, typer.Option("--report", help="Train nothing: `mtl bench report OUT`.")] = False,
) -> None:
    """Short for `mtl bench run fronts` and `mtl bench report OUT`."""
    if report_only:
        report(out)
    else:
        run("fronts", out=out, seeds=seeds, method=method, task=task)
