"""The ``mtl`` command. The wings add their subcommands through ``mtlcore_register_commands``.

Importing this module must stay cheap: `mtl list` answers in well under a second because neither torch nor any
plugin's code is imported for it, only its registration module.
"""

from __future__ import annotations

import gc
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from typer.core import TyperGroup

from mtlcore import __version__, output, patience
from mtlcore.discovery import BUILT_IN, missing_extra
from mtlcore.errors import MissingExtraError, MtlError, PluginError, PluginWarning, did_you_mean
from mtlcore.hookspecs import KINDS
from mtlcore.registry import Entry, registry
from mtlcore.safety import blame, plain, shown


class _Commands(TyperGroup):
    """Own commands first, then those of plugins, imported only when they are called."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of all commands."""
        with output.own_stdout():
            plugged = [e.name for e in registry().entries("command") if e.status == "ok"]
        return [*super().list_commands(ctx), *plugged]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name; a plugin's is imported now."""
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        with output.own_stdout():
            entry = next((e for e in registry().entries("command") if e.name == cmd_name), None)
            if entry is None:
                return None
            return _summary(entry) if self._listing else _plugged(entry)

    _listing = False
    """`mtl --help` needs one line of each command, and imports none for it."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """As typer does it."""
        self._listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._listing = False

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As click does it, with the nearest names where there is none."""
        name = str(args[0])
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            hint = did_you_mean(name, self.list_commands(ctx), "Commands")
            ctx.fail(f"No such command {plain(name)!r}. {hint}")
        return super().resolve_command(ctx, args)


def _summary(entry: Entry) -> Any:
    from mtlcore.glance import description

    text = f"(broken) {entry.problem}" if entry.status != "ok" else description(entry)
    return _command(entry.name, text, lambda: None)


def _command(name: str, text: str, body: Callable[[], None]) -> Any:
    """A command that takes whatever it is given. Its help is somebody else's text: no markup."""
    from rich.markup import escape

    app = typer.Typer()

    @app.command(name, help=escape(plain(text)), context_settings={"ignore_unknown_options": True})
    def run(arguments: Annotated[Optional[list[str]], typer.Argument(hidden=True)] = None) -> None:  # noqa: UP045
        body()

    return typer.main.get_command(app)


def _plugged(entry: Entry) -> Any:
    try:
        made = registry().load("command", entry.name)
        if isinstance(made, typer.Typer):
            made = typer.main.get_command(made)
    except (MtlError, RuntimeError) as error:
        # `mtl --help` asks every command for its summary; a broken one must not hide the others.
        return _broken_command(entry.name, error if isinstance(error, MtlError) else PluginError(plain(error)))
    made.name = entry.name
    if entry.distribution != BUILT_IN:
        _guard(made, entry)
    return made


def _guard(command: Any, entry: Entry) -> None:
    """A third party's command that raises is named, and no traceback of ours."""
    from rich.markup import escape

    if command.help:
        command.help = escape(plain(command.help))
    invoke = command.invoke

    def guarded(ctx: Any) -> Any:
        try:
            return invoke(ctx)
        except (MtlError, typer.Exit, typer.Abort, SystemExit):
            raise
        except BaseException as error:
            if hasattr(error, "exit_code") and hasattr(error, "show"):  # bad usage, in the words of typer
                raise
            who = f"command {entry.name!r} of distribution {entry.provenance!r}"
            raise PluginError(f"{who} raised {blame(error)}") from error

    command.invoke = guarded


def _broken_command(name: str, problem: MtlError) -> Any:
    def fail() -> None:
        raise problem

    unusable = "needs an extra" if isinstance(problem, MissingExtraError) else "broken"
    return _command(name, f"({unusable}) {problem}", fail)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
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


def _kind(value: str | None) -> str | None:
    if value is not None and value not in KINDS:
        raise typer.BadParameter(f"there is no kind {value!r}. {did_you_mean(value, KINDS, 'Kinds')}")
    return value


def complete_kinds(incomplete: str) -> list[str]:
    """For the shell."""
    return [kind for kind in KINDS if kind.startswith(incomplete)]


def complete_names(incomplete: str) -> list[str]:
    """For the shell: plugins of every kind but laws."""
    with output.own_stdout(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        entries = [e for kind in KINDS if kind not in ("law", "command") for e in registry().entries(kind)]
    return sorted({e.name for e in entries if e.status == "ok" and e.name.startswith(incomplete)})


def complete_laws(incomplete: str) -> list[str]:
    """For the shell."""
    with output.own_stdout(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        entries = registry().entries("law")
    return [e.name for e in entries if e.status == "ok" and e.name.startswith(incomplete)]


Kind = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help=f"One of {', '.join(KINDS)}.", callback=_kind, autocompletion=complete_kinds),
]
Timeout = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(min=0.001, help="Seconds that a plugin may take; then it is set aside and the rest goes on."),
]


