"""``mtl peers``: check the methods of TorchJD, another library, against the laws."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from mtlcore.errors import MtlError, UnknownPluginError, did_you_mean
from mtlcore.hosting import as_json, check_writable, own_stdout, plain, to_stdout
from mtlverify.ledger.build import Row
from mtlverify.ledger.render import matrix, page
from mtlverify.peers.examine import LAWS, rows
from mtlverify.peers.torchjd import Peer, peers
from mtlverify.runner import chosen

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    names: Annotated[Optional[list[str]], typer.Argument(metavar="[NAME]...", help="Default: all.")] = None,  # noqa: UP045
    law: Annotated[Optional[list[str]], typer.Option(help="Only these laws (may be repeated).")] = None,  # noqa: UP045
    max_examples: Annotated[int, typer.Option(min=1, help="Inputs per law.")] = 60,
    seed: Annotated[int, typer.Option(help="Of the search.")] = 0,
    hunt: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="Adversarial search per stated law.")] = 0.0,
    json_file: Annotated[Optional[Path], typer.Option("--json", help="Write the rows there; - is stdout.")] = None,  # noqa: UP045
    markdown: Annotated[Optional[Path], typer.Option(help="Write the ledger as a page there.")] = None,  # noqa: UP045
) -> None:
    """Look for counterexamples to what another library's methods state, and to what they do not.

    Exit code 0 whatever is found (it is not our build), 2 if the library, a name or a law is missing.
    """
    quiet = to_stdout(json_file)
    with own_stdout() as stdout:
        try:
            for file in (json_file, markdown):
                check_writable(file)
            chosen("aggregator", law)
            examined = _examined(names or [])
        except MtlError as error:
            typer.secho(f"mtl peers: {plain(error)}", fg="red", err=True)
            raise typer.Exit(2) from error
        version = importlib.metadata.version("torchjd")
        told = sys.stderr if quiet else stdout
        print(f"torchjd {version}", file=told, flush=True)
        everything = []
        for peer in examined:
            for row in rows(peer, law or LAWS, max_examples, seed, hunt):
                everything.append(row)
                print(_line(peer.name, row), file=told, flush=True)
        found = as_json([dataclasses.asdict(r) for r in everything])
        if quiet:
            stdout.write(found)
    if json_file is not None and not quiet:
        json_file.write_text(found, encoding="utf-8")
    if markdown is not None:
        preface = f"TorchJD {version}, examined by `mtl peers`. **Bold**: stated by its documentation.\n"
        markdown.write_text(page(everything, "TorchJD's aggregators", preface), encoding="utf-8")


def _examined(names: list[str]) -> list[Peer]:
    """Those that are named, or all that can be made; says on standard error who cannot, where nobody asked for them.

    Raises:
        UnknownPluginError: there is no such one, or it cannot be made here.
    """
    found, missing = peers()
    known = {p.name: p for p in found}
    for name in names:
        if name in missing:
            raise UnknownPluginError(f"{name} cannot be made here: {missing[name]}. {_FULL}")
        if name not in known:
            hint = did_you_mean(name, [*known, *missing], "There are")
            raise UnknownPluginError(f"there is no peer called {name!r}. {hint}")
    if missing and not names:
        left_out = f"mtl peers: left out, because a package is missing: {', '.join(missing)}. {_FULL}"
        typer.secho(left_out, fg="yellow", err=True)
    return [known[name] for name in names] if names else found


_FULL = "Install everything that TorchJD can use with: pip install 'torchjd[full]'"


def _line(name: str, row: Row) -> str:
    shown = "" if row.counterexample is None else f"  J = {matrix(row.counterexample['example']['jacobian'])}"
    stated = "stated" if row.claimed else ""
    margin = "" if row.worst_margin is None else f"{row.worst_margin:.3g}"
    return f"{name:18} {row.law:26} {stated:7} {row.status:15} {margin:>10}{shown}  {row.detail}"
