"""``mtl peers``: check the methods of TorchJD, another library, against the laws."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from pathlib import Path
from typing import Annotated, Optional

import typer

from mtlcore.errors import MtlError
from mtlverify.ledger.render import matrix, page
from mtlverify.peers.examine import LAWS, rows
from mtlverify.peers.torchjd import peers
from mtlverify.runner import chosen

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    names: Annotated[Optional[list[str]], typer.Argument(metavar="[NAME]...", help="Default: all.")] = None,  # noqa: UP045
    law: Annotated[Optional[list[str]], typer.Option(help="Only these laws (may be repeated).")] = None,  # noqa: UP045
    max_examples: Annotated[int, typer.Option(min=1, help="Inputs per law.")] = 60,
    seed: Annotated[int, typer.Option(help="Of the search.")] = 0,
    hunt: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="Adversarial search per stated law.")] = 0.0,
    json_file: Annotated[Optional[Path], typer.Option("--json", help="Write the rows there.")] = None,  # noqa: UP045
    markdown: Annotated[Optional[Path], typer.Option(help="Write the ledger as a page there.")] = None,  # noqa: UP045
) -> None:
    """Look for counterexamples to what another library's methods state, and to what they do not.

    Exit code 0 whatever is found (it is not our build), 2 if the library, a name or a law is missing.
    """
    try:
        chosen("aggregator", law)
        found = peers()
    except MtlError as error:
        typer.secho(str(error), fg="red", err=True)
        raise typer.Exit(2) from error
    known = {p.name: p for p in found}
    unknown = [n for n in names or [] if n not in known]
    if unknown:
        typer.secho(f"no peer called {', '.join(unknown)}; there are {', '.join(known)}.", fg="red", err=True)
        raise typer.Exit(2)
    version = importlib.metadata.version("torchjd")
    typer.echo(f"torchjd {version}")
    everything = []
    for peer in [known[n] for n in names] if names else found:
        for row in rows(peer, law or LAWS, max_examples, seed, hunt):
            everything.append(row)
            shown = ""
            if row.counterexample is not None:
                shown = f"  J = {matrix(row.counterexample['example']['jacobian'])}"
            stated = "stated" if row.claimed else ""
            margin = "" if row.worst_margin is None else f"{row.worst_margin:.3g}"
            typer.echo(f"{peer.name:18} {row.law:26} {stated:7} {row.status:15} {margin:>10}{shown}  {row.detail}")
    if json_file is not None:
        json_file.write_text(json.dumps([dataclasses.asdict(r) for r in everything], indent=1) + "\n", encoding="utf-8")
    if markdown is not None:
        preface = f"TorchJD {version}, examined by `mtl peers`. **Bold**: stated by its documentation.\n"
        markdown.write_text(page(everything, "TorchJD's aggregators", preface), encoding="utf-8")