@app.command("list")
def list_plugins(
    kind: Kind = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable, on standard output.")] = False,
    load: Annotated[bool, typer.Option("--load", help="Really import every plugin (slower, catches more).")] = False,
    timeout: Timeout = None,
) -> None:
    """Every plugin: what it is, what it needs, where it comes from, and whether its promises are known to hold."""
    from mtlcore import listing

    with output.own_stdout() as stdout:
        found = listing.rows(kind, load)
        if as_json:
            stdout.write(output.as_json(found))
    if not as_json:
        listing.show(found)


@app.command("show")
def show_plugin(
    name: Annotated[Optional[str], typer.Argument(help="A plugin.", autocompletion=complete_names)] = None,  # noqa: UP045
    law: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="A law, instead of a plugin.", autocompletion=complete_laws),
    ] = None,
    kind: Kind = None,
) -> None:
    """One plugin: its options, claims, certificate, counterexamples and source. Or one law: what it states."""
    from mtlcore import showing

    if (name is None) == (law is None):
        raise typer.BadParameter("give either NAME or --law LAW")
    if law is not None:
        showing.show_law(law, kind)
    else:
        showing.show(str(name), kind)


@app.command("new-plugin")
def new_plugin(
    name: Annotated[str, typer.Argument(help="Lower-case kebab name of the plugin, e.g. my-method.")],
    kind: Annotated[
        str,
        typer.Option(
            help=f"One of {', '.join(KINDS)}.",
            autocompletion=complete_kinds,
        ),
    ] = "aggregator",
    directory: Annotated[Path, typer.Option("--in", help="Where to create the package's folder.")] = Path(),
) -> None:
    """A package that installs, registers and passes its tests."""
    from mtlcore.scaffold import create_package, next_step

    folder = create_package(name, kind, directory)
    typer.echo(
        f"Created {folder}. Next:\n  pip install -e {folder}\n  {next_step(kind, name, folder)}\n  pytest {folder}"
    )


@app.command("watch")
def watch_log(
    file: Annotated[Path, typer.Argument(help="A log that mtlcore.integrations.csv.CSVLogger writes.")],
    last: Annotated[int, typer.Option(min=1, help="Logged steps that means and curves are about.")] = 200,
    every: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="How often to look.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print it once; so does a pipe.")] = False,
) -> None:
    """A run on one screen while it trains: losses, weights, conflicts and teleports, task by task. Ctrl-C ends it."""
    from mtlcore.watching import watch

    watch(file, last, every, once)


def _warn_in_one_line(message: Warning | str, category: type[Warning], *place: Any) -> None:
    if issubclass(category, PluginWarning):
        typer.secho(f"mtl: warning: {plain(message)}", fg="yellow", err=True)
    else:
        _show_warning(message, category, *place)


_show_warning: Any = warnings.showwarning


def _set_timeout(arguments: Sequence[str]) -> None:
    """``--timeout S`` holds from the first plugin on: they are imported before a command reads its own options."""
    for argument, value in zip(arguments, [*arguments[1:], ""]):
        given = value if argument == "--timeout" else argument.removeprefix("--timeout=")
        if argument.partition("=")[0] == "--timeout":
            os.environ[patience.VARIABLE] = given


def main() -> None:
    """Entry point: errors made on purpose are one line and exit code 2, all others are tracebacks."""
    warnings.showwarning = _warn_in_one_line  # type: ignore[assignment]  # same call, looser annotations
    given = os.environ.get(patience.VARIABLE, "")
    if given and patience.allowed() is None:
        _fail(MtlError(f"{patience.VARIABLE}={shown(given)} is not a number of seconds greater than 0."))
    _set_timeout(sys.argv[1:])
    patience.tell()
    if sys.argv[1:2] == ["list"]:
        # It parses sources: many small objects, none of them garbage. Looking through them takes a quarter of its time,
        # and the process ends with it.
        gc.disable()
    try:
        app()
    except MtlError as error:
        _fail(error)
    except ModuleNotFoundError as error:
        missing = missing_extra(error)
        if missing is None:
            raise
        _fail(missing)
    except OSError as error:
        # A file that somebody named, or a full disk behind standard output: not worth a traceback.
        if error.strerror is None or isinstance(error, BrokenPipeError):
            raise
        _fail(MtlError(f"{error.strerror}: {error.filename or 'what is written to'}"))
    finally:
        output.give_up_stdout()


def _fail(error: MtlError) -> None:
    typer.secho(f"mtl: {plain(error)}", fg="red", err=True)
    sys.exit(2)
