"""``mtl verify``: check what methods promise, law by law. Exit code 1 when a promise is broken."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from mtlcore.errors import ConfigurationError, MtlError, did_you_mean
from mtlcore.hosting import (
    Entry,
    as_json,
    check_writable,
    complete_laws,
    complete_names,
    own_stdout,
    plain,
    registry,
    to_stdout,
)
from mtlverify.display import show
from mtlverify.law import DEPTH, KINDS

if TYPE_CHECKING:
    from mtlverify.runner import Result

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

PROBLEM = "problem"
"""A kind whose plugins state no claims: their own declarations are attacked instead."""


@app.command()
def verify(
    names: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(metavar="[NAME]...", help="Plugins; all if left out.", autocompletion=complete_names),
    ] = None,
    kind: Annotated[Optional[str], typer.Option(help=f"{', '.join(KINDS)} or {PROBLEM}.")] = None,  # noqa: UP045
    law: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Only this law (may be repeated).", autocompletion=complete_laws),
    ] = None,
    claimed: Annotated[bool, typer.Option("--claimed", help="Only laws that are claimed or universal.")] = False,
    option: Annotated[Optional[list[str]], typer.Option(metavar="K=V", help="A hyper-parameter, as JSON.")] = None,  # noqa: UP045
    max_examples: Annotated[int, typer.Option(min=1, help="Inputs tried per law.")] = DEPTH,
    hunt: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="Adversarial search per claimed law.")] = 0.0,
    replay: Annotated[Optional[Path], typer.Option(help="Measure the counterexamples in a file again.")] = None,  # noqa: UP045
    seed: Annotated[int, typer.Option(help="Seed of the search.")] = 0,
    json_file: Annotated[Optional[Path], typer.Option("--json", help="Write the rows there; - is stdout.")] = None,  # noqa: UP045
    jobs: Annotated[Optional[int], typer.Option(min=1, help="Processes; default: one per core.")] = None,  # noqa: UP045
    timeout: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0.001, metavar="S", help="Seconds for one law of one plugin; then it is an error."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Search again where a certificate is still valid.")] = False,
    all_rows: Annotated[bool, typer.Option("--all", help="Show every row, not only promises and refutations.")] = False,
) -> None:
    """Check what methods promise, and what they do not: every law of their kind is searched for a counterexample.

    With --kind problem, the declarations of synthetic problems are attacked.

    Exit code: 1 if a claimed or universal law is refuted or any law could not be checked (error), 2 on bad usage.
    """
    from mtlverify import processes

    _check_kind(kind)
    quiet = to_stdout(json_file)
    with own_stdout() as stdout:
        if jobs != 1 and replay is None and kind != PROBLEM:
            processes.warm_up()  # here, because the server keeps the standard output that it finds
        from mtlverify.campaign import Depth  # with torch

        try:
            check_writable(json_file)
            options = _options(option or [])
            if replay is not None:
                results = list(_replayed(replay, names or [], kind, options))
            elif kind == PROBLEM:
                results = list(_problems(names or [], options, max_examples, seed))
            else:
                chosen, broken = _chosen(names or [], kind, options)
                results = [_broken_row(entry, entry.problem or "broken") for entry in broken]
                depth = Depth(max_examples, seed, hunt, timeout)
                results += _campaign(chosen, depth, law or None, claimed, options, jobs or _cores(), fresh, quiet)
        except MtlError as error:
            typer.secho(f"mtl verify: {plain(error)}", fg="red", err=True)
            raise typer.Exit(2) from error
        if quiet:
            stdout.write(as_json([r.to_json() for r in results]))
    if json_file is not None and not quiet:
        json_file.write_text(as_json([r.to_json() for r in results]), encoding="utf-8")
    if not quiet:
        show(results, all_rows or replay is not None or kind == PROBLEM, asked_for=bool(law))
    if any(r.failed for r in results):
        raise typer.Exit(1)


def _check_kind(kind: str | None) -> None:
    known = (*KINDS, PROBLEM)
    if kind is not None and kind not in known:
        hint = did_you_mean(kind, known, "Kinds")
        raise typer.BadParameter(f"there is no kind {kind!r}. {hint}", param_hint="--kind")


def _options(given: list[str]) -> dict[str, Any]:
    """``c=1`` as {"c": 1}: values are JSON, and what is no JSON is a string."""
    options: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigurationError(f"--option {text!r} is not of the form NAME=VALUE, as in --option c=0.4.")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = {"True": True, "False": False, "None": None}.get(value, value)
    return options


def _chosen(names: list[str], kind: str | None, options: dict[str, Any]) -> tuple[list[Entry], list[Entry]]:
    """The sound entries to check, and, when everything is to be checked, the broken ones."""
    from mtlverify.runner import kind_of_name

    if names:
        found = [registry().find(kind or kind_of_name(name), name) for name in dict.fromkeys(names)]
        for entry in found if options else ():
            try:
                registry().create(entry.kind, entry.name, **options)
            except ConfigurationError:
                raise  # bad usage; all else is a row
            except MtlError:
                continue
        return found, []
    if options:
        raise ConfigurationError("--option needs a NAME: methods have different hyper-parameters.")
    entries = [e for k in ([kind] if kind else KINDS) for e in registry().entries(k)]
    return [e for e in entries if e.status == "ok"], [e for e in entries if e.status != "ok"] + registry().problems()


def _broken_row(entry: Entry, problem: str) -> Result:
    from mtlverify.campaign import broken_row

    return broken_row(entry, problem)


def _replayed(file: Path, names: list[str], kind: str | None, options: dict[str, Any]) -> Iterator[Result]:
    """The stored counterexamples of a file, measured on the plugins named, or on those they are about.

    The file is one that ``--json`` wrote, one row of it, or one counterexample.
    """
    from mtlverify.runner import kind_of_name, replay

    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"--replay {str(file)!r} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ConfigurationError(f"--replay {str(file)!r} cannot be read, it is not JSON: {error}.") from error
    rows = rows if isinstance(rows, list) else [rows]
    found = 0
    for row in rows:
        about = row if isinstance(row, dict) else {}
        stored = about.get("counterexample") or (about if {"law", "example"} <= about.keys() else None)
        mine = names or ([about["name"]] if isinstance(about.get("name"), str) else [])
        if stored is None or (names and about.get("name", names[0]) not in names):
            continue
        if not mine:
            raise ConfigurationError(f"{str(file)!r} does not say which plugin it is about: give a NAME.")
        for name in mine:
            found += 1
            kind_of = kind or about.get("kind") or kind_of_name(name)
            yield replay(registry().create(kind_of, name, **options), stored)
    if not found:
        raise ConfigurationError(f"{str(file)!r} holds no counterexample{f' of {names[0]}' if names else ''}.")


def _problems(names: list[str], options: dict[str, Any], points: int, seed: int) -> Iterator[Result]:
    """Every declaration of synthetic problems, attacked; a row each."""
    from mtlcore.hosting import blame
    from mtlverify.problems import check_declarations
    from mtlverify.runner import Result

    entries = [registry().find(PROBLEM, n) for n in dict.fromkeys(names)] or [
        e for e in registry().entries(PROBLEM) if e.status == "ok"
    ]
    for entry in entries:
        try:
            problem = registry().create(PROBLEM, entry.name, **options)
            for d in check_declarations(problem, points=points, seed=seed):
                status = "verified" if d.holds else "refuted"
                yield Result(
                    PROBLEM, entry.name, entry.distribution, d.name, True, status, d.points, d.margin, None, d.detail
                )
        except ConfigurationError:
            raise
        except BaseException as error:
            yield _broken_row(entry, blame(error))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _campaign(
    chosen: list[Entry],
    depth: Any,
    laws: list[str] | None,
    claimed: bool,
    options: dict[str, Any],
    jobs: int,
    fresh: bool,
    quiet: bool,
) -> list[Result]:
    """All results, under a progress bar on standard error that counts laws."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from mtlverify import campaign

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet) as bar:
        task = bar.add_task("", total=None)

        class Bar(campaign.Progress):
            def begin(self, laws: int) -> None:
                bar.update(task, total=laws)

            def done(self, label: str) -> None:
                bar.update(task, advance=1, description=label)

            def say(self, text: str) -> None:
                way_out = "" if depth.timeout else "; --timeout S would go on without it"
                bar.console.print(escape(f"mtl: {text}{way_out}"), highlight=False, soft_wrap=True)

        found = campaign.campaign(
            chosen, depth, laws=laws, claimed=claimed, options=options, jobs=jobs, fresh=fresh, progress=Bar()
        )
        return [result for _, results in found for result in results]
