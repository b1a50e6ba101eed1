"""The ``mtl`` command. The wings add their subcommands through ``mtlcore_register_commands``.

Importing this module must stay cheap: `mtl list` answers in well under a second because neither torch nor any
plugin's code is imported for it, only its registration module.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from typer.core import TyperGroup

from mtlcore import __version__
from mtlcore.errors import MtlError, PluginError, PluginWarning
from mtlcore.hookspecs import KINDS
from mtlcore.registry import Entry, registry


class _Commands(TyperGroup):
    """Own commands first, then those of plugins, imported only when they are called."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of all commands."""
        plugged = [e.name for e in registry().entries("command") if e.status == "ok"]
        return [*super().list_commands(ctx), *plugged]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name; a plugin's is imported now."""
        own = super().get_command(ctx, cmd_name)
        if own is not None or cmd_name not in [e.name for e in registry().entries("command")]:
            return own
        try:
            plugged = registry().load("command", cmd_name)
        except PluginError as error:
            # `mtl --help` asks every command for its summary; a broken one must not hide the others.
            return _broken_command(cmd_name, str(error))
        if isinstance(plugged, typer.Typer):
            plugged = typer.main.get_command(plugged)
        plugged.name = cmd_name
        return plugged


def _broken_command(name: str, problem: str) -> Any:
    app = typer.Typer()

    @app.command(name, help=f"(broken) {problem}")
    def broken() -> None:
        raise PluginError(problem)

    return typer.main.get_command(app)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Multi-task-learning optimisation: every method a plugin, every claim machine-checked.",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mtlcore {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command("list")
def list_plugins(
    kind: Annotated[Optional[str], typer.Option(help=f"Only this kind: {', '.join(KINDS)}.")] = None,  # noqa: UP045
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable, on standard output.")] = False,
    load: Annotated[bool, typer.Option("--load", help="Really import every plugin (slower, catches more).")] = False,
) -> None:
    """Every plugin: name, kind, distribution, version, status, and whether its promises are known to hold."""
    if kind is not None and kind not in KINDS:
        raise typer.BadParameter(f"{kind!r} is not one of {', '.join(KINDS)}", param_hint="--kind")
    entries = _entries(kind, load)
    certificates = [_certificate(e) for e in entries]
    if as_json:
        rows = [_row(e, certificate) for e, certificate in zip(entries, certificates)]
        typer.echo(json.dumps(rows, indent=2))
        return
    _show(entries, certificates)


def _entries(kind: str | None, load: bool) -> list[Entry]:
    found: list[Entry] = []
    for one in [kind] if kind else KINDS:
        if load:
            for entry in registry().entries(one):
                if entry.status == "ok":
                    try:
                        registry().load(one, entry.name)
                    except PluginError:
                        continue  # its entry now says "broken", with the cause
        found += registry().entries(one)
    return found + registry().problems()


def _certificate(entry: Entry) -> dict[str, Any] | None:
    """What is known already of its promises, at its default hyper-parameters; nothing is checked or imported for it."""
    if entry.status != "ok":
        return None
    try:
        known = registry().ask("mtlcore_certified", kind=entry.kind, name=entry.name, options={})
        return None if known is None else _summed_up(known)
    except Exception as error:  # whoever answers badly must not hide the list
        warnings.warn(f"mtlcore_certified: {type(error).__name__}: {error}", PluginWarning, stacklevel=2)
        return None


def _summed_up(known: dict[str, Any]) -> dict[str, Any]:
    rows = known["rows"]
    return {
        "passed": bool(known["passed"]),
        "summary": str(known["summary"]),
        "date": str(known["date"]),
        "kept": [r["law"] for r in rows if r["claimed"] and r["status"] == "verified"],
        "broken": [r["law"] for r in rows if r["status"] == "error" or (r["claimed"] and r["status"] == "refuted")],
    }


def _in_short(certificate: dict[str, Any]) -> str:
    kept, broken, date = (certificate[key] for key in ("kept", "broken", "date"))
    if certificate["passed"]:
        return f"certified: {len(kept)} laws, {date}"
    return f"broken: {', '.join(broken)} ({len(broken)} of {len(kept) + len(broken)} laws), {date}"


def _row(entry: Entry, certificate: dict[str, Any] | None) -> dict[str, Any]:
    fields = ("kind", "name", "distribution", "version", "status", "problem")
    row = {k: v for k, v in dataclasses.asdict(dataclasses.replace(entry, target=None)).items() if k in fields}
    return {**row, "certificate": certificate}


def _show(entries: list[Entry], certificates: list[dict[str, Any] | None]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # A file or a pipe has no width of its own, and who searches it wants one line per plugin.
    console = Console() if sys.stdout.isatty() else Console(width=1000)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("kind", "name", "distribution", "version", "status"):
        table.add_column(column, no_wrap=True)
    table.add_column("promises", overflow="fold")
    last = None
    for e, certificate in zip(entries, certificates):
        status = Text(e.status, style="green" if e.status == "ok" else "bold red")
        promises = Text("-", style="dim")
        if certificate is not None:
            promises = Text(_in_short(certificate), style="green" if certificate["passed"] else "bold red")
        table.add_row(e.kind if e.kind != last else "", e.name, e.distribution, e.version, status, promises)
        last = e.kind
    console.print(table)
    broken = [e for e in entries if e.status != "ok"]
    if broken:
        console.print(f"\n[bold red]{len(broken)} broken[/], set aside; everything else works without them:")
    for e in broken:
        console.print(Text(f"  {e.kind} {e.name!r} ({e.provenance}): {e.problem}"), soft_wrap=True)


@app.command("new-plugin")
def new_plugin(
    name: Annotated[str, typer.Argument(help="Lower-case kebab name of the method, e.g. my-method.")],
    kind: Annotated[str, typer.Option(help="aggregator, detector or teleport.")] = "aggregator",
    directory: Annotated[Path, typer.Option("--in", help="Where to create the package's folder.")] = Path(),
) -> None:
    """A package that installs, registers and passes its tests."""
    from mtlcore.scaffold import create_package

    folder = create_package(name, kind, directory)
    typer.echo(f"Created {folder}. Next:\n  pip install -e {folder}\n  mtl verify {name}\n  pytest {folder}")


def _warn_in_one_line(message: Warning | str, category: type[Warning], *place: Any) -> None:
    if issubclass(category, PluginWarning):
        typer.secho(f"mtl: warning: {message}", fg="yellow", err=True)
    else:
        _show_warning(message, category, *place)


_show_warning: Any = warnings.showwarning


def main() -> None:
    """Entry point: errors made on purpose are one line and exit code 2, all others are tracebacks."""
    warnings.showwarning = _warn_in_one_line  # type: ignore[assignment]  # same call, looser annotations
    try:
        app()
    except MtlError as error:
        typer.secho(f"mtl: {error}", fg="red", err=True)
        sys.exit(2)
